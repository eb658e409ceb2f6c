"""Training states on disk, as safetensors and JSON: everything a run needs to continue as if it had never stopped.

Order, crops, mixing and dropout follow from (seed, step), so no generator state is kept. A state is a folder
`checkpoints/step_00000500` with model.safetensors, optimizer.safetensors, ema.safetensors where weights are averaged,
and state.json (step, schedule, loss scale, the other files' digests, seed, config, lists, environment, and its own
digest); it is written under a temporary name, synced and renamed, so a folder with the final name is complete. A state
with NaN or Inf is not written, and one in which a bit has changed is not used. Sharded weights are gathered first, so a
state does not depend on the number of processes.
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
from mvit_video.data.transforms import SCALING
from mvit_video.engine.distributed import is_rank_zero, world_size
from mvit_video.engine.ema import WeightAverage
from mvit_video.engine.metrics_log import read_metrics
from mvit_video.engine.parallel import full_tensors, like
from mvit_video.errors import CheckpointError
from mvit_video.model.ops.cpu import cpu_backends
from mvit_video.model.weights.card import ModelCard
from mvit_video.model.weights.files import read_checkpoint, save_tensors
from mvit_video.model.weights.load import check_exactly
from mvit_video.paths import file_sha256, sync, write_json, write_whole
from mvit_video.version import __version__

FOLDER = "checkpoints"
BEST, VALIDATION = "best.json", "validation.jsonl"
STATE = "state.json"
DIGEST = "digest"  # in state.json, of all else in it
KEYS_BEFORE_DIGESTS = {"step", "schedule", "scaler", "teacher", "seed", "config", "environment", "lists", "sha256"}
BEST_BY = ("ema_top1", "ema_mean_average_precision", "top1", "mean_average_precision")
MODEL, OPTIMIZER, AVERAGE = "model.safetensors", "optimizer.safetensors", "ema.safetensors"


@dataclass(frozen=True)
class Learner:
    """Everything that a training step changes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    """Loss scale of fp16; does nothing in other precisions."""
    average: WeightAverage | None = None
    teacher: str | None = None
    """sha256 of the teacher's file: states with another one belong to another run."""


@dataclass(frozen=True)
class TrainingState:
    """A saved state that passed its checks: its folder, steps done, and schedule."""

    folder: Path
    step: int
    schedule: dict[str, int]
    environment: dict[str, Any]
    lists: list[dict[str, Any]]
    """Number of videos and digest of each list (see run_folder.py); empty in states of older versions."""


def save_state(
    run: Path,
    step: int,
    learner: Learner,
    card: ModelCard,
    schedule: Mapping[str, int],
    keep: int,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Save the state after `step` steps, with metadata `about` the run, then `prune_states`. Every process must call this.

    Raises CheckpointError, and keeps earlier states, if it contains NaN or Inf or cannot be written.
    """
    tensors = _learner_tensors(learner)
    if not is_rank_zero():
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
        final.parent.mkdir(exist_ok=True)  # not the run's own folder, which the user may have deleted or moved
        temporary.mkdir()
        _write_state(temporary, tensors, card, content)
        sync(temporary)
        os.replace(temporary, final)
        sync(final.parent)
    except OSError as reason:
        raise CheckpointError(f"{final}: cannot be written ({reason.strerror}): earlier states are kept") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    prune_states(run, keep)


def _learner_tensors(learner: Learner) -> dict[str, dict[str, Tensor]]:
    """Tensors of a state by file name. Every process must call this."""
    tensors = {MODEL: full_tensors(learner.model.state_dict())}
    if learner.average is not None:
        tensors[AVERAGE] = full_tensors(learner.average.model.state_dict())
    moments = learner.optimizer.state_dict()["state"].items()
    tensors[OPTIMIZER] = full_tensors(
        {f"{number}.{name}": value for number, of in moments for name, value in of.items()}
    )
    return tensors


def _write_state(folder: Path, tensors: dict[str, dict[str, Tensor]], card: ModelCard, content: dict) -> None:
    for name in (MODEL, AVERAGE):
        if name in tensors:
            save_tensors(folder / name, tensors[name], card)
    _check_optimizer(tensors[OPTIMIZER], folder / OPTIMIZER)
    write_whole(folder / OPTIMIZER, to_safetensors(tensors[OPTIMIZER]))
    content = content | {"sha256": {file.name: file_sha256(file) for file in sorted(folder.iterdir())}}
    write_json(folder / STATE, content | {DIGEST: _digest(content)})


def _digest(content: Mapping[str, Any]) -> str:
    """sha256 of JSON with sorted keys, so that it can be verified after reading."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def prune_states(run: Path, keep: int) -> None:
    """Delete all states but the newest `keep` and the best validated one, which is named in best.json.

    Best is the highest top-1 (or mAP, for videos with several labels) in validation.jsonl, of the averaged weights if
    there are any; the earlier of equals. Partial states left by a kill are deleted too.
    """
    best = _best(run)
    if best is not None and read_best(run) != best:
        write_json(run / BEST, best)
    for old in [folder for folder in _state_folders(run)[:-keep] if best is None or folder != run / best["state"]]:
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
    """Read best.json; None if it is missing or invalid."""
    try:
        best = json.loads((run / BEST).read_text())
        return best if isinstance(best["state"], str) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def environment(device: torch.device, settings: TrainSettings) -> dict[str, Any]:
    """The environment in which a run is reproducible bit for bit, besides data and fixed settings."""
    backends = (
        {"products": cpu_backends().products, "attention": cpu_backends().attention} if device.type == "cpu" else {}
    )
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
        "scaling": SCALING,
        **backends,
    }


def newest_state(run: Path) -> tuple[TrainingState | None, list[str]]:
    """Find the newest intact state, and describe each newer one that is not.

    Raises CheckpointError if a file cannot be accessed, since the state may be intact.
    """
    problems: list[str] = []
    for folder in reversed(_state_folders(run)):
        try:
            return _verified(folder), problems
        except (FileNotFoundError, NotADirectoryError) as reason:
            problems.append(f"{folder}: {Path(reason.filename).name} is missing: this state is ignored")
        except OSError as reason:
            raise CheckpointError(
                f"{reason.filename}: cannot be read ({reason.strerror}): make it readable, or move {folder} away to "
                "continue from an earlier state"
            ) from None
        except _BrokenState as reason:
            problems.append(f"{folder}: {reason}: this state is ignored")
    return None, problems


class _BrokenState(Exception):
    """What is wrong with a state."""


def _verified(folder: Path) -> TrainingState:
    """Read a state and verify the digests of its files. Raises _BrokenState or OSError."""
    content = _read_state_file(folder)
    for name in (MODEL, OPTIMIZER, AVERAGE) if AVERAGE in content["sha256"] else (MODEL, OPTIMIZER):
        if file_sha256(folder / name) != content["sha256"].get(name):
            raise _BrokenState(f"{name} was changed after it was written (its sha256 differs)")
    return TrainingState(
        folder, content["step"], content["schedule"], content.get("environment", {}), content.get("lists", [])
    )


def _read_state_file(folder: Path) -> dict[str, Any]:
    """Read and verify state.json. Raises _BrokenState or OSError.

    States of older versions have no digest; only their step and keys are compared.
    """
    try:
        content = json.loads((folder / STATE).read_text(encoding="utf-8"))
        digest = content.pop(DIGEST, None)
        known = set(content) <= KEYS_BEFORE_DIGESTS
        whole = digest == _digest(content) if digest is not None else known
        whole = whole and type(content["step"]) is int
        whole = whole and all(isinstance(content[name], dict) for name in ("schedule", "scaler", "sha256"))
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        raise _BrokenState(f"{STATE} cannot be read") from None
    if not whole:
        raise _BrokenState(
            f"{STATE} was changed after it was written ({'its digest differs' if digest else 'unknown keys'})"
        )
    if content["step"] != _step(folder):
        raise _BrokenState(f"{STATE} is of step {content['step']}, but its folder is not")
    return content


def set_aside(run: Path, after: int) -> list[str]:
    """Rename broken states after step `after`, so that `prune_states` does not count them; return a sentence for each."""
    notes = []
    for folder in _state_folders(run):
        if _step(folder) > after:
            names = (f"broken{number}_{folder.name}" for number in count(1))
            aside = next(folder.with_name(name) for name in names if not folder.with_name(name).exists())
            folder.rename(aside)
            notes.append(f"{folder}: is broken and was renamed to {aside.name}: delete it if you do not need it")
    return notes


def load_state(state: TrainingState, learner: Learner) -> None:
    """Load a saved state into a learner of the same kind. Raises CheckpointError if it was distilled from another teacher."""
    try:
        content = _read_state_file(state.folder)
    except (_BrokenState, OSError) as reason:
        raise CheckpointError(f"{state.folder}: was changed while it was being read ({reason}): run again") from None
    if content.get("teacher") != learner.teacher:
        raise CheckpointError(
            f"{state.folder}: was trained with {_teacher(content.get('teacher'))}, but train.teacher is now "
            f"{_teacher(learner.teacher)}: pass the same file, or start over in another --output"
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
            f"{state.folder}: its optimiser has {len(saved)} parameters, expected another number: start over in another --output"
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


def _state_folders(run: Path) -> list[Path]:
    return sorted((folder for folder in (run / FOLDER).glob("step_*") if folder.name[5:].isdecimal()), key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))
