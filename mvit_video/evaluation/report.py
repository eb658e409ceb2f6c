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

from mvit_video.evaluation.films import Film
from mvit_video.evaluation.metrics import Calibration, cluster_order
from mvit_video.paths import write_whole

DPI = 110
MAX_POINTS = 4000  # of a curve that is drawn


@dataclass(frozen=True)
class Number:
    """A headline figure with what it is of."""

    value: str
    name: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, a sentence or two, and what is under it: a picture, films, a matrix or a table."""

    title: str
    text: str
    figure: Figure | None = None
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str | float]] = ()
    films: Sequence[Film] = ()
    matrix: dict | None = None
    """A confusion matrix that can be zoomed: see `matrix_data`."""

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
    """Loss and accuracy over the epochs: the training batches, smoothed, and the validations. Records of metrics.jsonl.

    Records without a number of that name are left out of its curve.
    """
    figure, panels = new_figure(9.6, 3.4, columns=2)
    for axes, key, name in zip(panels, ("loss", "top1"), ("loss", "top-1 in %"), strict=True):
        epochs, values = _curve(steps, key)
        if len(values):
            thin = slice(None, None, max(len(values) // MAX_POINTS, 1))
            axes.plot(epochs[thin], values[thin], color="#9db8e8", linewidth=0.8, label="training batch")
            axes.plot(epochs[thin], smoothed(values)[thin], color="#1f6feb", label="training, smoothed")
        axes.set(xlabel="epoch", ylabel=name)
        axes.grid(alpha=0.3)
    epochs, values = _curve(validations, "top1")
    if len(values):
        panels[1].plot(epochs, values, "o-", color="#d1542c", label="validation")
    panels[1].set_ylim(-2, 102)
    for axes, place in zip(panels, ("upper right", "lower right"), strict=True):
        if axes.lines:
            axes.legend(loc=place)
    return figure


def _curve(records: Sequence[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(epochs, values) of the records that have both; values that are no numbers are left out."""
    pairs = [(record["epoch"], record[key]) for record in records if "epoch" in record and key in record]
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    epochs, values = table[np.isfinite(table).all(1)].T
    return epochs, values


def smoothed(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Running mean over `share` of the curve, shorter at its ends."""
    half = max(int(len(values) * share / 2), 1)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - half, 0)
    last = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def matrix_data(matrix: np.ndarray, classes: Sequence[str], videos: np.ndarray) -> dict:
    """A confusion matrix for the page: classes that are mistaken for one another side by side, and only cells above 0.

    `videos` (K,) are each class's videos, those that could not be decoded included.
    """
    order = cluster_order(matrix)
    ordered = matrix[np.ix_(order, order)]
    cells = [[int(row), int(column), int(ordered[row, column])] for row, column in np.argwhere(ordered)]
    return {"names": [classes[place] for place in order], "totals": videos[order].tolist(), "cells": cells}


def reliability(bins: Calibration) -> Figure:
    """Share right over score, and how many videos have such a score; a well calibrated network is on the diagonal."""
    figure, (above, below) = new_figure(6.0, 5.4, rows=2, height_ratios=[3, 1], sharex=True)
    width = 1 / len(bins.counts)
    middles = (np.arange(len(bins.counts)) + 0.5) * width
    filled = bins.counts > 0
    above.plot([0, 1], [0, 1], "--", color="#888888", label="score = share right")
    above.bar(middles[filled], bins.accuracy[filled], width * 0.95, color="#9db8e8", label="share right")
    above.plot(bins.confidence[filled], bins.accuracy[filled], "o-", color="#1f6feb", label="at the mean score")
    above.set(ylabel="share right", ylim=(0, 1.03))
    above.legend(loc="upper left", fontsize=9)
    below.bar(middles, bins.counts, width * 0.95, color="#9db8e8")
    below.set(xlabel="score of the predicted class", ylabel="videos", xlim=(0, 1))
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
