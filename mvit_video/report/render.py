"""Pictures of timelines and explanations."""

from collections import defaultdict
from collections.abc import Sequence
from textwrap import shorten

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from PIL import Image

from mvit_video.figures import legend_as_named, new_figure
from mvit_video.inference.explain import Explanation
from mvit_video.inference.timeline import Segment, Timeline
from mvit_video.printable import printable
from mvit_video.report.strips import part_middles

HEAT = "turbo"
MAX_OPACITY = 0.85  # share of the colour at full heat, the rest is the frame
LETTERS = 140  # side by side in a lane
MOST_COLOURS = 9
LANE_NAME = 24  # letters of a lane's name
OTHERS = "#b5b5b5"


def timeline_figure(
    timeline: Timeline, classes: Sequence[str], frames: Sequence[np.ndarray] = (), truth: Sequence[Segment] = ()
) -> Figure:
    """Frames spread over the video, a lane of segments (and one of the truth, where known), and the scores under them.

    `frames` are uint8 (H, W, 3), the timeline's own thumbnails by default. The nine labels that fill most of the lanes have a
    colour and a curve; the others are grey. Labels that may overlap have a lane each, and only these nine are drawn.
    """
    lanes = _lanes(timeline) + ([("true", tuple(truth))] if truth else [])
    colours = _colours([segment for _, segments in lanes for segment in segments])
    figure, (strip, lane, curve) = new_figure(
        11.0, 5.4, rows=3, height_ratios=[1.1, 0.55 * len(lanes), 1.6], sharex=True
    )
    for row, (_, segments) in enumerate(lanes):
        for segment in segments:
            _bar(lane, row, segment, colours.get(segment.label, OTHERS), timeline.seconds)
    lane.set_yticks(range(len(lanes)), [name for name, _ in lanes])
    for text in lane.get_yticklabels():
        text.set_parse_math(False)
    lane.set_ylim(len(lanes) - 0.5, -0.5)
    for label, colour in colours.items():
        curve.plot(timeline.times, timeline.scores[:, classes.index(label)], color=colour, label=label)
    if any(segment.label not in colours for _, segments in lanes for segment in segments):
        curve.plot([], [], color=OTHERS, linewidth=6, label="others")
    _axis(curve, timeline.seconds)
    strip.set(yticks=[], ylabel="frames", ylim=(0, 1))
    figure.draw_without_rendering()  # lays it out, so that the size of a frame's place is known
    _draw_strip(strip, frames if len(frames) else timeline.thumbnails, timeline.seconds)
    return figure


def _lanes(timeline: Timeline) -> list[tuple[str, tuple[Segment, ...]]]:
    """The segments in one lane, or where they may overlap, one for each of the labels that fill most of the video."""
    if not timeline.multi_label:
        return [("predicted", timeline.segments)]
    shown = _colours(timeline.segments)
    lanes = [(name, tuple(one for one in timeline.segments if one.label == name)) for name in shown]
    return [(shorten(printable(name), LANE_NAME), segments) for name, segments in lanes] or [("no label", ())]


def _axis(curve, seconds: float) -> None:
    """Time in seconds, of longer videos as 1:05 or 1:00:05, and the legend below."""
    curve.set(xlabel="seconds" if seconds < 180 else "time", ylabel="score", ylim=(-0.03, 1.03), xlim=(0, seconds))
    if seconds >= 180:
        curve.xaxis.set_major_formatter(FuncFormatter(lambda value, _: clock(value)))
    curve.grid(alpha=0.3)
    columns = min(max(len(curve.lines), 1), 5)
    form = {"bbox_to_anchor": (0.5, -0.28), "ncols": columns, "fontsize": 9, "frameon": False}
    legend_as_named(curve, curve.lines, [line.get_label() for line in curve.lines], loc="upper center", **form)


def clock(seconds: float) -> str:
    """65 -> 1:05, 3605 -> 1:00:05."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _colours(segments: Sequence[Segment]) -> dict[str, str]:
    """Colours for the labels with the longest total time, in order of appearance."""
    seconds: dict[str, float] = defaultdict(float)
    for segment in segments:
        seconds[segment.label] += segment.end - segment.start
    longest = sorted(seconds, key=lambda label: -seconds[label])[:MOST_COLOURS]
    return {label: f"C{place}" for place, label in enumerate(label for label in seconds if label in longest)}


def _draw_strip(axes, frames: Sequence[np.ndarray], seconds: float) -> None:
    """As many frames side by side as the axes have room for, each in the middle of the time around its own moment."""
    box = axes.get_window_extent()
    height, width = frames[0].shape[:2] if len(frames) else (1, 1)
    room = box.width / box.height * height / width  # frames of their own shape
    count = max(min(round(room), len(frames)), 1)
    step, shown = seconds / count, min(seconds / room, seconds / count)
    for place, number in enumerate(part_middles(len(frames), count) if len(frames) else ()):
        middle = (place + 0.5) * step
        frame = cut_to(frames[number], shown / seconds * box.width / box.height)
        axes.imshow(frame, extent=(middle - shown / 2, middle + shown / 2, 0, 1), aspect="auto")
    axes.set(ylim=(0, 1), xlim=(0, seconds))


def cut_to(frame: np.ndarray, aspect: float) -> np.ndarray:
    """The middle of a frame, uint8 (H, W, 3), of the shape width / height = `aspect`."""
    height, width = frame.shape[:2]
    rows, columns = min(round(width / aspect), height), min(round(height * aspect), width)
    top, left = (height - rows) // 2, (width - columns) // 2
    return frame[top : top + max(rows, 1), left : left + max(columns, 1)]


def _bar(axes, row: int, segment: Segment, colour: str, seconds: float) -> None:
    """Draw a segment; one too short for its name is identified by colour."""
    length = segment.end - segment.start
    axes.barh(row, length, left=segment.start, height=0.8, color=colour, edgecolor="white", linewidth=0.4)
    lines = segment.label.split(" ", 1)
    if length / seconds * LETTERS > max(map(len, lines)):
        middle, name = segment.start + length / 2, "\n".join(lines)
        words = {"ha": "center", "va": "center", "fontsize": 8, "clip_on": True, "parse_math": False}
        axes.text(middle, row, name, color=_readable_on(colour), **words)


def _readable_on(colour: str) -> str:
    """Black or white, whichever has more contrast to a colour (WCAG)."""
    linear = [(part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4) for part in to_rgb(colour)]
    light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if (light + 0.05) / 0.05 > 1.05 / (light + 0.05) else "white"


def heat_figure(explanation: Explanation, numbers: Sequence[int], frames: Sequence[np.ndarray]) -> Figure:
    """Frames of a video, uint8 (H, W, 3), above the same with their heat, with their times and the scale of the colours."""
    height, width = frames[0].shape[:2]
    side = 11.0 / len(frames)
    figure, axes = new_figure(12.0, 2 * side * height / width + 0.75, rows=2, columns=len(frames), squeeze=False)
    for column, (number, frame) in enumerate(zip(numbers, frames, strict=True)):
        axes[0, column].imshow(frame)
        axes[1, column].imshow(heated(frame, explanation.clip_at(number).at(number), explanation.box))
        axes[0, column].set_title(f"{explanation.shown[number]:.2f} s", fontsize=9)
    for axis in axes.flat:
        axis.axis("off")
    clip = explanation.clip_at(numbers[0])
    title = f"Evidence for '{explanation.label}' (score {clip.score:.2f} in this clip)"
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", parse_math=False)
    figure.colorbar(ScalarMappable(cmap=HEAT), ax=axes, shrink=0.8, pad=0.01, label="heat")
    return figure


def heated(frame: np.ndarray, heat: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """The frame, uint8 (H, W, 3), in grey under the colours of the heat (H', W') from 0 to 1; darker what was not seen."""
    height, width = frame.shape[:2]
    top, left = round(box[0] * height), round(box[1] * width)
    bottom, right = round((box[0] + box[2]) * height), round((box[1] + box[3]) * width)
    size = (max(right - left, 1), max(bottom - top, 1))
    smooth = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    colours = colormaps[HEAT](smooth)[..., :3] * 255
    share = (MAX_OPACITY * np.sqrt(smooth))[..., None]
    grey = 0.7 * frame.mean(2, keepdims=True).repeat(3, 2)
    result = (0.5 * grey).astype(np.uint8)
    seen = slice(top, top + size[1]), slice(left, left + size[0])
    result[seen] = (1 - share) * grey[seen] + share * colours
    return result
