"""Our videos in a program's own loop: `make_loader`, and the datasets behind a plain DataLoader."""

import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mvit_video import make_loader
from mvit_video.config.schema import AugmentationSettings, InputSettings
from mvit_video.data.dataset import ClipDataset, SampleKey, ViewDataset
from mvit_video.data.lists.read import read_videos
from mvit_video.data.lists.records import VideoList, VideoRecord
from mvit_video.data.video.source import VideoFiles
from mvit_video.errors import ConfigError, DecodeError

INPUT = InputSettings(num_frames=4, sampling_rate=3, target_fps=15, short_side=40, crop_size=32)
MILD = AugmentationSettings(crop_area=(0.5, 1.0), flip=True)


class Numbers:
    """An open video of 1 × 2 pixels whose frames hold their number."""

    path, fps, num_pixels = "numbers", 15.0, 2

    def __len__(self):
        return 60

    def frames(self, indices):
        return np.repeat(np.asarray(indices, np.uint8), 6).reshape(-1, 1, 2, 3)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Memory:
    """Videos that lie in no file; `lost` cannot be opened."""

    def open(self, path):
        if path == "lost":
            raise DecodeError(f"{path}: is not there")
        return Numbers()


def numbered(*names):
    return VideoList(
        tuple(VideoRecord(name, row % 2, row + 1) for row, name in enumerate(names)), ("a", "b"), "list.csv"
    )


def as_drawn(frames, rng):
    """A clip of the frames' numbers."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2).float()


def test_a_loader_for_evaluation_gives_the_centre_view_of_every_video_in_order(few_videos):
    batches = list(make_loader("val.csv", INPUT, root=few_videos, batch_size=3, workers=0))
    assert [len(batch["label"]) for batch in batches] == [3, 3, 2]
    views = ViewDataset(read_videos("val.csv", str(few_videos)), VideoFiles(str(few_videos)), INPUT, 1, 1)
    for row in range(8):
        batch, place = batches[row // 3], row % 3
        assert torch.equal(batch["video"][place], views[row]["video"][0]) and batch["video"].shape[1:] == (3, 4, 32, 32)
        assert (batch["label"][place], batch["video_name"][place]) == (views[row]["label"], views[row]["video_name"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_for_training_gives_every_video_once_an_epoch_in_new_orders_and_crops(few_videos, workers):
    loader = make_loader("train.csv", INPUT, root=few_videos, augmentation=MILD, batch_size=4, workers=workers, seed=3)
    epochs = [list(loader) for _ in range(2)]
    names = [[name for batch in epoch for name in batch["video_name"]] for epoch in epochs]
    assert len(loader) == 4 and sorted(names[0]) == sorted(names[1]) and len(set(names[0])) == 16
    assert names[0] != names[1]
    clips = [
        torch.cat([batch["video"] for batch in epoch])[np.argsort(order)]
        for epoch, order in zip(epochs, names, strict=True)
    ]
    assert not any(torch.equal(one, two) for one, two in zip(*clips, strict=True))
    again = next(
        iter(make_loader("train.csv", INPUT, root=few_videos, augmentation=MILD, batch_size=4, workers=0, seed=3))
    )
    assert torch.equal(again["video"], epochs[0][0]["video"]) and again["video_name"] == epochs[0][0]["video_name"]


def test_repeated_clips_lie_side_by_side_and_fill_the_batch(few_videos):
    twice = MILD.model_copy(update={"repeated_aug": 2})
    batch = next(iter(make_loader("train.csv", INPUT, root=few_videos, augmentation=twice, batch_size=8, workers=0)))
    assert batch["video"].shape[0] == 8 and batch["aug_index"] == [0, 1] * 4
    assert batch["video_name"][::2] == batch["video_name"][1::2]


@pytest.mark.parametrize("augmentation", [None, MILD], ids=["evaluation", "training"])
def test_a_video_that_cannot_be_decoded_is_raised_or_left_out(few_videos, tmp_path, augmentation):
    shutil.copytree(few_videos, tmp_path / "data")
    (tmp_path / "data/val/00002.mp4").write_text("not a video")
    words = dict(root=tmp_path / "data", augmentation=augmentation, batch_size=8, workers=0)
    with pytest.raises(DecodeError, match=r"00002.mp4: cannot be opened .*\(row 3 of val.csv\)"):
        list(make_loader("val.csv", INPUT, **words))
    [batch] = make_loader("val.csv", INPUT, skip_bad=True, **words)
    assert len(batch["label"]) == 7 and [bad.path for bad in batch["bad"]] == ["val/00002.mp4"]


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        (32, {}, r"batch_size = 32 does not fit 16 videos with repeated_aug = 1: use a multiple"),
        (5, {"repeated_aug": 2}, r"batch_size = 5 does not fit 16 videos with repeated_aug = 2"),
        (
            4,
            {"crop": "jitter", "jitter_scales": (20, 30)},
            r"crop_size 32 is larger than the smallest of jitter_scales",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(few_videos, size, changes, message):
    augmentation = AugmentationSettings(**changes)
    with pytest.raises(ConfigError, match=message):
        make_loader("train.csv", INPUT, root=few_videos, augmentation=augmentation, batch_size=size)


def test_clips_of_any_source_go_through_a_plain_loader_and_differ_by_epoch():
    dataset = ClipDataset(numbered(*"uvwxyz"), Memory(), INPUT, as_drawn, seed=5)
    epochs = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        batches = list(DataLoader(dataset, batch_size=2, shuffle=True, num_workers=2))
        assert all(batch["video"].shape == (2, 3, 4, 1, 2) for batch in batches)
        names = [name for batch in batches for name in batch["video_name"]]
        clips = torch.cat([batch["video"] for batch in batches])
        epochs.append({name: clip for name, clip in zip(names, clips, strict=True)})
        labels = torch.cat([batch["label"] for batch in batches])
        assert dict(zip(names, labels.tolist(), strict=True)) == dict(zip("uvwxyz", [0, 1] * 3, strict=True))
    assert sorted(epochs[0]) == sorted(epochs[1]) == list("uvwxyz")
    for place, name in enumerate("uvwxyz"):
        assert torch.equal(epochs[1][name], dataset[SampleKey(1, place)]["video"])
        assert not torch.equal(epochs[0][name], epochs[1][name])
        first = epochs[0][name][0, :, 0, 0]
        assert (first.diff() > 0).all(), "frames rise"


def test_a_source_that_lacks_a_video_raises_its_row_in_a_plain_loader():
    for dataset in (
        ClipDataset(numbered("u", "lost"), Memory(), INPUT, as_drawn),
        ViewDataset(numbered("u", "lost"), Memory(), INPUT),
    ):
        with pytest.raises(DecodeError, match=r"lost: is not there \(row 2 of list.csv\)"):
            list(DataLoader(dataset, batch_size=2))
