"""Arrays in, numbers out. Accuracies are in percent; a video without scores counts as wrong."""

# n videos, K classes. scores (n, K), labels (n,), decoded (n,) bool: False where a video gave no scores.
# Multi-label: truth (n, K) bool in place of labels.

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, lgamma, log, sqrt

import numpy as np

CALIBRATION_BINS = 15
Z_95 = 1.959963984540054  # a standard normal number lies between −this and this with 95 %


def top_k_hits(scores: np.ndarray, labels: np.ndarray, decoded: np.ndarray, k: int) -> np.ndarray:
    """Whether each video's label is among the k best scores, (n,) bool; ties go to the lower class number."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return (best == labels[:, None]).any(1) & decoded


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, decoded: np.ndarray, k: int) -> float:
    """Share of the videos whose label is among the k best scores."""
    return 100.0 * float(top_k_hits(scores, labels, decoded, k).mean())


def mean_class_accuracy(scores: np.ndarray, labels: np.ndarray, decoded: np.ndarray) -> float:
    """Mean over the classes that occur of each class's top-1 accuracy."""
    return mean_over_classes(top_k_hits(scores, labels, decoded, 1), labels, np.ones(len(labels)))


def mean_over_classes(hits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Mean over the classes that occur of each one's share of hits in percent; a video counts `weights` times."""
    counts = np.bincount(labels, weights)
    right = np.bincount(labels, weights * hits)
    return 100.0 * float((right[counts > 0] / counts[counts > 0]).mean())


def best_thresholds(scores: np.ndarray, truth: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """For each class the threshold with the best F1, halfway between two scores: (K,). 0.5 for a class without videos."""
    return np.array([_best_threshold(*pair) for pair in zip(scores[decoded].T, truth[decoded].T, strict=True)])


def _best_threshold(scores: np.ndarray, truth: np.ndarray) -> float:
    if not truth.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order].astype(np.float64), truth[order].cumsum()
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + truth.sum())
    f1[:-1][ranked[:-1] == ranked[1:]] = -1  # equal scores are on one side
    best = int(f1.argmax())
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float((ranked[best] + below) / 2)


def confusion_matrix(scores: np.ndarray, labels: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """(K, K) counts: rows are true classes, columns predicted ones; videos without scores are in no column."""
    matrix = np.zeros((scores.shape[1],) * 2, dtype=np.int64)
    np.add.at(matrix, (labels[decoded], scores[decoded].argmax(1)), 1)
    return matrix


def confused_pairs(matrix: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """(true, predicted, videos) of the `count` largest numbers beside the diagonal, largest first."""
    beside = matrix * ~np.eye(len(matrix), dtype=bool)
    places = np.argsort(-beside, axis=None, kind="stable")[:count]
    rows, columns = np.unravel_index(places, matrix.shape)
    pairs = zip(rows.tolist(), columns.tolist(), beside[rows, columns].tolist(), strict=True)
    return [pair for pair in pairs if pair[2]]


def cluster_order(matrix: np.ndarray) -> list[int]:
    """Order classes so that those confused with each other are neighbours; (K, K) confusions.

    The two groups with the largest mean confusion, over both directions, are joined until one is left. Of the four ways
    to concatenate two groups, the one whose adjacent classes are confused most is chosen; a tie keeps the lower class first.
    """
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    near = share + share.T
    groups = [[place] for place in range(len(matrix))]
    between = near.copy()  # mean confusion between groups; −1 where a group is gone
    np.fill_diagonal(between, -1.0)
    for _ in range(len(groups) - 1):
        first, second = sorted(divmod(int(between.argmax()), len(matrix)))
        sizes = len(groups[first]), len(groups[second])
        joined = (between[first] * sizes[0] + between[second] * sizes[1]) / sum(sizes)
        joined[between[first] < 0] = -1.0
        between[first], between[:, first] = joined, joined
        between[second], between[:, second] = -1.0, -1.0
        between[first, first] = -1.0
        groups[first] = _end_to_end(groups[first], groups[second], near)
    return groups[0]


def _end_to_end(one: list[int], other: list[int], near: np.ndarray) -> list[int]:
    ways = [(left, right) for left in (one, one[::-1]) for right in (other, other[::-1])]
    left, right = max(ways, key=lambda way: near[way[0][-1], way[1][0]])
    return left + right


@dataclass(frozen=True)
class Calibration:
    """Decoded videos in bins of equal width by the score of their predicted class: how many, mean score, share right."""

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float | None:
        """Expected calibration error: the mean distance of score and share right over the videos; None without any."""
        gaps = np.abs(self.confidence - self.accuracy)
        return float((self.counts * gaps).sum() / self.counts.sum()) if self.counts.any() else None


def calibration(
    scores: np.ndarray, labels: np.ndarray, decoded: np.ndarray, bins: int = CALIBRATION_BINS
) -> Calibration:
    """Bins (i/bins, (i+1)/bins]; shares from 0 to 1, and 0 in an empty bin."""
    best = scores[decoded].max(1)
    right = scores[decoded].argmax(1) == labels[decoded]
    places = np.clip(np.ceil(best.astype(np.float64) * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    sums = (np.bincount(places, values, bins) / np.maximum(counts, 1) for values in (best, right))
    return Calibration(counts, *sums)


def average_precisions(
    scores: np.ndarray, truth: np.ndarray, decoded: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Each class's average precision from 0 to 1, (K,); NaN for a class without positives.

    The sum over the thresholds, highest first, of the precision there times the recall that it adds. Videos without
    scores come last of all. A video counts `weights` times.
    """
    weights = np.ones(len(truth)) if weights is None else weights
    return ranked_precisions(scores, truth, decoded)(weights)


def ranked_precisions(scores: np.ndarray, truth: np.ndarray, decoded: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """`average_precisions` as a function of the weights: each class's videos are sorted once, whatever they weigh."""
    ranked = np.where(decoded[:, None], scores, -np.inf)
    classes = [_ranking(ranked[:, place], truth[:, place]) for place in range(truth.shape[1])]
    return lambda weights: np.fromiter((_average_precision(*one, weights) for one in classes), np.float64, len(classes))


def _ranking(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The videos with the highest score first, which of them are positive, and the last place of each threshold."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(scores[order][1:] != scores[order][:-1]), len(order) - 1)
    return order, truth[order], ends


def _average_precision(order: np.ndarray, truth: np.ndarray, ends: np.ndarray, weights: np.ndarray) -> float:
    found = np.cumsum(weights[order] * truth)
    if not len(found) or found[-1] == 0:
        return float("nan")
    seen = np.cumsum(weights[order])
    precision = found[ends] / np.maximum(seen[ends], np.finfo(np.float64).tiny)
    return float((np.diff(found[ends], prepend=0.0) * precision).sum() / found[-1])


def mean_average_precision(scores: np.ndarray, truth: np.ndarray, decoded: np.ndarray) -> float | None:
    """Mean over the classes with positives, in percent; None where no class has any."""
    return mean_precision(average_precisions(scores, truth, decoded))


def mean_precision(values: np.ndarray) -> float | None:
    """The mean in percent of average precisions, those that are NaN left out; None where all are."""
    return None if np.isnan(values).all() else 100.0 * float(np.nanmean(values))


def bootstrap(statistic: Callable[[np.ndarray], list[float]], num_videos: int, resamples: int, seed: int) -> np.ndarray:
    """Values of a statistic when the videos are drawn again with replacement: (resamples, numbers that it returns).

    `statistic` gets how often each video has been drawn, (n,) float.
    """
    rng = np.random.default_rng(seed)
    draws = (rng.integers(num_videos, size=num_videos) for _ in range(resamples))
    return np.array([statistic(np.bincount(draw, minlength=num_videos).astype(np.float64)) for draw in draws])


def interval(values: np.ndarray) -> list[float]:
    """The middle 95 % of bootstrap values: [low, high]."""
    return np.percentile(values, [2.5, 97.5]).tolist()


def wilson(hits: int, count: int) -> list[float]:
    """Wilson's score interval of `hits` out of `count`, 95 %, in percent: [low, high].

    For 0 of 8 it is 0 to 32.4, where a bootstrap would give 0 to 0. Wilson, JASA 22 (1927).
    """
    share, square = hits / count, Z_95**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    reach = Z_95 / (1 + square / count) * sqrt(share * (1 - share) / count + square / (4 * count**2))
    low = 0.0 if hits == 0 else max(middle - reach, 0.0)  # exactly the ends, which rounding misses
    high = 1.0 if hits == count else min(middle + reach, 1.0)
    return [100 * low, 100 * high]


def paired_difference(one: np.ndarray, other: np.ndarray) -> list[float]:
    """95 % interval of the second's share of hits minus the first's, in percent points, (n,) bool each: [low, high].

    Newcombe's method 10 for paired proportions (Statistics in Medicine 17, 1998): Wilson's intervals of the two, joined
    by their correlation. Two that are right on the same 8 of 8 videos may differ, so it is wider than nothing there.
    """
    count = len(one)
    both, neither = int((one & other).sum()), int((~one & ~other).sum())
    only_one, only_other = int((one & ~other).sum()), int((~one & other).sum())
    first, second = (both + only_one) / count, (both + only_other) / count
    (low1, high1), (low2, high2) = (np.array(wilson(int(hits.sum()), count)) / 100 for hits in (one, other))
    product = float(both * neither - only_one * only_other)
    if product > 0:
        product = max(product - count / 2, 0.0)  # his continuity correction
    scale = (both + only_one) * (only_other + neither) * (both + only_other) * (only_one + neither)
    correlation = product / sqrt(scale) if scale else 0.0
    below, above = (
        sqrt(max(near**2 - 2 * correlation * near * far + far**2, 0.0))
        for near, far in ((second - low2, high1 - first), (high2 - second, first - low1))
    )
    difference = second - first
    return [100 * (difference - below), 100 * (difference + above)]


def mcnemar(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Videos that only one of two answers, (n,) bool each, has right, and the exact two-sided p of such a split by chance."""
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    count, fewer = only_one + only_other, min(only_one, only_other)
    chances = (
        exp(lgamma(count + 1) - lgamma(place + 1) - lgamma(count - place + 1) - count * log(2))
        for place in range(fewer + 1)
    )
    return {
        "both_right": int((one & other).sum()),
        "only_a_right": only_one,
        "only_b_right": only_other,
        "both_wrong": int((~one & ~other).sum()),
        "p_value": min(1.0, 2 * sum(chances)),
    }
