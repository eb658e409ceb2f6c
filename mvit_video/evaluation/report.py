"""A report as one page that needs no other file: numbers, pictures, tables, and what they mean in words."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mvit_video.paths import write_whole

DPI = 110


@dataclass(frozen=True)
class Number:
    """A headline figure with what it is of."""

    value: str
    name: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, a sentence or two, and a picture or a table under it."""

    title: str
    text: str
    figure: Figure | None = None
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str | float]] = ()

    @property
    def picture(self) -> str:
        return "" if self.figure is None else base64.b64encode(png(self.figure)).decode("ascii")

    @property
    def width(self) -> int:
        return 0 if self.figure is None else round(self.figure.get_size_inches()[0] * 96)


@dataclass(frozen=True)
class Report:
    title: str
    lead: str
    numbers: Sequence[Number]
    sections: Sequence[Section]
    footer: str

    def write(self, path: str | Path) -> None:
        """Write the page; every text is escaped, so class and file names may hold anything."""
        pages = Environment(
            loader=PackageLoader("mvit_video", "evaluation"), autoescape=True, undefined=StrictUndefined
        )
        write_whole(path, pages.get_template("report.html.j2").render(report=self))


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **arguments):
    """A figure in inches with its axes, drawn without any window; text is laid out so that nothing is cut off."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **arguments)


def png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    return content.getvalue()


def curves(steps: Sequence[dict], validations: Sequence[dict]) -> Figure:
    """Loss and accuracy over the epochs: the training batches, smoothed, and the validations. Records of metrics.jsonl."""
    figure, (left, right) = new_figure(9.6, 3.4, columns=2)
    steps = [record for record in steps if "skipped" not in record]
    epochs = [record["epoch"] for record in steps]
    for axes, key, name in ((left, "loss", "loss"), (right, "top1", "top-1 in %")):
        values = np.array([record[key] for record in steps])
        axes.plot(epochs, values, color="#9db8e8", linewidth=0.8, label="training batch")
        axes.plot(epochs, smoothed(values), color="#1f6feb", label="training, smoothed")
        axes.set(xlabel="epoch", ylabel=name)
        axes.grid(alpha=0.3)
    if validations:
        right.plot(
            [r["epoch"] for r in validations],
            [r["top1"] for r in validations],
            "o-",
            color="#d1542c",
            label="validation",
        )
    right.set_ylim(-2, 102)
    left.legend(loc="upper right")
    right.legend(loc="lower right")
    return figure


def smoothed(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Running mean over `share` of the curve, shorter at its ends."""
    half = max(int(len(values) * share / 2), 1)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - half, 0)
    last = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def confusion_figure(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Counts, true classes in rows; numbers are written where there are few classes, names where they can be read."""
    count = len(classes)
    side = min(max(0.42 * count, 3.0), 12.0)
    figure, axes = new_figure(side + 3.0, side + 2.2)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if count <= 60:
        axes.set_xticks(range(count), classes, rotation=45, ha="right", fontsize=9)
        axes.set_yticks(range(count), classes, fontsize=9)
    if count <= 25:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour, fontsize=9)
    figure.colorbar(picture, ax=axes, shrink=0.7, label="share of the true class")
    return figure


def frame_strips(strips: Sequence[tuple[np.ndarray, str]]) -> Figure:
    """One row of frames per video, uint8 (T, H, W, 3), with a caption above it."""
    rows = [(_side_by_side(frames), caption) for frames, caption in strips]
    height, width = rows[0][0].shape[:2]
    figure, axes = new_figure(9.6, len(rows) * (9.6 * height / width + 0.3), len(rows), squeeze=False)
    for axis, (picture, caption) in zip(axes[:, 0], rows, strict=True):
        axis.imshow(picture)
        axis.axis("off")
        axis.set_title(caption, loc="left", fontsize=10)
    return figure


def _side_by_side(frames: np.ndarray, gap: int = 2) -> np.ndarray:
    """uint8 (T, H, W, 3) -> (H, T·(W + gap), 3) with white gaps."""
    return np.concatenate(list(np.pad(frames, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)), axis=1)
