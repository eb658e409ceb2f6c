"""A network's clip that slides over a video whose frames come one at a time; nothing else of the video is held."""

# T frames of a clip, C channels, H/W pixels

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mvit_video.config.schema import InputSettings
from mvit_video.data.dataset import view_indices
from mvit_video.data.pixels import from_zero_to_one
from mvit_video.data.transforms import ViewTransform
from mvit_video.data.video.reader import Reader
from mvit_video.errors import ConfigError

SEGMENT_SECONDS = 4.0  # the mean length of Something-Something's videos, which segment sampling was made for
WINDOWS_PER_CLIP = 4
MAX_WINDOWS_PER_CLIP = 16


@dataclass(frozen=True)
class WindowPlan:
    """Windows of `length` frames that start every `step` frames; `taken` (T,) are the frames that a clip has of its window."""

    length: int
    step: int
    taken: np.ndarray


def plan_windows(
    settings: InputSettings, fps: float, video_frames: int | None = None, step_seconds: float | None = None
) -> WindowPlan:
    """Windows as long as the network's clip, or 4 s for one that samples whole videos (segment), four for each such length.

    A video that is shorter is one window. ConfigError for a step below a 16th of a window.
    """
    seconds = window_seconds(settings)
    if step_seconds is not None and step_seconds < seconds / MAX_WINDOWS_PER_CLIP:
        raise ConfigError(
            f"a step of {step_seconds:g} s is too small for windows of {seconds:.2f} s: "
            f"use at least {seconds / MAX_WINDOWS_PER_CLIP:.2f} s"
        )
    length = max(round(seconds * fps), 1)
    length = length if video_frames is None else min(length, video_frames)
    step = max(length // WINDOWS_PER_CLIP if step_seconds is None else round(step_seconds * fps), 1)
    return WindowPlan(length, step, view_indices(length, fps, settings, 1)[0])


def window_seconds(settings: InputSettings) -> float:
    """How much of a video the network sees at once."""
    if settings.sampling == "segment":
        return SEGMENT_SECONDS
    return settings.num_frames * settings.sampling_rate / settings.target_fps


def shown_at(reader: Reader) -> np.ndarray:
    """Seconds from the first frame to each one, and to the end of the last: (frames + 1,)."""
    times = np.array([float(time) for time in reader.times()])
    return np.append(times, times[-1] + 1 / reader.fps) - times[0]


@dataclass(frozen=True)
class Window:
    """A clip's `pixels` (C, T, H, W) from the frames `start` to `start + length - 1`."""

    start: int
    pixels: Tensor


@dataclass
class _Open:
    """A window that has begun, with those of its frames that have come."""

    start: int
    wanted: list[int]
    frames: list[Tensor] = field(default_factory=list)

    @property
    def next(self) -> int:
        return self.start + self.wanted[len(self.frames)]

    @property
    def whole(self) -> bool:
        return len(self.frames) == len(self.wanted)


class SlidingClips:
    """Takes frames with rising numbers, gives windows as soon as their last frame has come.

    A number that is skipped is stood in for by the frame before it; after a gap of a window and more all starts anew.
    Only frames that a window takes are scaled and kept, so what is held is at most T frames for each window that has
    begun, whatever the length and the frame rate of the video. `last` is the start of one more window, besides the
    multiples of the step: the one that ends with the video. None starts behind it, also where the plan does not take the
    last frames of a window, so that one could be given that leads out of the video.
    """

    def __init__(self, settings: InputSettings, plan: WindowPlan, last: int | None = None) -> None:
        self.plan, self.last = plan, last
        self._transform = ViewTransform(settings.crop_hw, settings.mean, settings.std, settings.short_side, num_crops=1)
        self._distinct, self._places = np.unique(plan.taken, return_inverse=True)
        self._open: list[_Open] = []
        self._before: tuple[int, np.ndarray] | None = None
        self._next_start: int | None = None
        self.any_given = False

    @property
    def held(self) -> int:
        """Scaled frames that are kept now."""
        return len({id(frame) for window in self._open for frame in window.frames})

    def push(self, number: int, frame: np.ndarray) -> Iterator[Window]:
        """Take frame `number`, uint8 (H, W, 3); the windows that it completes."""
        if self._before is None or number - self._before[0] > self.plan.length:
            self._open, self._next_start, self._before = [], number, None
        if self._before is not None and number > self._before[0] + 1:
            yield from self._fill(self._before[0] + 1, number, self._before[1])
        yield from self._fill(number, number + 1, frame)
        self._before = (number, frame)

    def flush(self) -> Iterator[Window]:
        """At the end of a video shorter than a window: what there is, its last frame repeated."""
        if not self.any_given and self._open and self._before is not None:
            first = self._open[0]
            last = first.frames[-1] if first.frames else self._scaled(self._before[1])
            first.frames += [last] * (len(first.wanted) - len(first.frames))
            yield self._give(first)

    def _fill(self, first: int, end: int, frame: np.ndarray) -> Iterator[Window]:
        """Let the frame stand for the numbers from `first` to `end - 1`."""
        scaled: Tensor | None = None
        for number in range(first, end):
            self._begin(number)
            for window in self._open:
                if window.next == number:
                    scaled = self._scaled(frame) if scaled is None else scaled
                    window.frames.append(scaled)
            for window in [window for window in self._open if window.whole]:
                yield self._give(window)

    def _begin(self, number: int) -> None:
        regular = number == self._next_start and (self.last is None or number <= self.last)
        if regular:
            self._next_start = number + self.plan.step
        if regular or number == self.last:
            self._open.append(_Open(number, self._distinct.tolist()))

    def _give(self, window: _Open) -> Window:
        self._open.remove(window)
        self.any_given = True
        frames = [window.frames[place] for place in self._places]
        if len({frame.dtype for frame in frames}) > 1:  # a stream whose size has changed
            frames = [from_zero_to_one(frame) for frame in frames]
        return Window(window.start, torch.stack(frames, 1))

    def _scaled(self, frame: np.ndarray) -> Tensor:
        return self._transform.pixels(frame[None])[0, :, 0]
