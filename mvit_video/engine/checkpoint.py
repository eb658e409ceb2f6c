"""Training states on disk: everything that a run needs to go on as if it had never stopped; safetensors and JSON.

Order, crops, mixing and dropout follow from (seed, step), so no generator state is kept. A state is a folder
`checkpoints/step_00000500` with model.safetensors, optimizer.safetensors, ema.safetensors where weights are averaged,
and state.json (step, schedule, loss scale, digests, seed, config, lists and environment); it is written under a temporary name,
synced and renamed, so a folder with the final name is whole. One that holds NaN or Inf is not written. Weights that are
shared out among processes are saved whole, so a state does not depend on how many processes there are.
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
from mvit_video.engine.distributed import is_first, world_size
from mvit_video.engine.ema import WeightAverage
from mvit_video.engine.metrics_log import read_metrics
from mvit_video.engine.parallel import like, whole_tensors
from mvit_video.errors import CheckpointError
from mvit_video.model.weights.card import ModelCard
from mvit_video.model.weights.files import read_checkpoint, save_tensors
from mvit_video.model.weights.load import check_exactly
from mvit_video.paths import write_json, write_whole
from mvit_video.version import __version__

FOLDER = "checkpoints"
BEST, VALIDATION = "best.json", "validation.jsonl"
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

    Raises CheckpointError, and leaves the states before it alone, where it holds NaN or Inf or cannot be written.
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
        temporary.mkdir(parents=True)
        _write_state(temporary, tensors, card, content)
        _sync_folder(temporary)
        os.replace(temporary, final)
        _sync_folder(final.parent)
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
    digests = {file.name: _digest(file) for file in sorted(folder.iterdir())}
    write_json(folder / "state.json", content | {"sha256": digests})


def tidy(run: Path, keep: int) -> None:
    """Delete all states but the newest `keep` and the best validated one, and say in best.json which that is.

    Best is the highest top-1 (or mAP, of videos with several labels) in validation.jsonl; that of the averaged weights
    where there are any; the earlier one of equals. What a kill has left half-written is deleted too.
    """
    best = _best(run)
    if best is not None and _read_best(run) != best:
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


def _read_best(run: Path) -> Any:
    try:
        return json.loads((run / BEST).read_text())
    except (OSError, ValueError):
        return None


def environment(device: torch.device, settings: TrainSettings) -> dict[str, Any]:
    """What decides, besides the data and settings that may not change, whether two runs agree to the bit."""
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
    }


def newest_state(run: Path) -> tuple[TrainingState | None, list[str]]:
    """The newest state that is whole, and a sentence for each newer one that is not."""
    complaints: list[str] = []
    for folder in reversed(_folders(run)):
        try:
            content = json.loads((folder / "state.json").read_text())
            changed = [name for name, digest in content["sha256"].items() if _digest(folder / name) != digest]
            if not changed:
                about = content["schedule"], content.get("environment", {}), content.get("lists", [])
                return TrainingState(folder, content["step"], *about), complaints
            complaints.append(f"{folder}: {changed[0]} is not what was written (sha256 differs): not used")
        except (OSError, ValueError, KeyError) as reason:
            complaints.append(f"{folder}: cannot be read ({reason}): not used")
    return None, complaints


def set_aside(run: Path, after: int) -> list[str]:
    """Rename the states after step `after`, which are broken: `tidy` would count them among the newest. A sentence for each."""
    told = []
    for folder in _folders(run):
        if int(folder.name.removeprefix("step_")) > after:
            names = (f"broken{number}_{folder.name}" for number in count(1))
            aside = next(folder.with_name(name) for name in names if not folder.with_name(name).exists())
            folder.rename(aside)
            told.append(f"{folder}: is broken and set aside as {aside.name}: delete it when nobody needs it")
    return told


def load_state(state: TrainingState, learner: Learner) -> None:
    """Put a saved state into a learner of the same make. Raises CheckpointError where it learnt from another teacher."""
    content = json.loads((state.folder / "state.json").read_text())
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
            f"{state.folder}: its optimiser has {len(saved)} parameters, wanted another number: start anew"
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
        raise CheckpointError(f"{path}: not written, because '{broken[0]}' holds NaN or Inf ({len(broken)} tensors do)")


def _teacher(digest: str | None) -> str:
    return f"a teacher of sha256 {digest[:12]}…" if digest else "no teacher"


def _folders(run: Path) -> list[Path]:
    return sorted(folder for folder in (run / FOLDER).glob("step_*") if folder.name[5:].isdecimal())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
