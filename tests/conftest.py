"""Fixtures that cost time, made once, also where several processes test: a motion dataset, and a network trained on it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from mvit_video.config.load import load_config
from mvit_video.config.schema import Config
from mvit_video.data.lists.selection import training_lists
from mvit_video.data.synthetic import write_dataset
from mvit_video.engine.resolve import resolve
from mvit_video.engine.run import train_run
from mvit_video.evaluation.evaluate import validator

REPOSITORY = Path(__file__).resolve().parents[1]


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


@dataclass(frozen=True)
class TrainedRun:
    folder: Path
    config: Config

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"


@pytest.fixture(scope="session")
def trained(motion_data, tmp_path_factory) -> TrainedRun:
    """The demonstration's recipe, half as long."""
    words = [f"data.root={motion_data}", "train.epochs=6", "train.validate_every_epochs=6"]
    config, device = load_config(REPOSITORY / "configs/demo/motion.yaml", words), torch.device("cpu")

    def make(folder: Path) -> None:
        train_run(resolve(config, folder, device, silent), lambda videos: validator(videos, config, device), silent)

    return TrainedRun(made_once(tmp_path_factory, "trained", make), config)


@pytest.fixture
def validation_list(trained):
    return training_lists(trained.config.data)[1]
