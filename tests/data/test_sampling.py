import doctest
import math

import numpy as np
import pytest

from mvit_video.data import sampling


def test_the_drawings_in_the_docstrings_are_right():
    result = doctest.testmod(sampling)
    assert result.attempted >= 7 and result.failed == 0


def test_a_window_covers_the_same_seconds_at_any_frame_rate():
    assert sampling.clip_window(16, 4, 30, 30) == 64
    assert sampling.clip_window(16, 4, 25, 30) / 25 == pytest.approx(64 / 30)


def test_no_clip_runs_backwards_however_slow_the_video():
    for window in (0.01, 0.5, 1.0, 1.5):
        assert (np.diff(sampling.dense_indices(100, 5.0, window, 4)) >= 0).all()


@pytest.mark.parametrize("frames", [10, 63, 64, 65, 300])
@pytest.mark.parametrize("count", [1, 2, 5, 10])
def test_test_clips_start_where_the_protocol_says(frames, count):
    for clip in range(count):
        room = max(frames - 64, 0)
        expected = room // 2 if count == 1 else clip * (room // (count - 1))
        assert sampling.view_start(frames, 64.0, clip, count) == expected


@pytest.mark.parametrize(
    ("frames", "start", "window", "count"), [(300, 17.3, 53.3, 16), (64, 0, 64, 16), (9, 0, 64, 8)]
)
def test_dense_frames_follow_the_published_formula(frames, start, window, count):
    expected = []
    for place in range(count):
        position = start + place * (window - 1) / (count - 1)
        expected.append(min(math.floor(position), frames - 1))
    assert sampling.dense_indices(frames, start, window, count).tolist() == expected


@pytest.mark.parametrize(("frames", "start", "step", "count"), [(300, 17.3, 4.0, 16), (300, 0, 3.33, 16), (9, 0, 2, 8)])
def test_stride_frames_are_a_step_apart(frames, start, step, count):
    expected = [min(math.floor(start + place * step), frames - 1) for place in range(count)]
    actual = sampling.stride_indices(frames, start, step, count)
    assert actual.tolist() == expected
    if step == 4:
        assert (np.diff(actual) == 4).all()


def test_a_short_video_repeats_its_last_frame_and_the_count_says_how_often():
    for indices in (sampling.dense_indices(5, 0, 20, 4), sampling.stride_indices(5, 0, 5, 4)):
        assert indices.tolist() == [0, 4, 4, 4]
        assert sampling.repeated_frames(indices) == 2
    assert sampling.repeated_frames(sampling.dense_indices(20, 0, 20, 4)) == 0
    assert sampling.repeated_frames(sampling.segment_indices(2, 4)) == 2


def test_random_starts_fill_the_room_evenly():
    rng = np.random.default_rng(0)
    starts = np.array([sampling.random_start(100, 40.0, rng) for _ in range(4000)])
    assert starts.min() >= 0 and starts.max() <= 60
    assert abs(starts.mean() - 30) < 1 and abs(starts.std() - 60 / math.sqrt(12)) < 0.5
    assert sampling.random_start(30, 40.0, rng) == 0


@pytest.mark.parametrize(("frames", "count"), [(1, 8), (5, 8), (8, 8), (9, 8), (117, 16)])
def test_random_segment_frames_lie_in_their_parts_and_reach_both_ends(frames, count):
    rng = np.random.default_rng(0)
    draws = np.stack([sampling.segment_indices(frames, count, rng) for _ in range(500)])
    step = (frames - 1) / count
    for place in range(count):
        low, high = round(step * place), round(step * (place + 1))
        assert draws[:, place].min() == low and draws[:, place].max() == high
    assert (np.diff(draws, axis=1) >= 0).all()


def test_one_clip_frame_stands_at_the_start():
    assert sampling.dense_indices(50, 7, 1, 1).tolist() == [7]


def middle_frames_of_pyslowfast(frames, count):
    """The middle of each segment, from rounded multiples of the segment's size, one by one."""
    size = float(frames - 1) / count
    edges = [(int(np.round(size * place)), int(np.round(size * (place + 1)))) for place in range(count)]
    return [(start + end) // 2 for start, end in edges]


def test_middle_frames_of_segments_are_pyslowfasts_for_every_length_and_count():
    for count in (1, 3, 8, 16, 32, 40):
        for frames in range(1, 400):
            assert sampling.segment_indices(frames, count).tolist() == middle_frames_of_pyslowfast(frames, count)
