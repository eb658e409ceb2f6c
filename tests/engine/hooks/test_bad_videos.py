import json
import shutil

import pytest
import torch
from conftest import REPOSITORY

from mvit_video.config.load import load_config
from mvit_video.data.loader import StepSampler
from mvit_video.engine.metrics_log import read_metrics
from mvit_video.engine.resolve import resolve
from mvit_video.engine.run import train_run
from mvit_video.errors import DecodeError, TrainingError

SPOILT = {2, 3, 9}


@pytest.fixture
def spoilt(few_videos, tmp_path):
    """The small videos, three of the sixteen spoilt."""
    shutil.copytree(few_videos, tmp_path / "data")
    for index in SPOILT:
        (tmp_path / f"data/train/{index:05d}.mp4").write_text("not a video")
    return tmp_path / "data"


def train(data, run, *words, **how):
    settings = [f"data.root={data}", "data.val=null", "train.epochs=2", "train.clips_per_step=4", "data.workers=0"]
    config = load_config(REPOSITORY / "configs/demo/motion.yaml", [*settings, *words])
    said = []
    train_run(resolve(config, run, torch.device("cpu"), said.append, **how), measured, said.append)
    return said


def measured(videos):
    """Says which share of the videos that it is to measure can be decoded."""
    sound = [int(record.path[6:11]) not in SPOILT for record in videos.records]
    return lambda network: {"top1": 100 * sum(sound) / len(sound)}


def planned(num_steps=8):
    """(step, epoch, video) of every spoilt video in the order of training."""
    steps = enumerate(StepSampler(16, 4, 0, 0, num_steps), 1)
    return [
        (step, key.epoch, f"train/{key.video:05d}.mp4") for step, batch in steps for key in batch if key.video in SPOILT
    ]


def events(run):
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def test_skipping_trains_on_and_records_each_video_that_was_left_out(spoilt, tmp_path):
    said = train(spoilt, tmp_path / "run", "data.on_error=skip")
    found = events(tmp_path / "run")
    assert [(event["step"], event["epoch"], event["id"]) for event in found] == planned()
    assert all(event["substitute"] is None and "cannot be opened" in event["reason"] for event in found)
    assert found[0]["where"] == f"row {int(found[0]['id'][6:11]) + 1} of train.csv"
    assert len(read_metrics(tmp_path / "run/metrics.jsonl")) == 8
    assert said[-1] == "final top-1: 100.0 % on its own training videos", "those that could be decoded"
    assert said[-2] == (
        f"3 training videos could not be decoded, in {len(planned())} attempts, 0 of which were substituted: "
        f"see {tmp_path / 'run/events.jsonl'}"
    )


@pytest.mark.integration
def test_substituting_trains_on_whole_batches_and_records_who_took_the_place(spoilt, tmp_path):
    said = train(spoilt, tmp_path / "run", "data.on_error=substitute")
    found = events(tmp_path / "run")
    first = [event for place, event in enumerate(found) if not place or found[place - 1]["substitute"] != event["id"]]
    assert [(event["step"], event["epoch"], event["id"]) for event in first] == planned()
    assert all(event["substitute"] not in (None, event["id"]) for event in found)
    assert f"{len(found)} of which were substituted" in said[-2]
    skipped = tmp_path / "skipped"
    train(spoilt, skipped, "data.on_error=skip")
    assert read_metrics(skipped / "metrics.jsonl") != read_metrics(tmp_path / "run/metrics.jsonl")


@pytest.mark.integration
def test_stopping_records_the_video_first_and_the_run_may_resume_with_another_choice(spoilt, tmp_path):
    run, (step, epoch, name) = tmp_path / "run", planned()[0]
    with pytest.raises(
        DecodeError,
        match=rf"{name}: cannot be opened .* of train.csv\): remove it from the list, or",
    ):
        train(spoilt, run)
    assert tuple(events(run)[0][key] for key in ("step", "epoch", "id")) == (step, epoch, name)
    train(spoilt, run, "data.on_error=skip", resume=True)
    assert [(event["step"], event["epoch"], event["id"]) for event in events(run)] == planned()


@pytest.mark.integration
def test_events_after_the_resumed_state_are_made_again_and_not_twice(spoilt, tmp_path):
    run = tmp_path / "run"
    train(spoilt, run, "data.on_error=skip", "train.checkpoint_every_steps=3")
    before = (run / "events.jsonl").read_text()
    shutil.rmtree(run / "checkpoints/step_00000008")
    train(spoilt, run, "data.on_error=skip", "train.checkpoint_every_steps=3", resume=True)
    assert (run / "events.jsonl").read_text() == before


def test_a_step_without_any_clip_ends_the_run(spoilt, tmp_path):
    """The videos that are tried before the start are spared, and are not in the step."""
    spared = {0, 8, 15}
    drawn = {seed: {key.video for key in next(iter(StepSampler(16, 4, seed, 0, 1)))} for seed in range(20)}
    seed = next(seed for seed, videos in drawn.items() if not videos & spared)
    for index in set(range(16)) - spared:
        (spoilt / f"train/{index:05d}.mp4").write_text("not a video")
    with pytest.raises(TrainingError, match=r"step 1: none of 4 videos could be decoded \(train/.*: check data.root"):
        train(spoilt, tmp_path / "run", "data.on_error=skip", f"train.seed={seed}")
    assert len(events(tmp_path / "run")) == 4


@pytest.mark.integration
def test_a_run_without_bad_videos_has_an_empty_record_and_says_nothing(few_videos, tmp_path):
    said = train(few_videos, tmp_path / "run", "train.epochs=1")
    assert events(tmp_path / "run") == [] and not any("could not be decoded" in text for text in said)


@pytest.mark.integration
def test_a_repeated_clip_counts_as_a_clip_of_the_step(few_videos, tmp_path):
    said = train(few_videos, tmp_path / "run", "data.repeated_aug=2", "train.epochs=1")
    assert any("1 epoch of 8 steps of 4 clips" in text for text in said)  # 16 videos, two a step
