"""Pictures of what the model says about a video."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from mvit_video.evaluation.report import new_figure
from mvit_video.inference.timeline import Segment, Timeline


def timeline_figure(
    timeline: Timeline, classes: Sequence[str], frames: np.ndarray, truth: Sequence[Segment] = ()
) -> Figure:
    """Frames spread over the video, a lane of segments (and one of the truth, where known), and the scores under them.

    `frames` uint8 (T, H, W, 3). Only classes that win somewhere, or stand in the truth, have a colour and a curve.
    """
    lanes = [("predicted", timeline.segments)] + ([("true", tuple(truth))] if truth else [])
    shown = list(dict.fromkeys(segment.label for _, segments in lanes for segment in segments))
    figure, (film, lane, curve) = new_figure(
        11.0, 5.4, rows=3, height_ratios=[1.1, 0.55 * len(lanes), 1.6], sharex=True
    )
    _film(film, frames, timeline.seconds)
    colours = {label: f"C{place % 10}" for place, label in enumerate(shown)}
    for row, (_, segments) in enumerate(lanes):
        for segment in segments:
            _bar(lane, row, segment, colours[segment.label], named=segment.end - segment.start > timeline.seconds / 16)
    lane.set_yticks(range(len(lanes)), [name for name, _ in lanes])
    lane.set_ylim(len(lanes) - 0.5, -0.5)
    for label in shown:
        curve.plot(timeline.times, timeline.scores[:, classes.index(label)], color=colours[label], label=label)
    curve.set(xlabel="seconds", ylabel="score", ylim=(-0.03, 1.03), xlim=(0, timeline.seconds))
    curve.grid(alpha=0.3)
    curve.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=min(len(shown), 6), fontsize=9, frameon=False)
    return figure


def _film(axes, frames: np.ndarray, seconds: float) -> None:
    """Frames side by side over the whole time axis, each over the seconds around its own moment."""
    step = seconds / len(frames)
    for place, frame in enumerate(frames):
        axes.imshow(frame, extent=(place * step, (place + 1) * step, 0, 1), aspect="auto")
    axes.set_yticks([])
    axes.set_ylabel("frames")
    axes.set_ylim(0, 1)


def _bar(axes, row: int, segment: Segment, colour: str, named: bool) -> None:
    """A segment in its lane; one too short for its name is told by its colour."""
    length = segment.end - segment.start
    axes.barh(row, length, left=segment.start, height=0.8, color=colour, edgecolor="white")
    if named:
        middle, name = segment.start + length / 2, segment.label.replace(" ", "\n", 1)
        axes.text(middle, row, name, ha="center", va="center", fontsize=8, clip_on=True)
