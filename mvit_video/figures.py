"""Pictures with axes and text, drawn without any window: curves of a run, strips of frames."""

import io
import re
import warnings
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

DPI = 110
MAX_POINTS = 4000  # of a curve that is drawn
MEASURES = {"top1": "top-1 in %", "mean_average_precision": "mean average precision in %"}  # records have one of them


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **arguments):
    """A figure in inches with its axes, drawn without any window; text is laid out so that nothing is cut off."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **arguments)


def png(figure: Figure) -> bytes:
    """Letters that no font has here, such as those of a class name in Chinese, are drawn as boxes without a word."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(content, format="png", dpi=DPI)
    return content.getvalue()


def svg(figure: Figure, prefix: str) -> str:
    """The figure as an element of a page whose text and axes take the page's own colour; names in it begin with `prefix`."""
    for axes in figure.axes:
        axes.patch.set_visible(False)
        if (legend := axes.get_legend()) is not None:
            legend.get_frame().set_visible(False)
    content = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(content, format="svg", dpi=2 * DPI, transparent=True, metadata={"Date": None})
    text = content.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)  # which a page does not need
    text = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{prefix}", text)
    return re.sub(r"(fill|stroke): #000000", r"\1: currentColor", text)


def curves(steps: Sequence[dict], validations: Sequence[dict]) -> Figure:
    """Loss and accuracy over the epochs: the training batches, smoothed, and the validations. Records of metrics.jsonl.

    Records without a number of that name are left out of its curve; pre-training, which has no accuracy, has one curve.
    """
    measured = not steps or any(name in record for name in MEASURES for record in (*steps, *validations))
    keys = ("loss", measure_of((*steps, *validations))) if measured else ("loss",)
    figure, panels = new_figure(4.8 * len(keys), 3.4, columns=len(keys), squeeze=False)
    for axes, key in zip(panels[0], keys, strict=True):
        _draw_curve(axes, key, steps, validations)
    return figure


def measure_of(records: Sequence[dict]) -> str:
    """What the accuracy of these records is called: with several labels per video the mean average precision."""
    return next((name for name in MEASURES if any(name in record for record in records)), "top1")


def loss_and_accuracy(steps: Sequence[dict], validations: Sequence[dict]) -> tuple[Figure, Figure]:
    """The two halves of `curves`, each a figure of its own."""
    figures = []
    for key, records in (("loss", ()), (measure_of((*steps, *validations)), validations)):
        figure, axes = new_figure(5.0, 3.4)
        _draw_curve(axes, key, steps, records)
        figures.append(figure)
    return figures[0], figures[1]


def _draw_curve(axes, key: str, steps: Sequence[dict], validations: Sequence[dict] = ()) -> None:
    epochs, values = _curve(steps, key)
    if len(values):
        thin = slice(None, None, max(len(values) // MAX_POINTS, 1))
        axes.plot(epochs[thin], values[thin], color="#1f6feb", alpha=0.4, linewidth=0.8, label="training batch")
        axes.plot(epochs[thin], smoothed(values)[thin], color="#1f6feb", label="training, smoothed")
    for name, style, colour, label in (
        (key, "o-", "#d1542c", "validation"),
        (f"ema_{key}", "s--", "#8a4fbf", "validation, averaged weights"),
    ):
        epochs, values = _curve(validations, name)
        if len(values):
            axes.plot(epochs, values, style, color=colour, label=label)
    axes.set(xlabel="epoch", ylabel=MEASURES.get(key, key))
    axes.grid(alpha=0.3)
    if key in MEASURES:
        axes.set_ylim(-2, 102)
    if axes.lines:
        axes.legend(loc="best", framealpha=0.5)


def curves_of_runs(runs: Mapping[str, tuple[Sequence[dict], Sequence[dict]]]) -> Figure:
    """Loss (training, smoothed) and top-1 (validation) of several runs over the epochs; runs are (steps, validations).

    Names that differ only in a number behind a _ or - at their end, such as ours_0 and ours_1, are seeds: one colour.
    """
    figure, panels = new_figure(9.6, 3.8, columns=2)
    colours: dict[str, str] = {}
    labels: dict[str, Line2D] = {}
    for name, (steps, validations) in runs.items():
        stem = re.sub(r"[_-]\d+$", "", name) or name
        colour = colours.setdefault(stem, f"C{len(colours)}")
        epochs, losses = _curve(steps, "loss")
        thin = slice(None, None, max(len(losses) // MAX_POINTS, 1))
        panels[0].plot(epochs[thin], smoothed(losses)[thin], color=colour, linewidth=1.0)
        [line] = panels[1].plot(
            *_curve(validations, measure_of(validations)), "o-", color=colour, linewidth=1.0, markersize=3
        )
        labels.setdefault(stem, line)
    measured = MEASURES[measure_of([record for _, validations in runs.values() for record in validations])]
    for axes, text in zip(panels, ("training loss, smoothed", f"validation {measured}"), strict=True):
        axes.set(xlabel="epoch", ylabel=text)
        axes.grid(alpha=0.3)
    legend_as_named(panels[1], list(labels.values()), list(labels), loc="best")
    return figure


def legend_as_named(axes, lines: Sequence, names: Sequence[str], **arguments) -> None:
    """A legend whose names may hold anything: Matplotlib leaves out those with a leading _, and reads formulas between $."""
    legend = axes.legend(lines, ["x" for _ in lines], **arguments)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set(text=name, parse_math=False)


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


def frame_strips(strips: Sequence[tuple[np.ndarray, str]], title: str = "") -> Figure:
    """One row of frames per video, uint8 (T, H, W, 3), with a caption above it."""
    rows = [(_side_by_side(frames), caption) for frames, caption in strips]
    height, width = rows[0][0].shape[:2]
    figure, axes = new_figure(9.6, len(rows) * (9.6 * height / width + 0.3), len(rows), squeeze=False)
    if title:
        figure.suptitle(title.replace("$", r"\$"), fontsize=9, wrap=True)  # wrapping takes no heed of parse_math
    for axis, (picture, caption) in zip(axes[:, 0], rows, strict=True):
        axis.imshow(picture)
        axis.axis("off")
        axis.set_title(caption, loc="left", fontsize=10, parse_math=False)
    return figure


def _side_by_side(frames: np.ndarray, gap: int = 2) -> np.ndarray:
    """uint8 (T, H, W, 3) -> (H, T·(W + gap), 4) with transparent gaps."""
    opaque = np.pad(frames, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=255)
    return np.concatenate(list(np.pad(opaque, ((0, 0), (0, 0), (0, gap), (0, 0)))), axis=1)
