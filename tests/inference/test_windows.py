import numpy as np
import pytest
import torch
from tiny_predictor import NANO

from mvit_video.config.schema import InputSettings
from mvit_video.data.pixels import Normalise
from mvit_video.data.sampling import dense_indices, segment_indices
from mvit_video.data.transforms import ViewTransform
from mvit_video.errors import ConfigError
from mvit_video.inference.windows import SlidingClips, WindowPlan, plan_windows, window_seconds


def frame(number):
    """uint8 (4, 6, 3) that tells its number."""
    return np.full((4, 6, 3), number % 256, np.uint8)


SETTINGS = InputSettings(num_frames=4, short_side=4, crop_size=4, mean=(0, 0, 0), std=(1, 1, 1))


def numbers_of(window):
    return window.pixels[0, :, 0, 0].tolist()


def slide(plan, numbers, last=None):
    clips = SlidingClips(SETTINGS, plan, last)
    windows = [window for number in numbers for window in clips.push(number, frame(number))]
    return windows + list(clips.flush()), clips


def test_windows_hold_the_frames_that_their_plan_takes():
    plan = WindowPlan(length=8, step=3, taken=np.array([0, 2, 4, 7]))
    windows, _ = slide(plan, range(20), last=12)
    assert [window.start for window in windows] == [0, 3, 6, 9, 12]
    assert [numbers_of(window) for window in windows] == [
        [start + k for k in (0, 2, 4, 7)] for start in (0, 3, 6, 9, 12)
    ]


def test_the_last_window_ends_with_the_video():
    plan = WindowPlan(length=8, step=5, taken=np.array([0, 2, 4, 7]))
    windows, _ = slide(plan, range(16), last=8)
    assert [numbers_of(window)[-1] for window in windows] == [7, 12, 15]


def test_no_window_leads_out_of_a_video_whose_last_frames_are_not_taken():
    plan = WindowPlan(length=8, step=2, taken=np.array([0, 1, 2, 3]))
    windows, _ = slide(plan, range(15), last=7)
    assert [window.start for window in windows] == [0, 2, 4, 6, 7]


def test_clips_are_scaled_as_a_views():
    rng, plan = np.random.default_rng(0), plan_windows(NANO, 15.0, 24)
    video = rng.integers(0, 256, (24, 50, 70, 3), np.uint8)
    clips = SlidingClips(NANO, plan)
    [window] = [window for number in range(24) for window in clips.push(number, video[number])]
    view = ViewTransform(NANO.crop_hw, NANO.mean, NANO.std, NANO.short_side, 1)(video[dense_indices(24, 0, 24, 8)])
    assert torch.equal(Normalise(NANO.mean, NANO.std)(window.pixels[None]), view)


def test_a_stream_whose_pictures_change_their_size_gives_clips_of_one_kind():
    plan = WindowPlan(length=4, step=4, taken=np.arange(4))
    clips = SlidingClips(SETTINGS, plan)
    pictures = [frame(50), frame(51), np.full((8, 12, 3), 52, np.uint8), np.full((8, 12, 3), 53, np.uint8)]
    [window] = [window for number, picture in enumerate(pictures) for window in clips.push(number, picture)]
    assert window.pixels.dtype == torch.float32
    assert (window.pixels * 255).round()[:, :, 0, 0].tolist() == [[50, 51, 52, 53]] * 3


def test_skipped_numbers_are_stood_in_for_by_the_frame_before():
    plan = WindowPlan(length=8, step=8, taken=np.array([0, 2, 4, 7]))
    [window], _ = slide(plan, [0, 1, 3, 6, 7])
    assert numbers_of(window) == [0, 1, 3, 7]


def test_after_a_long_gap_all_starts_anew():
    plan = WindowPlan(length=8, step=4, taken=np.array([0, 2, 4, 7]))
    windows, _ = slide(plan, [*range(6), *range(10**9, 10**9 + 9)])
    assert [window.start for window in windows] == [10**9]


def test_a_video_shorter_than_a_window_repeats_its_last_frame():
    plan = WindowPlan(length=8, step=4, taken=np.array([0, 2, 4, 7]))
    [window], _ = slide(plan, range(4))
    assert numbers_of(window) == [0, 2, 2, 2]


@pytest.mark.integration
@pytest.mark.parametrize("rate", [5.0, 30.0, 1000.0, 90_000.0])
def test_held_frames_are_bounded_whatever_the_frame_rate(rate):
    settings = SETTINGS.model_copy(update={"num_frames": 16})
    plan = plan_windows(settings, rate, None, window_seconds(settings) / 16)
    clips, most, given = SlidingClips(settings, plan), 0, 0
    stride = max(plan.length // 700, 1)  # fewer frames than the rate says, so that the test is short
    for number in range(0, 3 * plan.length, stride):
        given += len(list(clips.push(number, frame(number))))
        most = max(most, clips.held)
    assert given > 16 and most <= 17 * 16


def test_a_plan_covers_the_seconds_of_the_clip_at_any_rate():
    settings = InputSettings()  # 16 frames, 1 in 4, at 30 per second
    assert window_seconds(settings) == pytest.approx(64 / 30)
    for rate, length in ((30.0, 64), (25.0, 53), (60.0, 128)):
        plan = plan_windows(settings, rate)
        assert (plan.length, plan.step) == (length, length // 4)
        assert plan.taken[0] == 0 and length - 2 <= plan.taken[-1] <= length - 1
    assert plan_windows(settings, 30.0, 10).length == 10
    assert plan_windows(settings, 30.0, None, 1.0).step == 30


def test_a_model_that_samples_whole_videos_sees_four_seconds():
    plan = plan_windows(InputSettings(sampling="segment"), 25.0)
    assert plan.length == 100 and plan.taken.tolist() == segment_indices(100, 16).tolist()


def test_a_step_of_almost_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"a step of 0.01 s is too small .* use at least 0.13 s"):
        plan_windows(InputSettings(), 30.0, None, 0.01)
