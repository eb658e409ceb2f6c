import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from numbered_video import read_number, write_numbered
from PIL import Image
from two_processes import environment

from mvit_video.config.load import load_config
from mvit_video.config.schema import DataSettings, InputSettings
from mvit_video.data import dataset as dataset_module
from mvit_video.data.dataset import (
    BadVideo,
    SampleKey,
    ViewDataset,
    clip_dataset_from,
    read_pixels,
    sample_generator,
    view_indices,
)
from mvit_video.data.lists.read import VideoList, VideoRecord, read_videos
from mvit_video.data.loader import StepSampler, clips_ahead, collate, steps_per_epoch, training_loader, view_loader
from mvit_video.data.pixels import Normalise
from mvit_video.data.video.source import VideoFiles
from mvit_video.errors import ConfigError, DecodeError

PLAIN = dict(mean=(0, 0, 0), std=(1, 1, 1), short_side=48, crop_size=(48, 144), target_fps=25, num_frames=4)


@pytest.fixture
def numbered_list(tmp_path):
    for name, count in (("long.mp4", 60), ("short.mp4", 5)):
        write_numbered(tmp_path / name, count, options={"bf": "2"})
    records = (VideoRecord("long.mp4", 1, 1), VideoRecord("short.mp4", 0, 2))
    return VideoList(records, ("a", "b"), str(tmp_path / "list.csv"))


def numbers(clip):
    return [read_number((frame * 255).round().byte().numpy()) for frame in clip.permute(1, 2, 3, 0)]


def view_numbers(dataset, index, crops):
    """Frame numbers of the first crop of each clip; the crop is the whole image."""
    return [numbers(view) for view in dataset[index]["video"][::crops]]


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_views_hold_the_frames_of_the_protocol(numbered_list, tmp_path, decoder):
    settings = DataSettings(**PLAIN, sampling_rate=5)
    dataset = ViewDataset(numbered_list, VideoFiles(str(tmp_path), decoder), settings, 3, 1, "return")
    assert view_numbers(dataset, 0, 1) == [[0, 6, 12, 19], [20, 26, 32, 39], [40, 46, 52, 59]]
    assert view_numbers(dataset, 1, 1) == [[0, 4, 4, 4]] * 3


class Counted:
    """A reader of random frames (H, W) that remembers how many were asked for at once; from frame 40 on of another `later` size."""

    path, fps = "counted.mp4", 25.0

    def __init__(self, size, later=None):
        self.size, self.later, self.most, self.num_pixels = size, later or size, 0, size[0] * size[1]

    def __len__(self):
        return 60

    def frames(self, indices):
        self.most = max(self.most, len(indices))
        size = self.size if max(indices) < 40 else self.later
        return np.stack([np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8) for number in indices])


@pytest.mark.parametrize("size", [(40, 50), (32, 48)])
def test_views_read_in_parts_are_those_read_at_once_and_hold_no_more_frames_than_fit(size, monkeypatch):
    settings = InputSettings(num_frames=4, sampling_rate=5, target_fps=25, short_side=32, crop_size=32)
    whole = read_pixels(Counted(size), settings, 5, 3)
    reader = Counted(size)
    monkeypatch.setattr(dataset_module, "PART_BYTES", 3 * size[0] * size[1] * 3 + 1)
    parts = read_pixels(reader, settings, 5, 3)
    assert torch.equal(parts, whole) and parts.dtype == whole.dtype and parts.shape == (15, 3, 4, 32, 32)
    assert reader.most == 3


def test_a_size_that_changes_between_parts_is_refused_as_within_one(monkeypatch):
    settings = InputSettings(num_frames=4, sampling_rate=5, target_fps=25, short_side=32, crop_size=32)
    monkeypatch.setattr(dataset_module, "PART_BYTES", 1)
    with pytest.raises(DecodeError, match=r"counted.mp4: the frame size changes within the video, from 50×40 to 40×50"):
        read_pixels(Counted((40, 50), (50, 40)), settings, 5, 1)


def test_views_of_segment_sampling_hold_the_middles(numbered_list, tmp_path):
    settings = DataSettings(**PLAIN, sampling="segment")
    dataset = ViewDataset(numbered_list, VideoFiles(str(tmp_path)), settings, 1, 2, "return")
    assert view_numbers(dataset, 0, 2) == [[7, 22, 37, 51]]
    assert dataset[0]["video"].shape == (2, 3, 4, 48, 144)


def test_a_frame_rate_other_than_the_target_covers_the_same_seconds():
    settings = DataSettings(num_frames=16, sampling_rate=4, target_fps=30)
    assert np.ptp(view_indices(300, 30.0, settings, 1)) == 63
    assert np.ptp(view_indices(600, 60.0, settings, 1)) == 127


def test_training_clips_hold_consecutive_window_frames_from_random_places(numbered_list, tmp_path):
    settings = DataSettings(**PLAIN, root=str(tmp_path), sampling_rate=5, crop_area=(1, 1), crop_ratio=(3, 3))
    dataset = clip_dataset_from(settings, numbered_list, seed=0)
    starts = set()
    for epoch in range(12):
        first, *rest = numbers(dataset[SampleKey(epoch, 0)]["video"])
        starts.add(first)
        assert [number - first for number in rest] in ([6, 12, 19], [6, 13, 19], [7, 13, 19], [6, 12, 18], [6, 13, 18])
    assert len(starts) > 6 and min(starts) >= 0 and max(starts) <= 40


def test_a_samples_draws_follow_from_seed_epoch_and_video_alone(few_videos):
    config = load_config(REPOSITORY / "configs/demo/motion.yaml", [f"data.root={few_videos}"])
    videos = read_videos("train.csv", str(few_videos))
    first = clip_dataset_from(config.data, videos, seed=0)
    clip = first[SampleKey(3, 5)]["video"]
    for other in (SampleKey(0, 1), SampleKey(3, 4)):
        first[other]
    assert torch.equal(first[SampleKey(3, 5)]["video"], clip)
    assert torch.equal(clip_dataset_from(config.data, videos, seed=0)[SampleKey(3, 5)]["video"], clip)
    assert not torch.equal(first[SampleKey(4, 5)]["video"], clip)
    assert not torch.equal(clip_dataset_from(config.data, videos, seed=1)[SampleKey(3, 5)]["video"], clip)


def test_generators_of_different_samples_differ():
    draws = {
        sample_generator(*key).random() for key in [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b"), (0, 0, "a", 1)]
    }
    assert len(draws) == 5


def test_samples_carry_pytorchvideos_keys(numbered_list, tmp_path):
    sample = clip_dataset_from(DataSettings(**PLAIN, root=str(tmp_path)), numbered_list, seed=0)[SampleKey(0, 1)]
    assert set(sample) == {"video", "label", "video_name", "video_index", "clip_index", "aug_index", "repeated_frames"}
    assert (sample["label"], sample["video_name"], sample["video_index"]) == (0, "short.mp4", 1)


def test_a_video_that_cannot_be_decoded_is_told_with_its_row_and_reason(numbered_list, tmp_path):
    (tmp_path / "short.mp4").write_bytes(b"")
    settings = DataSettings(**PLAIN, root=str(tmp_path))
    expected = BadVideo(1, "short.mp4", "row 2 of list.csv", "short.mp4: the file is empty (0 bytes)")
    assert clip_dataset_from(settings, numbered_list, seed=0)[SampleKey(0, 1)] == expected
    assert ViewDataset(numbered_list, VideoFiles(str(tmp_path)), settings, 1, 1, "return")[1] == expected
    batch = collate([clip_dataset_from(settings, numbered_list, seed=0)[SampleKey(0, index)] for index in (0, 1)])
    assert batch["bad"] == [expected] and batch["video"].shape[0] == 1 and batch["label"].tolist() == [1]
    assert collate([expected]) == {"bad": [expected]}


def augmented(folder, *words):
    """The whole recipe of Kinetics on the small videos."""
    recipe = ["flip=true", "randaugment=rand-m7-n4-mstd0.5-inc1", "color_jitter=0.2", "erasing=0.5", *words]
    words = [f"data.root={folder}", *(f"data.{word}" for word in recipe)]
    return load_config(REPOSITORY / "configs/demo/motion.yaml", words).data


def same_batches(some, others):
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        assert torch.equal(one["video"], other["video"]) and torch.equal(one["label"], other["label"])
        assert all(one[key] == other[key] for key in one.keys() - {"video", "label"})


def spoil(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"not a video")


@pytest.fixture
def spoilt(few_videos, tmp_path):
    """The small videos, three of the sixteen spoilt."""
    shutil.copytree(few_videos, tmp_path / "data")
    spoil(tmp_path / "data", "train/00002.mp4", "train/00003.mp4", "train/00009.mp4")
    return tmp_path / "data"


def test_a_bad_video_is_replaced_by_another_one_with_the_bad_one_beside_it(spoilt, few_videos):
    videos = read_videos("train.csv", str(spoilt))
    dataset = clip_dataset_from(augmented(spoilt, "on_error=substitute", "repeated_aug=2"), videos, seed=0)
    names = set()
    for epoch in range(8):
        *lost, one, two = dataset[SampleKey(epoch, 2)]
        assert lost[0].path == "train/00002.mp4" and "cannot be opened" in lost[0].reason
        for bad, after in zip(lost, [*(bad.path for bad in lost[1:]), one["video_name"]], strict=True):
            assert bad.substitute == after  # what took the place of each, to the one that could be decoded
        assert one["video_name"] == two["video_name"] and [one["aug_index"], two["aug_index"]] == [0, 1]
        assert one["label"] == next(record.label for record in videos.records if record.path == one["video_name"])
        names.add(one["video_name"])
        again = dataset[SampleKey(epoch, 2)]
        assert again[:-2] == lost and torch.equal(again[-2]["video"], one["video"])
    assert len(names) > 4


def test_a_substitutes_clip_is_not_the_one_that_the_substitute_gives_itself(spoilt):
    dataset = clip_dataset_from(augmented(spoilt, "on_error=substitute"), read_videos("train.csv", str(spoilt)), seed=0)
    sample = dataset[SampleKey(0, 2)][-1]
    assert not torch.equal(sample["video"], dataset[SampleKey(0, sample["video_index"])]["video"])


def test_where_no_substitute_can_be_decoded_the_video_is_left_out_with_all_that_were_tried(spoilt):
    spoil(spoilt, *(f"train/{index:05d}.mp4" for index in range(16)))
    dataset = clip_dataset_from(augmented(spoilt, "on_error=substitute"), read_videos("train.csv", str(spoilt)), seed=0)
    lost = dataset[SampleKey(0, 2)]
    assert len(lost) == 11 and len({bad.path for bad in lost}) == 11  # the video and ten in its place
    assert [bad.substitute for bad in lost] == [*(bad.path for bad in lost[1:]), None]
    assert collate([lost]) == {"bad": lost}


def test_evaluation_never_substitutes(spoilt):
    data = augmented(spoilt, "on_error=substitute")
    views = ViewDataset(read_videos("train.csv", str(spoilt)), VideoFiles(str(spoilt)), data, 1, 1, "return")
    assert views[2].path == "train/00002.mp4" and views[2].substitute is None


@pytest.mark.parametrize("choice", ["stop", "skip"])
def test_a_bad_video_that_is_not_replaced_makes_the_batch_smaller(spoilt, choice):
    dataset = clip_dataset_from(
        augmented(spoilt, f"on_error={choice}", "repeated_aug=2"), read_videos("train.csv", str(spoilt)), seed=0
    )
    batch = collate([dataset[SampleKey(0, index)] for index in (1, 2, 4)])
    assert batch["video_name"] == ["train/00001.mp4"] * 2 + ["train/00004.mp4"] * 2
    assert batch["video"].shape[0] == len(batch["label"]) == 4
    assert [(bad.path, bad.substitute) for bad in batch["bad"]] == [("train/00002.mp4", None)]


def test_what_travels_to_the_device_is_a_byte_a_value_unless_a_view_is_scaled(few_videos):
    data, videos = augmented(few_videos), read_videos("train.csv", str(few_videos))
    [batch] = training_loader(clip_dataset_from(data, videos, 0, pixels=True), StepSampler(16, 4, 0, 0, 1), 0)
    assert batch["video"].dtype == torch.uint8 and batch["video"].shape == (4, 3, 8, 48, 48)
    for short_side, dtype in ((64, torch.uint8), (56, torch.float32)):
        given = data.model_copy(update={"short_side": short_side})
        views, clips = (
            ViewDataset(videos, VideoFiles(str(few_videos)), given, 2, 3, pixels=pixels)[0]["video"]
            for pixels in (True, False)
        )
        assert views.dtype == dtype and torch.equal(Normalise(data.mean, data.std)(views), clips)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_batches_are_the_same_for_any_worker_count(few_videos, workers):
    data, videos = augmented(few_videos, "repeated_aug=2"), read_videos("train.csv", str(few_videos))
    dataset = clip_dataset_from(data, videos, seed=0)
    plain, parallel = (list(training_loader(dataset, StepSampler(16, 8, 0, 2, 7, 2), count)) for count in (0, workers))
    assert len(plain) == 5 and plain[0]["video"].shape == (8, 3, 8, 48, 48)
    same_batches(plain, parallel)
    pixels, normalise = clip_dataset_from(data, videos, seed=0, pixels=True), Normalise(data.mean, data.std)
    steps = StepSampler(16, 8, 0, 2, 7, 2)
    same_batches(plain, list(training_loader(pixels, steps, workers, 4, torch.device("cpu"), normalise)))


@pytest.mark.parametrize(("clips_per_part", "workers"), [(2, 0), (4, 2), (6, 2), (1, 0), (64, 0)])
def test_a_step_made_in_parts_is_the_step_made_at_once_with_its_bad_videos(spoilt, clips_per_part, workers):
    """Steps of four videos, two clips each; parts of one video, two, three, and all; a part may have bad videos alone."""
    dataset = clip_dataset_from(augmented(spoilt, "repeated_aug=2"), read_videos("train.csv", str(spoilt)), seed=0)
    steps = StepSampler(16, 8, 0, 0, 4, 2)
    plain, parts = list(training_loader(dataset, steps, 0)), training_loader(dataset, steps, workers, clips_per_part)
    assert len(parts) == len(plain) == 4
    same_batches(plain, list(parts))
    assert sum(len(batch["bad"]) for batch in plain) > 0


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("clips", "clips_per_part", "workers", "ahead"),
    [
        (64, None, 12, 24 * 64),  # two steps for each worker
        (64, 16, 12, 24 * 16),  # two parts for each worker, more than two steps
        (64, 2, 12, 72 * 2),  # two steps of 32 parts, rounded up to six for each worker
        (8, 16, 3, 6 * 8),  # a part is no more than a step
    ],
)
def test_what_is_made_ahead_is_two_steps_or_two_parts_a_worker(few_videos, clips, clips_per_part, workers, ahead):
    assert clips_ahead(clips, clips_per_part, workers) == ahead + clips
    dataset = clip_dataset_from(augmented(few_videos), read_videos("train.csv", str(few_videos)), seed=0)
    loader = training_loader(dataset, StepSampler(clips, clips, 0, 0, 1), workers, clips_per_part).parts
    assert loader.prefetch_factor * workers * min(clips_per_part or clips, clips) == ahead


@pytest.mark.parametrize("threads", [1, 2])
def test_pixels_are_the_same_for_any_number_of_torch_threads(few_videos, threads):
    data = augmented(few_videos, "crop_size=72", "short_side=72")
    dataset = clip_dataset_from(data, read_videos("train.csv", str(few_videos)), seed=0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        clips = [dataset[SampleKey(0, index)]["video"] for index in range(4)]
    finally:
        torch.set_num_threads(before)
    batch = next(iter(training_loader(dataset, [[SampleKey(0, index) for index in range(4)]], 1)))
    assert torch.equal(batch["video"], torch.stack(clips))


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_parts_together_are_the_step_of_one_process_and_hold_both_clips_of_each_mixed_pair(world_size):
    """With 16 videos of 2 clips in a step; mixing pairs clip i with clip 31 - i."""
    (alone,) = StepSampler(40, 32, 0, 0, 1, 2)
    clips = [key.video for key in alone for _ in range(2)]
    partner = dict(zip(clips, reversed(clips), strict=True))
    seen = []
    for rank in range(world_size):
        sampler = StepSampler(40, 32, 0, 0, 1, 2, rank, world_size)
        (part,) = sampler
        own = [key.video for key in part for _ in range(2)]
        assert sampler.mirrored and [partner[video] for video in own] == own[::-1]
        seen += [key.video for key in part]
    assert sorted(seen) == sorted(key.video for key in alone)
    assert not StepSampler(40, 12, 0, 0, 1, 2, 0, 2).mirrored and StepSampler(40, 12, 0, 0, 1, 4).mirrored


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_batches_together_hold_the_pixels_of_one_process(few_videos, world_size):
    dataset = clip_dataset_from(
        augmented(few_videos, "repeated_aug=2"), read_videos("train.csv", str(few_videos)), seed=0
    )

    def clips(rank, ranks, workers):
        (batch,) = training_loader(dataset, StepSampler(16, 16, 0, 1, 2, 2, rank, ranks), workers)
        return list(zip(batch["video_name"], batch["aug_index"], batch["label"].tolist(), batch["video"], strict=True))

    alone = {clip[:3]: clip[3] for clip in clips(0, 1, 0)}
    parts = [clip for rank in range(world_size) for clip in clips(rank, world_size, workers=rank % 2)]
    assert len(parts) == 16 and {clip[:3] for clip in parts} == alone.keys()
    assert all(torch.equal(pixels, alone[tuple(which)]) for *which, pixels in parts)


@pytest.mark.integration
@pytest.mark.parametrize("first", [1, 4, 5])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_after_resuming_with_another_worker_count_are_those_of_the_whole_run(few_videos, first, workers):
    dataset = clip_dataset_from(augmented(few_videos), read_videos("train.csv", str(few_videos)), seed=0)
    whole = list(training_loader(dataset, StepSampler(16, 4, 0, 0, 6), 1))
    same_batches(whole[first:], list(training_loader(dataset, StepSampler(16, 4, 0, first, 6), workers)))


def test_repeated_clips_are_those_of_separate_reads_and_cost_one_decode(few_videos, monkeypatch):
    videos = read_videos("train.csv", str(few_videos))
    opened = []

    class Counted(VideoFiles):
        def open(self, path):
            opened.append(path)
            return super().open(path)

    three = clip_dataset_from(augmented(few_videos, "repeated_aug=3"), videos, 0, Counted(str(few_videos)))
    samples = three[SampleKey(2, 5)]
    assert len(opened) == 1 and [sample["aug_index"] for sample in samples] == [0, 1, 2]
    one = clip_dataset_from(augmented(few_videos), videos, seed=0)
    for repeat, sample in enumerate(samples):
        alone = partial(sample_generator, repeat=repeat)
        monkeypatch.setattr(dataset_module, "sample_generator", lambda *key, alone=alone: alone(*key[:3]))
        assert torch.equal(one[SampleKey(2, 5)]["video"], sample["video"])
    assert not torch.equal(samples[0]["video"], samples[1]["video"])


def test_repeated_clips_come_from_their_own_places_in_time(numbered_list, tmp_path):
    settings = DataSettings(
        **PLAIN, root=str(tmp_path), sampling_rate=5, crop_area=(1, 1), crop_ratio=(3, 3), repeated_aug=4
    )
    samples = clip_dataset_from(settings, numbered_list, seed=0)[SampleKey(0, 0)]
    clips = [numbers(sample["video"]) for sample in samples]
    assert len({clip[0] for clip in clips}) > 1
    assert all(clip[3] - clip[0] in (18, 19) for clip in clips)


def test_stride_sampling_gives_frames_exactly_a_stride_apart(numbered_list, tmp_path):
    settings = DataSettings(
        **PLAIN, root=str(tmp_path), sampling_rate=5, dense_step="stride", crop_area=(1, 1), crop_ratio=(3, 3)
    )
    for epoch in range(5):
        assert (
            np.diff(numbers(clip_dataset_from(settings, numbered_list, seed=0)[SampleKey(epoch, 0)]["video"])) == 5
        ).all()
    views = ViewDataset(numbered_list, VideoFiles(str(tmp_path)), settings, 3, 1, "return")
    assert view_numbers(views, 0, 1) == [[0, 5, 10, 15], [20, 25, 30, 35], [40, 45, 50, 55]]


def test_a_sample_says_how_many_of_its_frames_are_repeated(numbered_list, tmp_path):
    settings = DataSettings(**PLAIN, root=str(tmp_path), sampling_rate=5)
    views = ViewDataset(numbered_list, VideoFiles(str(tmp_path)), settings, 2, 1, "return")
    clips = clip_dataset_from(settings, numbered_list, seed=0)
    assert [views[index]["repeated_frames"] for index in (0, 1)] == [0, 2]  # frames 0, 4, 4, 4 of the short one
    assert [clips[SampleKey(0, index)]["repeated_frames"] for index in (0, 1)] == [0, 2]
    assert collate([clips[SampleKey(0, index)] for index in (0, 1)])["repeated_frames"] == [0, 2]


def test_an_epoch_shows_every_video_once_and_each_epoch_has_its_own_order():
    keys = [key for batch in StepSampler(12, 4, 0, 0, 6) for key in batch]
    epochs = [[key.video for key in keys if key.epoch == epoch] for epoch in (0, 1)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2
    assert epochs[0] != epochs[1]
    assert epochs[0] != [key.video for batch in StepSampler(12, 4, 1, 0, 3) for key in batch]


def test_what_does_not_fill_a_step_is_left_out_and_changes_from_epoch_to_epoch():
    sampler = StepSampler(10, 4, 0, 0, 20)
    seen = [{key.video for key in batch} for batch in sampler]
    left_out = [set(range(10)) - seen[2 * epoch] - seen[2 * epoch + 1] for epoch in range(10)]
    assert all(len(videos) == 2 for videos in left_out)
    assert len(set.union(*left_out)) > 4


@pytest.mark.parametrize("first", [1, 3, 4, 7])
def test_the_order_from_any_step_on_is_that_of_the_whole_run(first):
    assert list(StepSampler(10, 4, 0, first, 9)) == list(StepSampler(10, 4, 0, 0, 9))[first:]


def test_a_step_larger_than_the_list_is_refused():
    with pytest.raises(ConfigError, match=r"train.clips_per_step = 8 is more than the 7 training videos: lower it"):
        steps_per_epoch(7, 8)
    with pytest.raises(ConfigError, match=r"= 16 is more than the 7 training videos with data.repeated_aug = 2: lower"):
        steps_per_epoch(7, 16, 2)
    assert steps_per_epoch(7, 14, 2) == 1


def test_a_step_that_repeats_or_ranks_do_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"clips_per_step = 9 is not a multiple of data.repeated_aug = 2: each video"):
        steps_per_epoch(100, 9, 2)
    with pytest.raises(
        ConfigError, match=r"12 is 6 videos per step, which 4 processes cannot share evenly: make it a multiple of 8"
    ):
        StepSampler(100, 12, 0, 0, 1, repeated_aug=2, rank=0, world_size=4)


def test_ranks_take_part_in_equally_many_steps_and_see_no_video_twice():
    parts = [list(StepSampler(30, 8, 0, 0, 6, 1, rank, 4)) for rank in range(4)]
    for epoch in (0, 1):
        seen = [key.video for part in parts for batch in part for key in batch if key.epoch == epoch]
        assert len(seen) == len(set(seen)) == 24
    assert {len(batch) for part in parts for batch in part} == {2}


def test_the_view_loader_gives_each_video_once_in_order(few_videos):
    config = load_config(REPOSITORY / "configs/demo/motion.yaml", [f"data.root={few_videos}"])
    videos = read_videos("val.csv", str(few_videos))
    dataset = ViewDataset(videos, VideoFiles(str(few_videos)), config.data, 2, 3, "return")
    for workers in (0, 2):
        samples = list(view_loader(dataset, workers))
        shards = [[sample["video_name"] for sample in view_loader(dataset, workers, rank, 3)] for rank in range(3)]
        assert [len(shard) for shard in shards] == [3, 3, 2]  # 8 videos over 3 ranks: none twice, none left out
        assert sorted(name for shard in shards for name in shard) == sorted(record.path for record in videos.records)
        assert [sample["video_name"] for sample in samples] == [record.path for record in videos.records]
        assert samples[0]["video"].shape == (6, 3, 8, 48, 48)


BROKEN = """
from mvit_video.data.loader import view_loader
batches = iter(view_loader(list(range(1000)), workers=2))
next(batches)
raise RuntimeError("the device is gone")
"""


@pytest.mark.integration
def test_a_program_that_an_error_ends_in_the_middle_of_its_batches_does_not_wait_for_its_workers():
    """Which ignore what asks them to stop, as multiprocessing does at exit."""
    done = subprocess.run(
        [sys.executable, "-c", BROKEN], capture_output=True, text=True, timeout=120, env=environment()
    )
    assert done.returncode == 1 and "the device is gone" in done.stderr


def test_a_picture_that_no_crop_fits_into_within_bounds_is_a_bad_video_with_its_name(tmp_path):
    """Folders of images: one is a line of 600 pixels."""
    (tmp_path / "line").mkdir()
    Image.fromarray(np.zeros((1, 600, 3), np.uint8)).save(tmp_path / "line/1.png")
    videos = VideoList((VideoRecord("line", 0, 1),), ("a",), "list.csv")
    bad = ViewDataset(
        videos, VideoFiles(str(tmp_path)), InputSettings(num_frames=2, crop_size=300, short_side=300), 1, 1, "return"
    )[0]
    assert isinstance(bad, BadVideo) and bad.reason.startswith("line: its images of 600×1 pixels would be scaled to")
