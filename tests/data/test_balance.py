"""Uneven classes: what an epoch shows of each, counted."""

from collections import Counter

import numpy as np
import pytest
import torch

from mvit_video.config.schema import DataSettings
from mvit_video.data.balance import shown_counts
from mvit_video.data.dataset import SampleKey, clip_dataset_from
from mvit_video.data.lists.read import read_videos
from mvit_video.data.loader import StepSampler, training_loader
from mvit_video.errors import ConfigError

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 3], [40, 9, 1]))  # class 2 has no video


def sampler(balance, first=0, last=24, rank=0, world_size=1, repeated_aug=1):
    return StepSampler(50, 8 * repeated_aug, 5, first, last, repeated_aug, rank, world_size, LABELS, balance)


def classes_of(keys):
    return Counter(int(LABELS[key.video]) for key in keys)


@pytest.mark.parametrize(
    ("balance", "expected"), [("none", None), ("sqrt", [29, 14, 0, 5]), ("class", [16, 16, 0, 16])]
)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_an_epoch_over_all_ranks_shows_exactly_so_many_videos_of_each_class(balance, expected, world_size):
    parts = [list(sampler(balance, rank=rank, world_size=world_size)) for rank in range(world_size)]
    for epoch in range(4):
        keys = [key for part in parts for step in part for key in step if key.epoch == epoch]
        assert len(keys) == len(set(keys)) == 48, "six steps of 8"
        if expected is None:
            assert {key.turn for key in keys} == {0} and len({key.video for key in keys}) == 48
            continue
        assert [classes_of(keys)[label] for label in range(4)] == expected
        for label in (0, 1, 3):
            of_class = Counter(key.video for key in keys if LABELS[key.video] == label)
            each = [of_class[place] for place in np.flatnonzero(label == LABELS)]
            assert max(each) - min(each) <= 1, "videos of a class are shown equally often"
            assert all(
                {key.turn for key in keys if key.video == video} == set(range(n)) for video, n in of_class.items()
            )


def test_the_shares_are_those_of_the_power_rounded_to_a_whole_epoch():
    rng = np.random.default_rng(1)
    for _ in range(50):
        counts, shown = rng.integers(0, 300, size=7), int(rng.integers(20, 500))
        counts[0] = 3
        for balance, power in (("sqrt", 0.5), ("class", 0.0)):
            exact = np.array([count**power if count else 0.0 for count in counts.tolist()])
            found = shown_counts(counts, shown, balance)
            assert found.sum() == shown and np.abs(found - shown * exact / exact.sum()).max() < 1


def test_what_is_left_out_of_a_class_changes_from_epoch_to_epoch():
    epochs = [{key.video for step in sampler("class", 6 * epoch, 6 * epoch + 6) for key in step} for epoch in range(8)]
    large = set(np.flatnonzero(LABELS == 0).tolist())
    assert all(len(epoch & large) == 16 for epoch in epochs) and len(set.union(*epochs) & large) > 30


@pytest.mark.parametrize("balance", ["sqrt", "class"])
@pytest.mark.parametrize("first", [1, 5, 6, 13])
def test_the_order_from_any_step_on_is_that_of_the_whole_balanced_run(balance, first):
    assert list(sampler(balance, first)) == list(sampler(balance))[first:]


def test_a_video_shown_again_in_an_epoch_is_drawn_anew_and_as_the_next_of_its_repeats(few_videos):
    def dataset(repeats):
        settings = DataSettings(
            root=str(few_videos), num_frames=8, sampling_rate=3, target_fps=15, short_side=48, crop_size=48,
            repeated_aug=repeats,
        )  # fmt: skip
        return clip_dataset_from(settings, read_videos("train.csv", str(few_videos)), seed=0)

    one, two = dataset(1), dataset(2)
    clips = [one[SampleKey(3, 4, turn)] for turn in range(4)]
    assert not any(torch.equal(clips[0]["video"], clip["video"]) for clip in clips[1:])
    again = [*two[SampleKey(3, 4)], *two[SampleKey(3, 4, 1)]]
    assert all(torch.equal(clip["video"], other["video"]) for clip, other in zip(clips, again, strict=True))
    assert [clip["aug_index"] for clip in again] == [clip["aug_index"] for clip in clips] == [0, 1, 2, 3]


def test_loader_workers_change_nothing_in_a_balanced_epoch(few_videos):
    videos = read_videos("train.csv", str(few_videos))
    labels = np.where(videos.records.labels < 7, 0, 7)
    settings = DataSettings(
        root=str(few_videos), num_frames=8, sampling_rate=3, target_fps=15, short_side=32, crop_size=32
    )
    dataset = clip_dataset_from(settings, videos, seed=0)
    steps = [StepSampler(16, 4, 0, 2, 5, labels=labels, balance="class") for _ in range(2)]
    plain, parallel = (list(training_loader(dataset, one, workers)) for one, workers in zip(steps, (0, 2), strict=True))
    for one, other in zip(plain, parallel, strict=True):
        assert one["video_name"] == other["video_name"] and torch.equal(one["video"], other["video"])


def test_a_balance_of_classes_needs_a_label_for_each_video():
    with pytest.raises(ConfigError, match=r"data.sampling_balance = sqrt needs a label .* of which 1 have none"):
        StepSampler(3, 1, 0, 0, 1, labels=np.array([0, -1, 1]), balance="sqrt")
