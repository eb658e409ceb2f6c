"""Training states on disk: everything that a run needs to go on as if it had never stopped; safetensors and JSON.

Order, crops, mixing and dropout follow from (seed, step), so no generator state is kept. A state is a folder
`checkpoints/step_00000500` with model.safetensors, optimizer.safetensors, ema.safetensors where weights are averaged,
and state.json (step, schedule, loss scale, the other files' digests, seed, config, lists, environment, and its own
digest); it is written under a temporary name, synced and renamed, so a folder with the final name is whole. One that
contains NaN or Inf is not written, and one in which a bit has changed is not used. Weights that are shared out among
processes are saved whole, so a state does not depend on how many processes there are.
"""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from mvit_video.config.schema import TrainSettings
from mvit_video.download import sha256
from mvit_video.engine.distributed import is_first, world_size
from mvit_video.engine.ema import WeightAverage
from mvit_video.engine.metrics_log import read_metrics
from mvit_video.engine.parallel import like, whole_tensors
from mvit_video.errors import CheckpointError
from mvit_video.model.ops.cpu import ways
from mvit_video.model.weights.card import ModelCard
from mvit_video.model.weights.files import read_checkpoint, save_tensors
from mvit_video.model.weights.load import check_exactly
from mvit_video.paths import sync, write_json, write_whole
from mvit_video.version import __version__

FOLDER = "checkpoints"
BEST, VALIDATION = "best.json", "validation.jsonl"
STATE = "state.json"
DIGEST = "digest"  # in state.json, of all else in it
WITHOUT_DIGEST = {"step", "schedule", "scaler", "teacher", "seed", "config", "environment", "lists", "sha256"}
BEST_BY = ("ema_top1", "ema_mean_average_precision", "top1", "mean_average_precision")
MODEL, OPTIMIZER, AVERAGE = "model.safetensors", "optimizer.safetensors", "ema.safetensors"


@dataclass(frozen=True)
class Learner:
    """All that a training step changes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    """The loss scale of fp16; does nothing in other precisions."""
    average: WeightAverage | None = None
    teacher: str | None = None
    """The sha256 of the teacher's file, which does not change: states with another one are of another run."""


@dataclass(frozen=True)
class TrainingState:
    """A saved state that has been found whole: where it is, the number of steps it has done, and of which schedule."""

    folder: Path
    step: int
    schedule: dict[str, int]
    environment: dict[str, Any]
    lists: list[dict[str, Any]]
    """Of each list, how many videos it has and its digest (see run_folder.py); empty in states of before."""


def save_state(
    run: Path,
    step: int,
    learner: Learner,
    card: ModelCard,
    schedule: Mapping[str, int],
    keep: int,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write the state after `step` steps, with what there is to know `about` it, then `tidy`. Every process must call it.

    Raises CheckpointError, and leaves the states before it alone, where it contains NaN or Inf or cannot be written.
    """
    tensors = _whole_learner(learner)
    if not is_first():
        return
    content = {
        "step": step,
        "schedule": dict(schedule),
        "scaler": learner.scaler.state_dict(),
        "teacher": learner.teacher,
        **(about or {}),
    }
    final = run / FOLDER / f"step_{step:08d}"
    temporary = run / FOLDER / f".step_{step:08d}.partial"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        final.parent.mkdir(exist_ok=True)  # not the run's own folder: it is gone where somebody has deleted or moved it
        temporary.mkdir()
        _write_state(temporary, tensors, card, content)
        sync(temporary)
        os.replace(temporary, final)
        sync(final.parent)
    except OSError as reason:
        raise CheckpointError(
            f"{final}: cannot be written ({reason.strerror}): the states before it are untouched"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    tidy(run, keep)


def _whole_learner(learner: Learner) -> dict[str, dict[str, Tensor]]:
    """File name -> tensors of a state. Every process must ask."""
    tensors = {MODEL: whole_tensors(learner.model.state_dict())}
    if learner.average is not None:
        tensors[AVERAGE] = whole_tensors(learner.average.model.state_dict())
    moments = learner.optimizer.state_dict()["state"].items()
    tensors[OPTIMIZER] = whole_tensors(
        {f"{number}.{name}": value for number, of in moments for name, value in of.items()}
    )
    return tensors


def _write_state(folder: Path, tensors: dict[str, dict[str, Tensor]], card: ModelCard, content: dict) -> None:
    for name in (MODEL, AVERAGE):
        if name in tensors:
            save_tensors(folder / name, tensors[name], card)
    _check_optimizer(tensors[OPTIMIZER], folder / OPTIMIZER)
    write_whole(folder / OPTIMIZER, to_safetensors(tensors[OPTIMIZER]))
    content = content | {"sha256": {file.name: sha256(file) for file in sorted(folder.iterdir())}}
    write_json(folder / STATE, content | {DIGEST: _digest(content)})


def _digest(content: Mapping[str, Any]) -> str:
    """sha256 of JSON whose names are sorted, so that it can be taken of what was read back."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def tidy(run: Path, keep: int) -> None:
    """Delete all states but the newest `keep` and the best validated one, and say in best.json which that is.

    Best is the highest top-1 (or mAP, of videos with several labels) in validation.jsonl; that of the averaged weights
    where there are any; the earlier one of equals. What a kill has left half-written is deleted too.
    """
    best = _best(run)
    if best is not None and read_best(run) != best:
        write_json(run / BEST, best)
    for old in [folder for folder in _folders(run)[:-keep] if best is None or folder != run / best["state"]]:
        shutil.rmtree(old)
    for leftover in (run / FOLDER).glob(".step_*.partial"):
        shutil.rmtree(leftover)


def _best(run: Path) -> dict[str, Any] | None:
    best = None
    for record in read_metrics(run / VALIDATION):
        metric = next((name for name in BEST_BY if name in record), None)
        state = Path(FOLDER) / f"step_{record['step']:08d}"
        if metric is None or not (run / state).is_dir():
            continue
        if best is None or record[metric] > best["value"]:
            best = {"state": state.as_posix(), "step": record["step"], "metric": metric, "value": record[metric]}
    return best


def read_best(run: Path) -> dict[str, Any] | None:
    """What best.json says; None where it says nothing."""
    try:
        best = json.loads((run / BEST).read_text())
        return best if isinstance(best["state"], str) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def environment(device: torch.device, settings: TrainSettings) -> dict[str, Any]:
    """What decides, besides the data and settings that may not change, whether two runs agree to the bit."""
    taken = {"products": ways().products, "attention": ways().attention} if device.type == "cpu" else {}
    return {
        "mvit_video": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "parallel": settings.parallel if world_size() > 1 else None,
        "clips_per_pass": settings.clips_per_pass,
        **taken,
    }


def newest_state(run: Path) -> tuple[TrainingState | None, list[str]]:
    """The newest state that is whole, and a sentence for each newer one that is not.

    Raises CheckpointError where a file of a state cannot be looked at: it may be as whole as ever.
    """
    complaints: list[str] = []
    for folder in reversed(_folders(run)):
        try:
            return _checked(folder), complaints
        except (FileNotFoundError, NotADirectoryError) as reason:
            complaints.append(f"{folder}: lacks {Path(reason.filename).name}: not used")
        except OSError as reason:
            raise CheckpointError(
                f"{reason.filename}: cannot be read ({reason.strerror}): make it readable, or move {folder} away to go on "
                "from an earlier state"
            ) from None
        except _Broken as reason:
            complaints.append(f"{folder}: {reason}: not used")
    return None, complaints


class _Broken(Exception):
    """What is wrong with a state, in words."""


def _checked(folder: Path) -> TrainingState:
    """A state every file of which is as it was written. Raises _Broken, or OSError."""
    content = _content(folder)
    for name in (MODEL, OPTIMIZER, AVERAGE) if AVERAGE in content["sha256"] else (MODEL, OPTIMIZER):
        if sha256(folder / name) != content["sha256"].get(name):
            raise _Broken(f"{name} is not what was written (sha256 differs)")
    return TrainingState(
        folder, content["step"], content["schedule"], content.get("environment", {}), content.get("lists", [])
    )


def _content(folder: Path) -> dict[str, Any]:
    """What state.json tells, if it is what was written and of this folder. Raises _Broken, or OSError.

    States of before have no digest; of these the step and the names can be compared.
    """
    try:
        content = json.loads((folder / STATE).read_text(encoding="utf-8"))
        digest = content.pop(DIGEST, None)
        known = set(content) <= WITHOUT_DIGEST
        whole = digest == _digest(content) if digest is not None else known
        whole = whole and type(content["step"]) is int
        whole = whole and all(isinstance(content[name], dict) for name in ("schedule", "scaler", "sha256"))
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        raise _Broken(f"{STATE} cannot be read") from None
    if not whole:
        raise _Broken(f"{STATE} is not what was written ({'its digest differs' if digest else 'it has other names'})")
    if content["step"] != _step(folder):
        raise _Broken(f"{STATE} is of step {content['step']}, and this folder is not")
    return content


def set_aside(run: Path, after: int) -> list[str]:
    """Rename the states after step `after`, which are broken: `tidy` would count them among the newest. A sentence for each."""
    told = []
    for folder in _folders(run):
        if _step(folder) > after:
            names = (f"broken{number}_{folder.name}" for number in count(1))
            aside = next(folder.with_name(name) for name in names if not folder.with_name(name).exists())
            folder.rename(aside)
            told.append(f"{folder}: is broken and set aside as {aside.name}: delete it when nobody needs it")
    return told


def load_state(state: TrainingState, learner: Learner) -> None:
    """Put a saved state into a learner of the same make. Raises CheckpointError where it learnt from another teacher."""
    try:
        content = _content(state.folder)
    except (_Broken, OSError) as reason:
        raise CheckpointError(f"{state.folder}: has changed since it was found whole ({reason}): start again") from None
    if content.get("teacher") != learner.teacher:
        raise CheckpointError(
            f"{state.folder}: learnt from {_teacher(content.get('teacher'))}, and train.teacher is now "
            f"{_teacher(learner.teacher)}: name the same file, or start anew in another --output"
        )
    _load_network(learner.model, state.folder / MODEL)
    if learner.average is not None:
        _load_network(learner.average.model, state.folder / AVERAGE)
    learner.scaler.load_state_dict(content["scaler"])
    try:
        tensors = load_file(state.folder / OPTIMIZER)
    except (SafetensorError, OSError) as reason:
        raise CheckpointError(f"{state.folder / OPTIMIZER}: cannot be read ({reason})") from None
    saved: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split(".", 1)
        saved.setdefault(int(number), {})[name] = tensor
    groups = learner.optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in learner.optimizer.param_groups for parameter in group["params"]]
    if not saved.keys() <= {number for group in groups for number in group["params"]}:
        raise CheckpointError(
            f"{state.folder}: its optimiser has {len(saved)} parameters, expected another number: start anew"
        )
    for place, values in saved.items():
        saved[place] = {name: like(value, parameters[place]) for name, value in values.items()}
    learner.optimizer.load_state_dict({"state": saved, "param_groups": groups})


def _load_network(network: nn.Module, path: Path) -> None:
    wanted, state = network.state_dict(), read_checkpoint(path)[0]
    check_exactly(wanted, state, path.parent)
    network.load_state_dict({name: like(tensor, wanted[name]) for name, tensor in state.items()})


def _check_optimizer(tensors: Mapping[str, Tensor], path: Path) -> None:
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            f"{path}: not written, because '{broken[0]}' contains NaN or Inf ({len(broken)} tensors do)"
        )


def _teacher(digest: str | None) -> str:
    return f"a teacher of sha256 {digest[:12]}…" if digest else "no teacher"


def _folders(run: Path) -> list[Path]:
    return sorted((folder for folder in (run / FOLDER).glob("step_*") if folder.name[5:].isdecimal()), key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))
