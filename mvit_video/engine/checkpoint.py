"""Training states on disk: everything that a run needs to go on as if it had never stopped; safetensors and JSON.

Order, crops, mixing and dropout follow from (seed, step), so no generator state is kept. A state is a folder
`checkpoints/step_00000500` with model.safetensors, optimizer.safetensors, ema.safetensors where weights are averaged,
and state.json (step, schedule, loss scale, digests); it is written under a temporary name, synced and renamed, so a
folder with the final name is whole. One that holds NaN or Inf is not written.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import nn

from mvit_video.engine.ema import WeightAverage
from mvit_video.errors import CheckpointError
from mvit_video.model.checkpoints import ModelCard, load_exactly, read_checkpoint, save_checkpoint
from mvit_video.paths import write_json, write_whole
from mvit_video.version import __version__

FOLDER = "checkpoints"
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


def save_state(run: Path, step: int, learner: Learner, card: ModelCard, schedule: Mapping[str, int], keep: int) -> None:
    """Write the state after `step` steps, then delete all but the newest `keep`.

    Raises CheckpointError, and leaves the states before it alone, where it holds NaN or Inf or cannot be written.
    """
    final = run / FOLDER / f"step_{step:08d}"
    temporary = run / FOLDER / f".step_{step:08d}.partial"
    for leftover in (temporary, final):
        if leftover.exists():
            shutil.rmtree(leftover)
    try:
        temporary.mkdir(parents=True)
        _write_state(temporary, step, learner, card, schedule)
        os.replace(temporary, final)
        _sync_folder(final.parent)
    except OSError as reason:
        raise CheckpointError(
            f"{final}: cannot be written ({reason.strerror}): the states before it are untouched"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in _folders(run)[:-keep]:
        shutil.rmtree(old)


def _write_state(folder: Path, step: int, learner: Learner, card: ModelCard, schedule: Mapping[str, int]) -> None:
    save_checkpoint(folder / MODEL, learner.model, card)
    if learner.average is not None:
        save_checkpoint(folder / AVERAGE, learner.average.model, card)
    write_whole(folder / OPTIMIZER, to_safetensors(_optimizer_tensors(learner.optimizer, folder / OPTIMIZER)))
    content = {
        "step": step,
        "schedule": dict(schedule),
        "scaler": learner.scaler.state_dict(),
        "teacher": learner.teacher,
        "sha256": {file.name: _digest(file) for file in sorted(folder.iterdir())},
        "versions": {"mvit_video": __version__, "torch": torch.__version__},
    }
    write_json(folder / "state.json", content)


def newest_state(run: Path) -> tuple[TrainingState | None, list[str]]:
    """The newest state that is whole, and a sentence for each newer one that is not."""
    complaints: list[str] = []
    for folder in reversed(_folders(run)):
        try:
            content = json.loads((folder / "state.json").read_text())
            changed = [name for name, digest in content["sha256"].items() if _digest(folder / name) != digest]
            if not changed:
                return TrainingState(folder, content["step"], content["schedule"]), complaints
            complaints.append(f"{folder}: {changed[0]} is not what was written (sha256 differs): not used")
        except (OSError, ValueError, KeyError) as reason:
            complaints.append(f"{folder}: cannot be read ({reason}): not used")
    return None, complaints


def load_state(state: TrainingState, learner: Learner) -> None:
    """Put a saved state into a learner of the same make. Raises CheckpointError where it learnt from another teacher."""
    content = json.loads((state.folder / "state.json").read_text())
    if content.get("teacher") != learner.teacher:
        raise CheckpointError(
            f"{state.folder}: learnt from {_teacher(content.get('teacher'))}, and train.teacher is now "
            f"{_teacher(learner.teacher)}: name the same file, or start anew in another --output"
        )
    load_exactly(learner.model, read_checkpoint(state.folder / MODEL)[0], state.folder)
    if learner.average is not None:
        load_exactly(learner.average.model, read_checkpoint(state.folder / AVERAGE)[0], state.folder)
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
    if not saved.keys() <= {number for group in groups for number in group["params"]}:
        raise CheckpointError(
            f"{state.folder}: its optimiser has {len(saved)} parameters, wanted another number: start anew"
        )
    learner.optimizer.load_state_dict({"state": saved, "param_groups": groups})


def _optimizer_tensors(optimizer: torch.optim.Optimizer, path: Path) -> dict[str, torch.Tensor]:
    tensors = {
        f"{number}.{name}": value.cpu().contiguous()
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(f"{path}: not written, because '{broken[0]}' holds NaN or Inf ({len(broken)} tensors do)")
    return tensors


def _teacher(digest: str | None) -> str:
    return f"a teacher of sha256 {digest[:12]}…" if digest else "no teacher"


def _folders(run: Path) -> list[Path]:
    return sorted((run / FOLDER).glob("step_*"))


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
