import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from numbered_video import read_number, write_numbered

from mvit_video.config.load import load_config
from mvit_video.config.schema import DataSettings
from mvit_video.data.annotations import VideoList, VideoRecord, read_videos
from mvit_video.data.dataset import BadVideo, ClipDataset, SampleKey, ViewDataset, sample_generator, view_indices
from mvit_video.data.loader import StepSampler, collate, steps_per_epoch, training_loader, view_loader
from mvit_video.errors import ConfigError

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
    """Frame numbers of the first crop of each clip; the crop is the whole picture."""
    return [numbers(view) for view in dataset[index]["video"][::crops]]


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_views_hold_the_frames_of_the_protocol(numbered_list, tmp_path, decoder):
    settings = DataSettings(**PLAIN, sampling_rate=5)
    dataset = ViewDataset(numbered_list, str(tmp_path), settings, num_clips=3, num_crops=1, decoder=decoder)
    assert view_numbers(dataset, 0, 1) == [[0, 6, 12, 19], [20, 26, 32, 39], [40, 46, 52, 59]]
    assert view_numbers(dataset, 1, 1) == [[0, 4, 4, 4]] * 3


def test_views_of_segment_sampling_hold_the_middles(numbered_list, tmp_path):
    settings = DataSettings(**PLAIN, sampling="segment")
    dataset = ViewDataset(numbered_list, str(tmp_path), settings, num_clips=1, num_crops=2, decoder="pyav")
    assert view_numbers(dataset, 0, 2) == [[7, 22, 37, 51]]
    assert dataset[0]["video"].shape == (2, 3, 4, 48, 144)


def test_a_frame_rate_other_than_the_target_covers_the_same_seconds():
    settings = DataSettings(num_frames=16, sampling_rate=4, target_fps=30)
    assert np.ptp(view_indices(300, 30.0, settings, 1)) == 63
    assert np.ptp(view_indices(600, 60.0, settings, 1)) == 127


def test_training_clips_hold_consecutive_window_frames_from_random_places(numbered_list, tmp_path):
    settings = DataSettings(**PLAIN, root=str(tmp_path), sampling_rate=5, crop_area=(1, 1), crop_ratio=(3, 3))
    dataset = ClipDataset(numbered_list, settings, seed=0)
    starts = set()
    for epoch in range(12):
        first, *rest = numbers(dataset[SampleKey(epoch, 0)]["video"])
        starts.add(first)
        assert [number - first for number in rest] in ([6, 12, 19], [6, 13, 19], [7, 13, 19], [6, 12, 18], [6, 13, 18])
    assert len(starts) > 6 and min(starts) >= 0 and max(starts) <= 40


def test_a_samples_draws_follow_from_seed_epoch_and_video_alone(few_videos):
    config = load_config(REPOSITORY / "configs/demo/motion.yaml", [f"data.root={few_videos}"])
    videos = read_videos("train.csv", str(few_videos))
    first = ClipDataset(videos, config.data, seed=0)
    clip = first[SampleKey(3, 5)]["video"]
    for other in (SampleKey(0, 1), SampleKey(3, 4)):
        first[other]
    assert torch.equal(first[SampleKey(3, 5)]["video"], clip)
    assert torch.equal(ClipDataset(videos, config.data, seed=0)[SampleKey(3, 5)]["video"], clip)
    assert not torch.equal(first[SampleKey(4, 5)]["video"], clip)
    assert not torch.equal(ClipDataset(videos, config.data, seed=1)[SampleKey(3, 5)]["video"], clip)


def test_generators_of_different_samples_differ():
    draws = {
        sample_generator(*key).random() for key in [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b"), (0, 0, "a", 1)]
    }
    assert len(draws) == 5


def test_samples_carry_pytorchvideos_keys(numbered_list, tmp_path):
    sample = ClipDataset(numbered_list, DataSettings(**PLAIN, root=str(tmp_path)), seed=0)[SampleKey(0, 1)]
    assert set(sample) == {"video", "label", "video_name", "video_index", "clip_index", "aug_index", "repeated_frames"}
    assert (sample["label"], sample["video_name"], sample["video_index"]) == (0, "short.mp4", 1)


def test_a_video_that_cannot_be_decoded_is_told_with_its_row_and_reason(numbered_list, tmp_path):
    (tmp_path / "short.mp4").write_bytes(b"")
    settings = DataSettings(**PLAIN, root=str(tmp_path))
    wanted = BadVideo(1, "short.mp4", "row 2 of list.csv", "short.mp4: the file is empty (0 bytes)")
    assert ClipDataset(numbered_list, settings, seed=0)[SampleKey(0, 1)] == wanted
    assert ViewDataset(numbered_list, str(tmp_path), settings, 1, 1, "pyav")[1] == wanted
    batch = collate([ClipDataset(numbered_list, settings, seed=0)[SampleKey(0, index)] for index in (0, 1)])
    assert batch["bad"] == [wanted] and batch["video"].shape[0] == 1 and batch["label"].tolist() == [1]
    assert collate([wanted]) == {"bad": [wanted]}


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_for_any_worker_count(few_videos, workers):
    config = load_config(REPOSITORY / "configs/demo/motion.yaml", [f"data.root={few_videos}"])
    dataset = ClipDataset(read_videos("train.csv", str(few_videos)), config.data, seed=0)
    plain, parallel = (list(training_loader(dataset, StepSampler(16, 4, 0, 2, 7), count)) for count in (0, workers))
    assert len(plain) == 5
    for one, other in zip(plain, parallel, strict=True):
        assert torch.equal(one["video"], other["video"]) and torch.equal(one["label"], other["label"])
        assert one["video_name"] == other["video_name"]


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


def test_the_view_loader_gives_each_video_once_in_order(few_videos):
    config = load_config(REPOSITORY / "configs/demo/motion.yaml", [f"data.root={few_videos}"])
    videos = read_videos("val.csv", str(few_videos))
    dataset = ViewDataset(videos, str(few_videos), config.data, 2, 3, "pyav")
    for workers in (0, 2):
        samples = list(view_loader(dataset, workers))
        assert [sample["video_name"] for sample in samples] == [record.path for record in videos.records]
        assert samples[0]["video"].shape == (6, 3, 8, 48, 48)
