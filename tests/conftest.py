"""Fixtures that cost time, made once: a motion dataset, and a small network trained on it."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mvit_video.config.load import load_config
from mvit_video.config.schema import Config
from mvit_video.data.synthetic import write_dataset
from mvit_video.engine.run import train_run, training_lists
from mvit_video.evaluation.evaluate import validator

REPOSITORY = Path(__file__).resolve().parents[1]


def silent(text: str) -> None:
    """For functions that say what they do."""


@pytest.fixture(scope="session")
def motion_data(tmp_path_factory) -> Path:
    """768 training and 96 validation videos of the demonstration dataset."""
    return write_dataset(tmp_path_factory.mktemp("motion") / "data", num_train=768, num_val=96, seed=1, workers=2)


@pytest.fixture(scope="session")
def few_videos(tmp_path_factory) -> Path:
    """16 training and 8 validation videos, two and one of each class."""
    return write_dataset(tmp_path_factory.mktemp("few") / "data", num_train=16, num_val=8, seed=2, workers=2)


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
    config = load_config(REPOSITORY / "configs/demo/motion.yaml", words)
    run = tmp_path_factory.mktemp("trained") / "run"
    device = torch.device("cpu")
    train_run(config, run, device, lambda videos: validator(videos, config, device), silent)
    return TrainedRun(run, config)


@pytest.fixture
def validation_list(trained):
    return training_lists(trained.config)[1]
