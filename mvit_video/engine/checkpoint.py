"""Training states on disk: everything that a run needs to go on as if it had never stopped; safetensors and JSON.

Order, crops and dropout follow from (seed, step), so no generator state is kept. A state is a folder
`checkpoints/step_00000500` with model.safetensors, optimizer.safetensors and state.json; it is written under a
temporary name, synced and renamed, so a folder with the final name is whole.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import nn

from mvit_video.errors import CheckpointError
from mvit_video.model.checkpoints import ModelCard, load_exactly, read_checkpoint, save_checkpoint
from mvit_video.paths import write_json, write_whole
from mvit_video.version import __version__

FOLDER = "checkpoints"
FILES = ("model.safetensors", "optimizer.safetensors")


@dataclass(frozen=True)
class TrainingState:
    """A saved state that has been found whole: where it is, and the number of steps it has done."""

    folder: Path
    step: int


def save_state(
    run: Path, step: int, model: nn.Module, card: ModelCard, optimizer: torch.optim.Optimizer, keep: int
) -> None:
    """Write the state after `step` steps, then delete all but the newest `keep`."""
    final = run / FOLDER / f"step_{step:08d}"
    temporary = run / FOLDER / f".step_{step:08d}.partial"
    for leftover in (temporary, final):
        if leftover.exists():
            shutil.rmtree(leftover)
    try:
        temporary.mkdir(parents=True)
        save_checkpoint(temporary / FILES[0], model, card)
        write_whole(temporary / FILES[1], to_safetensors(_optimizer_tensors(optimizer)))
        digests = {name: _digest(temporary / name) for name in FILES}
        versions = {"mvit_video": __version__, "torch": torch.__version__}
        write_json(temporary / "state.json", {"step": step, "sha256": digests, "versions": versions})
        os.replace(temporary, final)
        _sync_folder(final.parent)
    except OSError as reason:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"{final}: cannot be written ({reason.strerror}): the states before it are untouched"
        ) from None
    for old in _folders(run)[:-keep]:
        shutil.rmtree(old)


def newest_state(run: Path) -> tuple[TrainingState | None, list[str]]:
    """The newest state that is whole, and a sentence for each newer one that is not."""
    complaints: list[str] = []
    for folder in reversed(_folders(run)):
        try:
            content = json.loads((folder / "state.json").read_text())
            changed = [name for name in FILES if _digest(folder / name) != content["sha256"][name]]
            if not changed:
                return TrainingState(folder, content["step"]), complaints
            complaints.append(f"{folder}: {changed[0]} is not what was written (sha256 differs): not used")
        except (OSError, ValueError, KeyError) as reason:
            complaints.append(f"{folder}: cannot be read ({reason}): not used")
    return None, complaints


def load_state(state: TrainingState, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a saved state into a model and an optimiser of the same make."""
    weights, _ = read_checkpoint(state.folder / FILES[0])
    load_exactly(model, weights, state.folder)
    try:
        tensors = load_file(state.folder / FILES[1])
    except (SafetensorError, OSError) as reason:
        raise CheckpointError(f"{state.folder / FILES[1]}: cannot be read ({reason})") from None
    saved: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split(".", 1)
        saved.setdefault(int(number), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    if sorted(saved) != sorted(number for group in groups for number in group["params"]):
        raise CheckpointError(
            f"{state.folder}: its optimiser has {len(saved)} parameters, wanted another number: start anew"
        )
    optimizer.load_state_dict({"state": saved, "param_groups": groups})


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": value.cpu().contiguous()
        for number, values in state.items()
        for name, value in values.items()
    }


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
