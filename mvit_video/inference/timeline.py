"""What happens when in a long video: overlapping windows, one decode, memory that does not grow with the video."""

from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from mvit_video.config.schema import Preprocessing
from mvit_video.data.decode import VideoReader
from mvit_video.data.sampling import clip_window, dense_indices
from mvit_video.data.transforms import ViewTransform
from mvit_video.errors import ConfigError
from mvit_video.inference.predictor import Predictor


@dataclass(frozen=True)
class Segment:
    """A label from `start` to `end` (seconds) with the mean score of its moments."""

    start: float
    end: float
    label: str
    score: float

    def as_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Timeline:
    """scores (n, K) at `times` (n,), the middles of the windows in seconds; segments cover the video without gaps,
    none shorter than half a clip."""

    times: np.ndarray
    scores: np.ndarray
    segments: tuple[Segment, ...]
    seconds: float


def label_timeline(predictor: Predictor, path: str | Path, windows_per_clip: int = 6) -> Timeline:
    """Slide the network's clip over a video; windows start every 1/`windows_per_clip` of a clip's length.

    Raises DecodeError for a file that cannot be decoded, ConfigError for a model that samples whole videos (segment).
    """
    settings = predictor.card.preprocessing
    if settings.sampling != "dense":
        raise ConfigError(
            "a timeline needs a model with dense sampling; this checkpoint samples whole videos (segment)"
        )
    with VideoReader(path) as reader:
        window = clip_window(settings.num_frames, settings.sampling_rate, reader.fps, settings.target_fps)
        length = min(max(round(window), 1), len(reader))
        step = max(length // windows_per_clip, 1)
        seconds = len(reader) / reader.fps
        middles, scores = [], []
        for batch in _batches(_windows(reader, settings, window, length, step), 16):
            middles += [(start + length / 2) / reader.fps for start, _ in batch]
            scores.append(predictor.scores(torch.stack([clip for _, clip in batch])))
    times, table = np.array(middles), np.concatenate(scores)
    segments = merge_segments(times, table, predictor.card.classes, seconds, shortest=length / reader.fps / 2)
    return Timeline(times, table, segments, seconds)


def merge_segments(
    times: np.ndarray, scores: np.ndarray, classes: tuple[str, ...], seconds: float, shortest: float = 0.0
) -> tuple[Segment, ...]:
    """Runs of equal best labels as segments that cover the video, cut halfway between the moments around a change.

    Runs shorter than `shortest` seconds are given, the shortest first, to the neighbour whose label scores higher in
    them: while a window lies across a change it sees a bit of both, and may see something else.
    """
    runs = _runs(scores.argmax(1))
    while len(runs) > 1:
        borders = _borders(runs, times, seconds)
        lengths = np.diff(borders)
        place = int(lengths.argmin())
        if lengths[place] >= shortest:
            break
        first, last, _ = runs[place]
        neighbours = {runs[other][2] for other in (place - 1, place + 1) if 0 <= other < len(runs)}
        label = max(sorted(neighbours), key=lambda label: scores[first:last, label].mean())
        runs[place] = (first, last, label)
        runs = _runs(np.concatenate([np.full(last - first, label) for first, last, label in runs]))
    borders = _borders(runs, times, seconds)
    return tuple(
        Segment(float(start), float(end), classes[label], float(scores[first:last, label].mean()))
        for start, end, (first, last, label) in zip(borders[:-1], borders[1:], runs, strict=True)
    )


def _runs(labels: np.ndarray) -> list[tuple[int, int, int]]:
    """(first, last + 1, label) of each run of equal labels."""
    changes = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    return [(first, last, int(labels[first])) for first, last in pairwise(changes)]


def _borders(runs: list[tuple[int, int, int]], times: np.ndarray, seconds: float) -> list[float]:
    return [0.0, *((times[first - 1] + times[first]) / 2 for first, _, _ in runs[1:]), seconds]


def _windows(
    reader: VideoReader, settings: Preprocessing, window: float, length: int, step: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """(first frame, clip (C, T, H, W)) of each window, from one pass; frames are held at the network's size only."""
    transform = ViewTransform(settings.crop_hw, settings.mean, settings.std, settings.short_side, num_crops=1)
    held: deque[torch.Tensor] = deque(maxlen=length)
    last = len(reader) - length
    taken = dense_indices(length, 0, window, settings.num_frames)
    for number, frame in enumerate(reader.stream()):
        held.append(transform(frame[None])[0, :, 0])
        start = number - length + 1
        if start >= 0 and (start % step == 0 or start == last):
            yield start, torch.stack([held[place] for place in taken], 1)


def _batches(items: Iterator, size: int) -> Iterator[list]:
    batch: list = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
