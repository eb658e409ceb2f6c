"""Settings that are auto: what they become, what wins over them, and that a run keeps what it has begun with."""

import re
import shutil
from math import sqrt

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from tiny_models import randomise

from mvit_video import build_model, cli
from mvit_video.config.load import dump_config, load_config
from mvit_video.config.schema import InputSettings
from mvit_video.data.dataset import SampleKey, clip_dataset_from
from mvit_video.data.lists.read import read_videos
from mvit_video.data.loader import StepSampler, steps_per_epoch
from mvit_video.data.strength import fitting_augmentation, strength
from mvit_video.engine.automatic import auto_settings, clips_per_step, describe_auto, peak_rate, resolve_auto
from mvit_video.engine.dry_run import dry_run
from mvit_video.engine.resolve import resolve
from mvit_video.engine.run import train_run
from mvit_video.engine.schedule import learning_rate_from
from mvit_video.errors import ConfigError
from mvit_video.model.weights.card import ModelCard
from mvit_video.model.weights.files import save_checkpoint

FINETUNE = REPOSITORY / "configs/custom/finetune.yaml"
NANO = (
    "model.name=mvitv2_nano_8x3",
    "model.weights=null",
    "data.num_frames=8",
    "data.crop_size=48",
    "data.short_side=48",
)


def fitted(videos, *words, classes=5):
    return resolve_auto(load_config(FINETUNE, [*NANO, *words]), videos, classes)


@pytest.mark.parametrize("videos", [2, 3, 8, 9, 19, 24, 40, 160, 431, 640, 2000, 10_000, 240_000])
def test_a_run_on_any_number_of_videos_has_enough_steps_of_clips_that_are_there(videos):
    train = fitted(videos).train
    steps = steps_per_epoch(videos, train.clips_per_step)
    assert steps * train.epochs >= 2000 and train.epochs >= 30
    assert steps * (train.epochs - 1) < 2000 or train.epochs == 30, "no more epochs than that takes"
    assert train.clips_per_step <= 32 and (steps >= 20 or train.clips_per_step <= 8)
    assert len(StepSampler(videos, train.clips_per_step, 0, 0, 10)) == 10
    assert 10 <= train.epochs / train.validate_every_epochs < 30
    rate = learning_rate_from(train, steps * train.epochs, steps)
    peak = max(rate(step) for step in range(steps * train.epochs)[:: max(steps // 7, 1)])
    assert peak == pytest.approx(peak_rate(train.clips_per_step, 128, False), rel=0.02) and rate(0) == pytest.approx(
        peak / 100, rel=0.02
    )
    left = re.findall(r"(\w+): auto\n", dump_config(fitted(videos)))
    assert left == ["train", "precision", "precision"], "the lists of data.root, and what the device decides"


def test_the_rate_follows_the_root_of_the_clips_and_the_width_or_its_root():
    for trained, power in ((True, 1), (False, 0.5)):
        assert peak_rate(32, 768, trained) == pytest.approx(2e-4)
        for clips, width in ((8, 768), (32, 128), (8, 384)):
            expected = 2e-4 * sqrt(clips / 32) * (768 / width) ** power
            assert peak_rate(clips, width, trained) == pytest.approx(expected)
        assert peak_rate(32, 2048, trained) == peak_rate(32, 768, trained)
        assert peak_rate(32, 16, trained) == peak_rate(32, 128, trained)
    rates = [fitted(40, f"model.weights={weights}").train.base_lr for weights in ("null", "some.safetensors")]
    assert rates[1] / rates[0] == pytest.approx(sqrt(6), rel=0.01)


def test_what_is_set_wins_and_what_follows_from_it_fits():
    train = fitted(40, "train.epochs=10", "train.clips_per_step=4", "train.base_lr=0.5", "data.erasing=0.3").train
    assert (train.epochs, train.clips_per_step, train.base_lr) == (10, 4, 0.5)
    assert (train.warmup_epochs, train.validate_every_epochs, train.end_lr) == (2, 1, pytest.approx(0.005))
    assert fitted(40, "data.erasing=0.3").data.erasing == 0.3
    plain = load_config(REPOSITORY / "configs/demo/motion.yaml")
    assert resolve_auto(plain, 40, 5) is plain


def test_augmentation_grows_with_the_videos_from_mild_to_that_of_the_published_recipe():
    published = load_config(REPOSITORY / "configs/kinetics400/mvitv2_s_16x4.yaml")
    expected = {name: getattr(published.data, name) for name in ("crop_area", "randaugment", "erasing")}
    assert fitting_augmentation(10_000) == fitting_augmentation(240_000) == expected
    assert fitting_augmentation(10) == {
        "crop_area": (0.25, 1.0),
        "randaugment": "rand-m3-n2-mstd0.5-inc1",
        "erasing": 0,
    }
    shares = [strength(videos) for videos in (1, 500, 501, 1000, 2236, 9999, 10_000, 1_000_000)]
    assert shares == sorted(shares) and shares[0] == shares[1] == 0 < shares[2] and shares[-2:] == [1, 1]
    assert shares[4] == pytest.approx(0.5, abs=0.001), "halfway in the logarithm"
    for videos in (10, 700, 1000, 3000, 10_000):
        data = fitted(videos).data
        assert type(data).model_validate(data.model_dump()) == data, "what it comes to is allowed"
    assert fitted(40).train.mix_probability == 0 and fitted(10_000).train.mix_probability == 1


def test_a_dataset_by_itself_has_the_augmentation_that_fits_its_videos(few_videos):
    words = [*NANO, f"data.root={few_videos}", "data.train=train.csv"]
    videos = read_videos("train.csv", str(few_videos))
    auto = clip_dataset_from(load_config(FINETUNE, words).data, videos, seed=0)
    set_by_hand = ["data.crop_area=[0.25,1.0]", "data.randaugment=rand-m3-n2-mstd0.5-inc1", "data.erasing=0"]
    plain = clip_dataset_from(load_config(FINETUNE, [*words, *set_by_hand]).data, videos, seed=0)
    assert np.array_equal(auto[SampleKey(0, 3)]["video"], plain[SampleKey(0, 3)]["video"])


def test_several_processes_get_steps_that_they_can_share(monkeypatch):
    for processes in (2, 3, 8):
        monkeypatch.setattr("mvit_video.engine.automatic.world_size", lambda count=processes: count)
        for videos in (16, 24, 40, 431, 10_000):
            for repeats in (1, 2):
                clips = clips_per_step(videos, repeats)
                assert StepSampler(videos, clips, 0, 0, 5, repeats, processes - 1, processes).mirrored
                assert clips <= max(32, 2 * processes * repeats)
        with pytest.raises(ConfigError, match=rf"3 training videos are too few for {processes} processes"):
            clips_per_step(3, 1)


def test_the_numbers_and_the_lowered_step_are_described():
    config = load_config(FINETUNE, NANO)
    names = auto_settings(config)
    text = describe_auto(resolve_auto(config, 40, 5), names, 40)
    assert text.startswith(
        "auto for 40 training videos: data.crop_area=[0.25,1.0] data.randaugment=rand-m3-n2-mstd0.5-inc1 data.erasing=0 "
    )
    assert " train.epochs=400 train.clips_per_step=8 " in text
    assert text.endswith("; steps have 8 clips instead of 32, to get more steps per epoch")
    assert load_config(FINETUNE, [*NANO, *text.partition(": ")[2].partition(";")[0].split()]).train.epochs == 400
    assert "instead of" not in describe_auto(resolve_auto(config, 10_000, 5), names, 10_000)


def test_a_dry_run_needs_the_number_of_videos(capsys):
    words = ["train", str(FINETUNE), *NANO, "data.root=nowhere", "--dry-run", "--num-classes", "5", "--device", "cpu"]
    assert cli.main(words) == 1
    said = capsys.readouterr().err
    assert (
        "data.crop_area = auto follows from the number of training videos: data.train cannot be read (data.root = nowhere"
        in said
    )
    assert "set --num-videos N" in said
    assert cli.main([*words, "--num-videos", "40"]) == 0
    assert "40 training videos, 400 epochs of 5 steps of 8 clips" in capsys.readouterr().out


def test_a_dry_run_tells_what_the_run_would_of_the_list_that_is_there(few_videos):
    words = [*NANO, f"data.root={few_videos}", "train.epochs=3"]
    lines = [line.strip() for line in dry_run(load_config(FINETUNE, words), torch.device("cpu")).splitlines()]
    assert "16 training videos, 3 epochs of 2 steps of 8 clips" in lines[0]
    assert any(line.startswith("auto for 16 training videos: data.crop_area=") for line in lines)
    assert any(line.startswith("training videos: ") and line.endswith("classes") for line in lines)
    assert any(line.startswith("warning: only 6 steps in all") for line in lines)


@pytest.fixture
def start(few_videos, tmp_path):
    """A run of finetune.yaml on sixteen videos, short, in `run`; more words win."""
    card = ModelCard(
        name="mvitv2_nano_8x3",
        arguments=dict(depths=[1, 1]),
        classes=("one", "two"),
        preprocessing=InputSettings(num_frames=4, sampling_rate=2, target_fps=15, short_side=36, crop_size=32),
    )
    weights = tmp_path / "tiny.safetensors"
    save_checkpoint(
        weights, randomise(build_model(card.name, num_classes=2, num_frames=4, crop_size=32, depths=[1, 1]), 0), card
    )
    small = (
        "model.name=mvitv2_nano_8x3",
        "model.arguments={depths: [1, 1]}",
        "data.num_frames=4",
        "data.sampling_rate=2",
    )

    def run(*words, **how):
        size = ("data.target_fps=15", "data.short_side=36", "data.crop_size=32", "data.workers=0", "train.epochs=2")
        config = load_config(FINETUNE, [f"data.root={few_videos}", f"model.weights={weights}", *small, *size, *words])
        lines = []
        resolved = resolve(config, tmp_path / "run", torch.device("cpu"), lines.append, **how)
        train_run(resolved, lambda videos: lambda model: {"top1": 50.0}, lines.append)
        return lines

    return run


@pytest.mark.integration
def test_a_run_writes_the_numbers_and_goes_on_with_them(start, tmp_path):
    lines = start()
    assert "auto for 16 training videos: " in lines[0] and "train.clips_per_step=8" in lines[0]
    written = load_config(tmp_path / "run/config.yaml")
    assert auto_settings(written) == [] and (written.train.clips_per_step, written.train.epochs) == (8, 2)
    before = (tmp_path / "run/model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run/checkpoints/step_00000004")
    assert any("resuming after step" in line for line in start(resume=True))
    assert (tmp_path / "run/model.safetensors").read_bytes() == before
    assert load_config(tmp_path / "run/config.yaml") == written
    with pytest.raises(ConfigError, match=r"was trained with train.clips_per_step = 8, but is now resumed with 4"):
        start("train.clips_per_step=4", resume=True)


@pytest.mark.integration
def test_a_run_goes_on_with_its_own_numbers_where_auto_would_now_be_others(start, tmp_path):
    start("train.clips_per_step=4")
    shutil.rmtree(tmp_path / "run/checkpoints/step_00000008", ignore_errors=True)
    lines = start(resume=True)
    assert "train.clips_per_step=4" in lines[0]
