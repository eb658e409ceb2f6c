"""Find videos that show the same by their fingerprints (see data/video/fingerprint.py)."""

# N videos, T moments, P cells of a frame

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

MOTION_LIMIT = 0.1
"""Of the motion in two videos, the share that may differ. Measured: docs/browse.md."""
STILL_LIMIT = 0.03
"""Of the contrast in two videos, the share that their mean frames may differ by."""
NOISE = 2.0  # grey levels: videos that move less than this are compared as if they moved so much
LEAST_CONTRAST = 2.0  # grey levels, of which a nearly even picture is thought to have so many
SLACK = 0.005  # of a length, beside one frame, that copies may differ by
BLOCK = 512  # videos that are compared with all others at once


def distances(fingerprints: np.ndarray, seconds: np.ndarray, fps: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(first, block): rows first, first + 1, ... of the matrix of distances between videos; up to 1 is the same.

    Fingerprints are uint8 (N, T, S, S), lengths and rates (N,). Videos whose lengths differ by more than a frame of the lower
    rate are infinitely far apart: a copy lasts as long, while takes of one scene, which look alike, seldom do.

    Brightness and contrast are normalised. What two videos differ by is compared with what moves in them, not with the
    whole picture: before a fixed camera different videos have nearly all of their picture in common.
    """
    still, motion, energy = _parts(fingerprints)
    for first in range(0, len(still), BLOCK):
        rows = slice(first, first + BLOCK)
        moving = _mean_square(motion[rows], motion) / (energy[rows, None] + energy)
        resting = _mean_square(still[rows], still)
        found = np.maximum(moving / MOTION_LIMIT, resting / STILL_LIMIT)
        slack = 1 / np.minimum(fps[rows, None], fps) + SLACK * np.maximum(seconds[rows, None], seconds)
        found[np.abs(seconds[rows, None] - seconds) > slack] = np.inf
        yield first, found


def _parts(fingerprints: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean frames (N, P), what moves before them (N, T·P), and how much that is (N,)."""
    count, moments = fingerprints.shape[:2]
    grey = fingerprints.reshape(count, moments, -1).astype(np.float32)
    contrast = np.maximum(grey.std((1, 2), keepdims=True), LEAST_CONTRAST)
    grey = (grey - grey.mean((1, 2), keepdims=True)) / contrast
    still = grey.mean(1)
    motion = (grey - still[:, None]).reshape(count, -1)
    return still, motion, (motion**2).mean(1) + (NOISE / contrast[:, 0, 0]) ** 2 / 2


def _mean_square(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Mean squared differences of each pair of rows."""
    squares = (some**2).sum(1)[:, None] + (others**2).sum(1) - 2 * some @ others.T
    return np.maximum(squares, 0) / some.shape[1]


def near_duplicates(
    fingerprints: np.ndarray, seconds: np.ndarray, fps: np.ndarray
) -> tuple[list[list[int]], np.ndarray]:
    """Groups of at least two videos that show the same, and each video's distance (N,) to the nearest other one.

    A video belongs to a group if it is the same as one of its members.
    """
    groups, nearest = _Groups(len(fingerprints)), np.full(len(fingerprints), np.inf, np.float32)
    for first, block in distances(fingerprints, seconds, fps):
        rows = np.arange(len(block))
        block[rows, first + rows] = np.inf
        nearest[first : first + len(block)] = block.min(1)
        for row in np.flatnonzero((block <= 1).any(1)).tolist():
            groups.join(first + row, np.flatnonzero(block[row] <= 1).tolist())
    return groups.found(), nearest


class _Groups:
    """Disjoint sets of numbers; the smallest of each is its root."""

    def __init__(self, count: int) -> None:
        self._parents = list(range(count))

    def join(self, one: int, others: Iterable[int]) -> None:
        for other in others:
            low, high = sorted((self._root(one), self._root(other)))
            self._parents[high] = low

    def roots(self) -> list[int]:
        return [self._root(number) for number in range(len(self._parents))]

    def found(self) -> list[list[int]]:
        members: dict[int, list[int]] = {}
        for number, root in enumerate(self.roots()):
            members.setdefault(root, []).append(number)
        return [group for group in members.values() if len(group) > 1]

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number


def numbers_of_groups(groups: Sequence[Sequence[int]], count: int) -> np.ndarray:
    """(count,) the group of each of `count` videos, those in none being alone in one of theirs; groups that overlap are one."""
    joined = _Groups(count)
    for group in groups:
        joined.join(group[0], group[1:])
    return np.array(joined.roots(), np.int64)
