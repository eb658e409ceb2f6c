"""Fixtures that cost time, made once, also where several processes test: a motion dataset, and a network trained on it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from tiny_checkpoint import write_tiny

from mvit_video.config.load import load_config
from mvit_video.config.schema import Config
from mvit_video.data.lists.selection import training_lists
from mvit_video.data.synthetic import write_dataset
from mvit_video.engine.resolve import resolve
from mvit_video.engine.run import train_run
from mvit_video.evaluation.evaluate import validator
from mvit_video.inference.export import export_checkpoint

REPOSITORY = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


def silent(text: str) -> None:
    """For functions that say what they do."""


def made_once(tmp_path_factory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make` fills; the first of pytest-xdist's processes does, the others wait for it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            make(folder.with_suffix(".making"))
            folder.with_suffix(".making").rename(folder)
    return folder


@pytest.fixture(scope="session")
def motion_data(tmp_path_factory) -> Path:
    """768 training and 96 validation videos of the demonstration dataset."""
    return made_once(
        tmp_path_factory, "motion", lambda folder: write_dataset(folder, num_train=768, num_val=96, seed=1, workers=2)
    )


@pytest.fixture(scope="session")
def few_videos(tmp_path_factory) -> Path:
    """16 training and 8 validation videos, two and one of each class."""
    return made_once(
        tmp_path_factory, "few", lambda folder: write_dataset(folder, num_train=16, num_val=8, seed=2, workers=2)
    )


def _write_checkpoint(folder: Path) -> None:
    folder.mkdir()
    write_tiny(folder / "model.safetensors")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """The checkpoint of tiny_checkpoint.py."""
    return made_once(tmp_path_factory, "tiny", _write_checkpoint) / "model.safetensors"


@pytest.fixture(scope="session")
def tiny_onnx(tiny, tmp_path_factory) -> Path:
    """The same for any number of clips. An export takes seconds: for the integration tier."""

    def export(folder: Path) -> None:
        folder.mkdir()
        export_checkpoint(tiny, "onnx", folder / "model.onnx", None)

    return made_once(tmp_path_factory, "tiny_onnx", export) / "model.onnx"


@dataclass(frozen=True)
class TrainedRun:
    folder: Path
    config: Config

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"


def run_of(root: Path, tmp_path_factory, name: str, *words: str) -> TrainedRun:
    """The demonstration's recipe with other settings."""
    config, device = load_config(REPOSITORY / "configs/demo/motion.yaml", [f"data.root={root}", *words]), CPU

    def make(folder: Path) -> None:
        train_run(resolve(config, folder, device, silent), lambda videos: validator(videos, config, device), silent)

    return TrainedRun(made_once(tmp_path_factory, name, make), config)


@pytest.fixture(scope="session")
def trained(motion_data, tmp_path_factory) -> TrainedRun:
    """The demonstration, half as long: minutes, so for the integration tier alone."""
    return run_of(motion_data, tmp_path_factory, "trained", "train.epochs=6", "train.validate_every_epochs=6")


@pytest.fixture(scope="session")
def small_run(few_videos, tmp_path_factory) -> TrainedRun:
    """Four steps on 16 videos: a checkpoint whose labels mean little."""
    words = ("train.epochs=2", "train.validate_every_epochs=2", "train.clips_per_step=8", "data.workers=0")
    return run_of(few_videos, tmp_path_factory, "small_run", *words)


@pytest.fixture
def validation_list(trained):
    return training_lists(trained.config.data)[1]


@pytest.fixture
def few_validation_videos(small_run):
    return training_lists(small_run.config.data)[1]
