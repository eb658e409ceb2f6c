"""Compare and fuse two score files of the same videos."""

from pathlib import Path

import numpy as np

from mvit_video.data.lists.class_names import first_difference
from mvit_video.errors import ConfigError
from mvit_video.evaluation import metrics
from mvit_video.evaluation.results import NAMES, RESAMPLES, SEED, measures, weighted_measures
from mvit_video.evaluation.scores_file import load_scores
from mvit_video.evaluation.views import VideoScores


def load_pair(one: str | Path, other: str | Path) -> tuple[VideoScores, VideoScores, tuple[str, ...]]:
    """Two files' scores with their videos in the same order (the first one's), and their classes.

    Raises ConfigError where classes, videos or labels differ: their numbers would not be about the same thing.
    """
    (first, classes), (second, others) = load_scores(one), load_scores(other)
    if classes != others:
        label, a, b = first_difference(classes, others)
        raise ConfigError(
            f"{one} and {other} have different classes: class {label} is '{a}' in one and '{b}' in the other: compare results "
            "of the same classes"
        )
    order, wanted = (np.argsort(np.array(scores.names), kind="stable") for scores in (second, first))
    if [first.names[row] for row in wanted] != [second.names[row] for row in order]:
        raise ConfigError(
            f"{one} and {other} {_other_videos(first.names, second.names)}: compare results of the same videos"
        )
    rows = np.empty(len(order), np.int64)
    rows[wanted] = order
    labels = second.labels[rows]
    if labels.shape != first.labels.shape or not np.array_equal(labels, first.labels):
        place = 0 if labels.shape != first.labels.shape else int(_rows_differ(labels, first.labels).argmax())
        raise ConfigError(
            f"{one} and {other} have different labels for {first.names[place]}: compare results of the same list"
        )
    return first, VideoScores(first.names, labels, second.scores[rows], second.decoded[rows]), classes


def _other_videos(first: list[str], second: list[str]) -> str:
    if alone := sorted(set(first) ^ set(second)):
        holder = "first" if alone[0] in set(first) else "second"
        return f"contain different videos, {len(alone)} are in only one of them, such as {alone[0]} in the {holder}"
    return f"repeat videos a different number of times ({len(first)} and {len(second)} rows)"


def _rows_differ(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one != other).reshape(len(one), -1).any(1)


def fuse(one: VideoScores, other: VideoScores, weights: tuple[float, float] = (1.0, 1.0)) -> VideoScores:
    """The weighted mean of two files' scores; a video that only one file has decoded keeps its scores."""
    shares = np.stack([one.decoded * weights[0], other.decoded * weights[1]])[..., None]
    total = shares.sum(0)
    scores = (shares[0] * one.scores + shares[1] * other.scores) / np.where(total > 0, total, 1)
    return VideoScores(one.names, one.labels, scores.astype(np.float32), one.decoded | other.decoded)


def compare(one: VideoScores, other: VideoScores) -> dict:
    """Accuracy differences, B minus A, in percentage points with paired 95 % intervals.

    Those of top-1 and top-5 are Newcombe's; for the others each resample draws the same videos for both. With one label
    per video, McNemar's counts beside it.
    """
    statistics = weighted_measures(one), weighted_measures(other)
    everyone = np.ones(len(one.names))
    found = np.subtract(statistics[1](everyone), statistics[0](everyone)).tolist()
    drawn = metrics.bootstrap(
        lambda weights: np.subtract(statistics[1](weights), statistics[0](weights)).tolist(),
        *(len(one.names), RESAMPLES, SEED),
    )
    names = ("mean_average_precision",) if one.multi_label else ("top1", "top5", "mean_class_accuracy")
    differences = {
        name: {"difference": value, "interval_95": metrics.interval(values)}
        for name, value, values in zip(names, found, drawn.T, strict=True)
    }
    if one.multi_label:
        return differences
    for k in (1, 5):
        hits = [metrics.top_k_hits(scores.scores, scores.labels, scores.decoded, k) for scores in (one, other)]
        differences[f"top{k}"]["interval_95"] = metrics.paired_difference(*hits)
        if k == 1:
            differences["mcnemar"] = metrics.mcnemar(*hits)
    return differences


def comparison(files: tuple[str, str], weights: tuple[float, float]) -> tuple[dict, VideoScores, tuple[str, ...]]:
    """Results of two files, of their fusion and of their comparison; the fused scores, and the classes."""
    one, other, classes = load_pair(*files)
    fused = fuse(one, other, weights)
    result = {
        "a": {"file": files[0], **measures(one)},
        "b": {"file": files[1], **measures(other)},
        "fusion": {"weights": list(weights), **measures(fused)},
        "b_minus_a": compare(one, other),
        "num_videos": len(one.names),
        "num_classes": len(classes),
        "bootstrap": {"resamples": RESAMPLES, "seed": SEED},
    }
    return result, fused, classes


def comparison_rows(result: dict) -> tuple[list[str], list[list[str]], list[str]]:
    """A comparison as text: columns and rows of a table, and sentences below it."""
    columns = ["", "A", "B", "fusion", "B − A", "95 % interval of B − A"]
    rows = []
    for key, found in result["b_minus_a"].items():
        if key in NAMES:
            values = [f"{result[part][key]:.2f} %" for part in ("a", "b", "fusion")]
            low, high = found["interval_95"]
            rows.append([NAMES[key], *values, f"{found['difference']:+.2f}", f"{low:+.2f} to {high:+.2f}"])
    lines = [f"{letter.upper()} is {result[letter]['file']}" for letter in ("a", "b")]
    if counts := result["b_minus_a"].get("mcnemar"):
        lines.append(
            f"right: both {counts['both_right']}, only A {counts['only_a_right']}, only B {counts['only_b_right']}, "
            f"neither {counts['both_wrong']}; McNemar's exact p = {counts['p_value']:.3g}"
        )
    return columns, rows, lines
