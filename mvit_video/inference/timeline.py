"""What happens when in a long video: overlapping windows, one decode, memory that does not grow with the video."""

# n windows, K classes

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from mvit_video.data.video.reader import Reader
from mvit_video.errors import DecodeError
from mvit_video.inference.predictor import Predictor, groups, open_video
from mvit_video.inference.windows import SlidingClips, Window, plan_windows, shown_at
from mvit_video.paths import write_json, write_whole
from mvit_video.printable import csv_text, subtitle

FILM_FRAMES, FILM_HEIGHT = 12, 120


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
    """scores (n, K) at `times` (n,), the middles of the windows in seconds; segments cover the video without gaps, none
    shorter than half a window; with `multi_label` they may overlap and leave gaps. `thumbnails` are a few small frames,
    uint8 (H, W, 3), evenly over the `seconds`.

    Where the video cannot be decoded to its end, all of this is about the part before, and `error` says why.
    """

    times: np.ndarray
    scores: np.ndarray
    segments: tuple[Segment, ...]
    seconds: float
    window_seconds: float
    thumbnails: tuple[np.ndarray, ...] = ()
    error: str | None = None
    multi_label: bool = False

    def segments_at(self, seconds: float) -> tuple[Segment, ...]:
        """The segments of a moment, which with one label per video is always one."""
        if self.multi_label:
            return tuple(segment for segment in self.segments if segment.start <= seconds < segment.end)
        return (self.segment_at(seconds),)

    def segment_at(self, seconds: float) -> Segment:
        """With one label per video, the segment of a moment; before the first and after the last, these."""
        place = bisect_right(self.segments, seconds, key=lambda segment: segment.end)
        return self.segments[min(place, len(self.segments) - 1)]


def label_timeline(
    predictor: Predictor,
    path: str | Path,
    step_seconds: float | None = None,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> Timeline:
    """Slide the network's clip over a video; windows start every `step_seconds`, by default a quarter of a clip's length.

    A model that samples whole videos (segment) sees windows of 4 s. `on_frame` is told how many of how many frames are
    done. Raises DecodeError for a file of which nothing can be decoded.
    """
    with open_video(path, predictor.guard, whole=False) as reader:
        plan = plan_windows(predictor.card.preprocessing, reader.fps, len(reader), step_seconds)
        shown, source = shown_at(reader), _Frames(reader, on_frame)
        starts, scores = list[int](), list[np.ndarray]()
        clips = SlidingClips(predictor.card.preprocessing, plan, last=len(reader) - plan.length)
        for batch in groups(_windows(clips, source), lambda window: 1, predictor.views_at_once):
            starts += [window.start for window in batch]
            scores.append(predictor.scores_of([window.pixels[None] for window in batch]))
    seconds, window = float(shown[source.seen]), min(plan.length, source.seen) / reader.fps
    ends = np.minimum(np.array(starts) + plan.length, source.seen)  # where decoding stops, a window may be given before
    times, table = (shown[starts] + shown[ends]) / 2, np.concatenate(scores)
    card, more = predictor.card, (tuple(source.thumbnails), source.error)
    if card.multi_label:
        segments = reached_segments(times, table, predictor.thresholds, card.classes, seconds, shortest=window / 2)
    else:
        segments = merge_segments(times, table, card.classes, seconds, shortest=window / 2)
    return Timeline(times, table, segments, seconds, window, *more, card.multi_label)


class _Frames:
    """One pass over a video: counts the frames, keeps a few small ones, and stops where decoding does."""

    def __init__(self, reader: Reader, on_frame: Callable[[int, int], None]) -> None:
        self.reader, self.on_frame = reader, on_frame
        self.seen = 0
        self.error: str | None = None
        self.thumbnails: list[np.ndarray] = []
        self._kept = set(((np.arange(FILM_FRAMES) + 0.5) * len(reader) / FILM_FRAMES).astype(int).tolist())

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        try:
            for number, frame in enumerate(self.reader.stream()):
                if number in self._kept:
                    self.thumbnails.append(small(frame))
                self.seen = number + 1
                yield number, frame
                self.on_frame(self.seen, len(self.reader))
        except DecodeError as reason:
            if not self.seen:
                raise
            self.error = str(reason)
        if self.reader.shortfall and not self.error:
            self.error = f"{self.reader.path}: {self.reader.shortfall}"


def _windows(clips: SlidingClips, source: _Frames) -> Iterator[Window]:
    for number, frame in source:
        yield from clips.push(number, frame)
    yield from clips.flush()


def small(frame: np.ndarray, height: int = FILM_HEIGHT) -> np.ndarray:
    """A frame scaled down to `height`, uint8 (height, W, 3); smaller ones as they are."""
    if frame.shape[0] <= height:
        return frame
    size = (max(round(frame.shape[1] * height / frame.shape[0]), 1), height)
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))


def merge_segments(
    times: np.ndarray, scores: np.ndarray, classes: tuple[str, ...], seconds: float, shortest: float = 0.0
) -> tuple[Segment, ...]:
    """Runs of equal best labels as segments that cover the video, cut halfway between the moments around a change.

    Runs shorter than `shortest` seconds are given, the shortest first, to the neighbour whose label scores higher in
    them: while a window lies across a change it sees a bit of both, and may see something else.
    """
    borders = np.concatenate(
        [[0.0], (times[:-1] + times[1:]) / 2, [seconds]]
    )  # of moment i: borders[i], borders[i + 1]
    runs = {first: (last, label) for first, last, label in _runs(scores.argmax(1))}  # by their first moment
    before = {last: first for first, (last, _) in runs.items()}
    short = [(borders[last] - borders[first], first, last) for first, (last, _) in runs.items()]
    heapify(short)
    while len(runs) > 1 and short[0][0] < shortest:
        _, first, last = heappop(short)
        if first not in runs or runs[first][0] != last:
            continue  # it has grown since
        around = [runs[place] for place in (before.get(first), last) if place in runs]
        label = max(sorted(label for _, label in around), key=lambda label: scores[first:last, label].mean())
        del runs[first]
        if first in before and runs[before[first]][1] == label:
            first = before[first]
        if last in runs and runs[last][1] == label:
            last = runs.pop(last)[0]
        runs[first], before[last] = (last, label), first
        heappush(short, (borders[last] - borders[first], first, last))
    return tuple(
        Segment(float(borders[first]), float(borders[last]), classes[label], float(scores[first:last, label].mean()))
        for first, (last, label) in sorted(runs.items())
    )


def reached_segments(
    times: np.ndarray,
    scores: np.ndarray,
    thresholds: np.ndarray,
    classes: tuple[str, ...],
    seconds: float,
    shortest: float = 0.0,
) -> tuple[Segment, ...]:
    """Runs of moments at which a class reaches its threshold (K,), cut as in `merge_segments`, by their start; those of different
    classes may overlap. Runs shorter than `shortest` seconds are left out.
    """
    borders = np.concatenate([[0.0], (times[:-1] + times[1:]) / 2, [seconds]])
    segments = [
        Segment(float(borders[first]), float(borders[last]), name, float(column[first:last].mean()))
        for name, column, threshold in zip(classes, scores.T, thresholds, strict=True)
        for first, last, reached in _runs((column >= threshold).astype(int))
        if reached and borders[last] - borders[first] >= shortest
    ]
    return tuple(sorted(segments, key=lambda segment: segment.start))


def _runs(labels: np.ndarray) -> list[tuple[int, int, int]]:
    """(first, last + 1, label) of each run of equal labels."""
    changes = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    return [(first, last, int(labels[first])) for first, last in pairwise(changes)]


def segments_csv(segments: tuple[Segment, ...]) -> str:
    """Rows of start, end (seconds), label, score under a heading."""
    rows = ((f"{s.start:.3f}", f"{s.end:.3f}", s.label, f"{s.score:.4f}") for s in segments)
    return csv_text([("start", "end", "label", "score"), *rows])


def segments_srt(segments: tuple[Segment, ...]) -> str:
    """Subtitles that name each segment and its score."""
    cues = (
        f"{number}\n{_clock(segment.start)} --> {_clock(segment.end)}\n{subtitle(segment.label)} ({segment.score:.2f})\n"
        for number, segment in enumerate(segments, 1)
    )
    return "\n".join(cues)


def _clock(seconds: float) -> str:
    """SubRip's time: 3661.5 -> 01:01:01,500."""
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d},{rest % 1000:03d}"


def write_timeline(
    folder: Path, path: str | Path, timeline: Timeline, classes: tuple[str, ...], precision: str
) -> None:
    """timeline.json (segments, and the best class of each window), timeline.csv and timeline.srt (segments)."""
    best = timeline.scores.argmax(1)
    windows = [
        {"time": round(float(time), 3), "label": classes[label], "score": round(float(row[label]), 4)}
        for time, label, row in zip(timeline.times, best, timeline.scores, strict=True)
    ]
    content = {
        "path": str(path),
        "precision": precision,
        "seconds": timeline.seconds,
        "window_seconds": timeline.window_seconds,
        "error": timeline.error,
        "segments": [segment.as_dict() for segment in timeline.segments],
        "windows": windows,
    }
    write_json(folder / "timeline.json", content)
    write_whole(folder / "timeline.csv", segments_csv(timeline.segments))
    write_whole(folder / "timeline.srt", segments_srt(timeline.segments))
