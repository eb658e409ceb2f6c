"""Reports as self-contained HTML pages: numbers, images, tables, and explanations."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from mvit_video.evaluation.metrics import Calibration, cluster_order
from mvit_video.figures import new_figure, svg
from mvit_video.paths import write_whole
from mvit_video.printable import printable
from mvit_video.report.strips import ClipStrip


@dataclass(frozen=True)
class Number:
    """A headline number with its unit and meaning."""

    value: str
    name: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, some text, and a figure, videos, a matrix or a table."""

    title: str
    text: str
    figures: Sequence[Figure] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str | float]] = ()
    strips: Sequence[ClipStrip] = ()
    matrix: dict | None = None
    """A confusion matrix that can be zoomed: see `matrix_data`."""


@dataclass(frozen=True)
class Report:
    title: str
    lead: str
    numbers: Sequence[Number]
    sections: Sequence[Section]
    footer: str

    def write(self, path: str | Path) -> None:
        """Write the page; all text is escaped, so class and file names may contain anything."""
        loader = PackageLoader("mvit_video", "report")
        pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, finalize=_shown)
        pages.filters["svg"] = lambda figure, prefix: Markup(svg(figure, prefix))
        write_whole(path, pages.get_template("report.html.j2").render(report=self))


def _shown(value: object) -> object:
    """Escape bidirectional control characters, which make a name look like another one."""
    return printable(value, keep="\n") if type(value) is str else value


def matrix_data(matrix: np.ndarray, classes: Sequence[str], videos: np.ndarray) -> dict:
    """Data of a confusion matrix for the page: similar classes next to each other, non-zero cells only.

    `videos` (K,) are each class's videos, those that could not be decoded included.
    """
    order = cluster_order(matrix)
    ordered = matrix[np.ix_(order, order)]
    cells = [[int(row), int(column), int(ordered[row, column])] for row, column in np.argwhere(ordered)]
    return {"names": [classes[place] for place in order], "totals": videos[order].tolist(), "cells": cells}


def reliability(bins: Calibration) -> Figure:
    """Plot accuracy over confidence, and the number of videos per bin; a calibrated network is on the diagonal."""
    figure, (above, below) = new_figure(6.0, 5.4, rows=2, height_ratios=[3, 1], sharex=True)
    width = 1 / len(bins.counts)
    part_middles = (np.arange(len(bins.counts)) + 0.5) * width
    filled = bins.counts > 0
    above.plot([0, 1], [0, 1], "--", color="#888888", label="score = share right")
    above.bar(part_middles[filled], bins.accuracy[filled], width * 0.95, color="#9db8e8", label="share right")
    above.plot(bins.confidence[filled], bins.accuracy[filled], "o-", color="#1f6feb", label="at the mean score")
    above.set(ylabel="share right", ylim=(0, 1.03))
    above.legend(loc="best", fontsize=9)
    below.bar(part_middles, bins.counts, width * 0.95, color="#9db8e8")
    below.set(xlabel="score of the predicted class", ylabel="videos", xlim=(0, 1))
    return figure
