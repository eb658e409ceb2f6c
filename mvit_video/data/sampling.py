"""Which frames of a video make a clip. Pure functions: numbers in, frame numbers out.

The drawings show a video's frames, f where one is taken.
"""

import numpy as np


def clip_window(num_frames: int, sampling_rate: int, video_fps: float, target_fps: float) -> float:
    """Length of a dense clip in frames of this video: num_frames × sampling_rate at target_fps, over the same seconds.

    16 frames at rate 4 and 30 fps are 64 frames of a 30 fps video and 53.3 of one with 25 fps.
    """
    return num_frames * sampling_rate * video_fps / target_fps


def random_start(video_frames: int, window: float, rng: np.random.Generator) -> float:
    """Start of a training clip: uniform over all places where the window fits; 0 in a video that is shorter."""
    return rng.uniform(0.0, max(video_frames - window, 0.0))


def view_start(video_frames: int, window: float, clip: int, num_clips: int) -> float:
    """Start of test clip `clip` of `num_clips`: clip·floor((N − window)/(n − 1)), one clip alone from the middle.

    As PySlowFast does it: the last clip may end up to n − 2 frames before the video does.
    """
    room = max(video_frames - window, 0.0)
    if num_clips == 1:
        return float(np.floor(room / 2))
    return float(clip * np.floor(room / (num_clips - 1)))


def dense_indices(video_frames: int, start: float, window: float, num_frames: int) -> np.ndarray:
    """`num_frames` frames from `start` to `start + window − 1`, evenly spaced, rounded down; (T,) int64.

    4 frames over a window of 8 from frame 1 of 10, `.f.f.f..f.`:
    >>> dense_indices(10, 1, 8, 4)
    array([1, 3, 5, 8])

    A video shorter than the window repeats its last frame, `f.ff`:
    >>> dense_indices(4, 0, 8, 4)
    array([0, 2, 3, 3])

    A window of less than a frame shows one frame.
    """
    end = start + max(window, 1) - 1
    return np.clip(np.linspace(start, end, num_frames), 0, video_frames - 1).astype(np.int64)


def stride_indices(video_frames: int, start: float, step: float, num_frames: int) -> np.ndarray:
    """`num_frames` frames from `start` on, `step` apart, rounded down; (T,) int64.

    4 frames, 2 apart, from frame 1 of 10, `.f.f.f.f..`:
    >>> stride_indices(10, 1, 2, 4)
    array([1, 3, 5, 7])

    A video that ends before repeats its last frame, `f.ff`:
    >>> stride_indices(4, 0, 2, 4)
    array([0, 2, 3, 3])
    """
    return np.clip(start + step * np.arange(num_frames), 0, video_frames - 1).astype(np.int64)


def repeated_frames(indices: np.ndarray) -> int:
    """How many frames of a clip show a frame of the video once more; 0 unless the video is too short (or too slow).

    >>> repeated_frames(np.array([0, 2, 3, 3]))
    1
    """
    return len(indices) - len(np.unique(indices))


def segment_indices(video_frames: int, num_frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """One frame from each of `num_frames` equal parts of the video: the middle one, or a random one with `rng`; (T,) int64.

    The parts lie between the rounded multiples of (N − 1) / T, both ends included, as in PySlowFast's loader for
    Something-Something. 3 parts of 9 frames, `.f..f.f..`:
    >>> segment_indices(9, 3)
    array([1, 4, 6])

    A video with fewer frames than parts repeats some, `ff`:
    >>> segment_indices(2, 4)
    array([0, 0, 0, 1])
    """
    edges = np.round((video_frames - 1) / num_frames * np.arange(num_frames + 1)).astype(
        np.int64
    )  # theirs to the last bit
    if rng is None:
        return (edges[:-1] + edges[1:]) // 2
    return rng.integers(edges[:-1], edges[1:] + 1)
