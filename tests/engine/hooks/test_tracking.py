"""What TensorBoard and Weights & Biases are told of a run."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, silent
from PIL import Image

from mvit_video.config.load import load_config
from mvit_video.engine.metrics_log import read_metrics
from mvit_video.engine.resolve import resolve
from mvit_video.engine.run import train_run
from mvit_video.engine.trackers import scalars
from mvit_video.errors import ConfigError

WORDS = ("data.val=null", "train.epochs=1", "train.clips_per_step=4", "data.workers=0", "data.crop_size=32")


def train(data, run, *words, **how):
    config = load_config(REPOSITORY / "configs/demo/motion.yaml", [f"data.root={data}", *WORDS, *words])
    train_run(
        resolve(config, run, torch.device("cpu"), silent, **how), lambda videos: lambda model: {"top1": 50.0}, silent
    )


@pytest.mark.integration
def test_tensorboard_shows_the_numbers_of_the_records(few_videos, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(few_videos, tmp_path / "run", "data.val=val.csv")
    board = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    records = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3, 4]
    for tag, name in (("train/loss", "loss"), ("train/lr", "lr"), ("speed/data_share", "data_share")):
        assert np.allclose([event.value for event in board.Scalars(tag)], [record[name] for record in records])
    assert [(event.step, event.value) for event in board.Scalars("validation/top1")] == [(4, 50.0)]
    assert Image.open(tmp_path / "run/curves.png").width > 800


def test_what_is_no_number_has_no_curve():
    record = {"step": 3, "loss": None, "lr": 0.1, "top1": float("nan"), "skipped": 1}
    assert scalars(record, "train") == {"train/lr": 0.1, "train/skipped": 1.0}


class FakeWandb(SimpleNamespace):
    """What of the package is used."""

    class Error(Exception):
        pass

    def __init__(self):
        super().__init__(calls=[], logged=[], finished=0, __spec__="here", failure=None)

    def init(self, **arguments):
        if self.failure:
            raise self.Error(self.failure)
        self.calls.append(arguments)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1


@pytest.mark.integration
def test_wandb_gets_the_numbers_and_a_resumed_run_its_own_id(few_videos, tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for resume in (False, True):
        train(few_videos, tmp_path / "run", "train.wandb_project=mine", resume=resume)
    assert [call["project"] for call in wandb.calls] == ["mine", "mine"] and wandb.finished == 2
    assert wandb.calls[0]["id"] == wandb.calls[1]["id"] and wandb.calls[0]["resume"] == "allow"
    losses = [record["loss"] for record in read_metrics(tmp_path / "run/metrics.jsonl")]
    assert [values["train/loss"] for _, values in wandb.logged] == losses and wandb.logged[-1][0] == 4
    json.dumps(wandb.calls[0]["config"])
    wandb.failure = "api key not set"
    with pytest.raises(ConfigError, match=r"= mine: no run can be opened \(api key not set\): run"):
        train(few_videos, tmp_path / "other", "train.wandb_project=mine")
