"""What a run prints while it trains."""

import pytest
import torch
from conftest import REPOSITORY

from mvit_video.config.load import load_config
from mvit_video.engine.hooks.progress import step_text, validation_text
from mvit_video.engine.resolve import resolve
from mvit_video.engine.run import train_run

WORDS = ("data.val=null", "train.epochs=1", "train.clips_per_step=4", "data.workers=0", "data.crop_size=32")


@pytest.mark.integration
def test_each_validation_is_printed_with_the_best_one_so_far(few_videos, tmp_path):
    lines, answers = [], iter([50.0, 62.5, 37.5, 80.0])
    words = [f"data.root={few_videos}", *WORDS, "data.val=val.csv", "train.epochs=3", "train.validate_every_epochs=1"]
    config = load_config(REPOSITORY / "configs/demo/motion.yaml", words)

    def validator(videos):
        return lambda model: {"top1": next(answers), "top5": 100.0}

    train_run(resolve(config, tmp_path / "run", torch.device("cpu"), lines.append), validator, lines.append)
    assert [line for line in lines if "validation top-1" in line] == [
        "epoch 1: validation top-1 50.0 %, best 50.0 %",
        "epoch 2: validation top-1 62.5 %, best 62.5 %",
        "epoch 3: validation top-1 37.5 %, best 62.5 %",
    ]


def test_a_validation_in_words_names_the_averaged_weights_and_average_precision_too():
    before = {"step": 5, "epoch": 2.5, "top1": 70.04, "ema_top1": 60.0, "top5": 90.0, "ema_top5": 91.0}
    now = {"step": 10, "epoch": 5.0, "top1": 62.5, "ema_top1": 64.14, "top5": 90.0, "ema_top5": 91.0}
    expected = "epoch 5: validation top-1 62.5 %, best 70.0 %; averaged weights top-1 64.1 %, best 64.1 %"
    assert validation_text([before, now]) == expected
    several = {"step": 3, "epoch": 1 / 3, "mean_average_precision": 12.34}
    assert validation_text([several]) == "epoch 0.3333: validation mean average precision 12.3 %, best 12.3 %"


def test_the_accuracy_of_a_training_batch_is_called_that():
    record = {"loss": 1.0, "lr": 0.1, "gradient_norm": 1.0, "top1": 75.0}
    assert step_text(0.5, record, "3 clips/s") == "epoch 0.5, loss 1.000, batch top-1 75 %, lr 1.0e-01, 3 clips/s"
