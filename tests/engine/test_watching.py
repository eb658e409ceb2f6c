"""What a run shows while it trains."""

import json
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, silent
from PIL import Image

from mvit_video import cli, figures
from mvit_video.config.load import load_config
from mvit_video.config.schema import InputSettings, TrainSettings
from mvit_video.data.mixing import Mixer, mix_generator
from mvit_video.engine import first_batch
from mvit_video.engine.metrics_log import read_metrics
from mvit_video.engine.run import train_run
from mvit_video.engine.speed import Stopwatch
from mvit_video.engine.trackers import scalars
from mvit_video.engine.watching import Watcher, validation_text
from mvit_video.errors import ConfigError

WORDS = ("data.val=null", "train.epochs=1", "train.clips_per_step=4", "data.workers=0", "data.crop_size=32")


def train(data, run, *words, **how):
    config = load_config(REPOSITORY / "configs/demo/motion.yaml", [f"data.root={data}", *WORDS, *words])
    train_run(config, run, torch.device("cpu"), lambda videos: lambda model: {"top1": 50.0}, silent, **how)


def test_waiting_and_working_are_told_apart(monkeypatch):
    """A clock that only this loop moves: 3 s for a batch, 1 s for a step, 10 s between steps that count to none."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def batches():
        for _ in range(2):
            now[0] += 3
            yield {}

    watch = Stopwatch()
    for _ in watch.waiting(batches()):
        now[0] += 1
        assert watch.step_done(8) == {"clips_per_second": 2.0, "data_share": 0.75}
        now[0] += 10
    assert watch.recent() == "2.0 clips/s, 75 % waiting for data"


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


def test_each_validation_is_printed_with_the_best_one_so_far(few_videos, tmp_path):
    lines, answers = [], iter([50.0, 62.5, 37.5, 80.0])
    words = [f"data.root={few_videos}", *WORDS, "data.val=val.csv", "train.epochs=3", "train.validate_every_epochs=1"]
    config = load_config(REPOSITORY / "configs/demo/motion.yaml", words)

    def validator(videos):
        return lambda model: {"top1": next(answers), "top5": 100.0}

    train_run(config, tmp_path / "run", torch.device("cpu"), validator, lines.append)
    assert [line for line in lines if "validation top-1" in line] == [
        "epoch 1: validation top-1 50.0 %, best 50.0 %",
        "epoch 2: validation top-1 62.5 %, best 62.5 %",
        "epoch 3: validation top-1 37.5 %, best 62.5 %",
    ]


def test_a_validation_in_words_names_the_averaged_weights_and_average_precision_too():
    before = {"step": 5, "epoch": 2.5, "top1": 70.04, "ema_top1": 60.0, "top5": 90.0, "ema_top5": 91.0}
    now = {"step": 10, "epoch": 5.0, "top1": 62.5, "ema_top1": 64.14, "top5": 90.0, "ema_top5": 91.0}
    wanted = "epoch 5: validation top-1 62.5 %, best 70.0 %; averaged weights top-1 64.1 %, best 64.1 %"
    assert validation_text([before, now]) == wanted
    several = {"step": 3, "epoch": 1 / 3, "mean_average_precision": 12.34}
    assert validation_text([several]) == "epoch 0.3333: validation mean average precision 12.3 %, best 12.3 %"


def test_the_accuracy_of_a_training_batch_is_called_that(tmp_path):
    watcher = Watcher(tmp_path, load_config(REPOSITORY / "configs/demo/motion.yaml"), ("a", "b"), 0)
    record = watcher.stepped(3, {"loss": 1.0, "lr": 0.1, "gradient_norm": 1.0, "top1": 75.0}, 4)
    assert "batch top-1 75 %" in watcher.text(0.5, record)


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
    with pytest.raises(ConfigError, match=r"= mine: no run can be opened there \(api key not set\): log in by"):
        train(few_videos, tmp_path / "other", "train.wandb_project=mine")


def test_the_first_batch_s_frames_are_the_ones_before_normalising():
    frames = torch.randint(0, 256, (3, 5, 6, 7), dtype=torch.uint8)
    inputs = InputSettings(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (inputs.mean, inputs.std))
    found = first_batch.pictures((frames / 255 - mean) / std, inputs)
    assert np.array_equal(found, frames.permute(1, 2, 3, 0).numpy())


@pytest.mark.parametrize("batch", [3, 8, 11])
def test_clips_mixed_for_the_picture_are_those_of_the_step(batch):
    mixer = Mixer(TrainSettings(mixup=0.8, label_smoothing=0.0), 4)
    clips, labels = torch.randn(batch, 3, 2, 4, 4), torch.arange(batch) % 4
    wanted, targets = mixer(clips, labels, mix_generator(0, 1))
    found = first_batch.mixed_ends(clips, labels, 3, lambda *pair: mixer(*pair, mix_generator(0, 1)))
    assert torch.equal(found[0], wanted[:3]) and torch.equal(found[1], targets[:3])


def test_a_target_s_two_largest_parts_are_named():
    assert first_batch.target_text(torch.tensor([0.02, 0.63, 0.07, 0.28]), "abcd") == "0.63 b + 0.28 d"
    assert first_batch.target_text(torch.tensor([0.02, 0.94, 0.02, 0.02]), "abcd") == "0.94 b"


def run_folder(folder, values):
    """What of a run its curves are drawn from: three steps, and one validation."""
    folder.mkdir(parents=True)
    steps = [{"step": step + 1, "epoch": (step + 1) / 3, "loss": value} for step, value in enumerate(values)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in steps))
    (folder / "validation.jsonl").write_text(json.dumps({"step": 3, "epoch": 1.0, "top1": values[-1]}) + "\n")
    return folder


def test_the_curves_of_several_runs_are_in_one_picture_with_a_colour_for_each_name_without_its_seed():
    runs = {
        name: (
            [{"epoch": 1, "loss": loss}, {"epoch": 2, "loss": loss}],
            [{"epoch": 2, "top1": 10 * loss}],
        )
        for name, loss in (("ours_0", 1.0), ("ours_1", 2.0), ("x3d_s_0", 3.0))
    }
    losses, accuracies = figures.curves_of_runs(runs).axes
    assert [line.get_ydata().tolist() for line in losses.lines] == [[1, 1], [2, 2], [3, 3]]
    assert [line.get_ydata().tolist() for line in accuracies.lines] == [[10], [20], [30]]
    colours = [line.get_color() for line in losses.lines]
    assert colours[0] == colours[1] != colours[2] and colours == [line.get_color() for line in accuracies.lines]
    assert [text.get_text() for text in accuracies.get_legend().get_texts()] == ["ours", "x3d_s"]


def test_the_verb_draws_runs_and_says_which_folder_is_none(capsys, tmp_path):
    runs = [str(run_folder(tmp_path / name, (3.0, 2.0, 1.0))) for name in ("a/ours_0", "a/ours_1", "b/ours_0")]
    command = ["curves", *runs[:2], "--output", str(tmp_path / "both.png")]
    assert cli.main(command) == 0
    assert Image.open(tmp_path / "both.png").width > 800
    for words, message in (
        (command, "both.png: exists: choose another --output, or say --overwrite"),
        (["curves", *runs, "--output", str(tmp_path / "c.png")], "is the second run called ours_0: rename its folder"),
        (["curves", str(tmp_path), "--output", str(tmp_path / "c.png")], "has no metrics.jsonl: name a folder that"),
    ):
        capsys.readouterr()
        assert cli.main(words) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "c.png").exists()
