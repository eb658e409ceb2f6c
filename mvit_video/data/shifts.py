"""Moves of an image along one axis, shears and translations, with the pixels of Pillow's bicubic affine transform.

Pillow interpolates 16 pixels for each one, in double precision. Where rows or columns stay what they are, 4 decide, and single
precision tells the whole number that Pillow cuts its result down to, but where the result is within `UNSURE` of one: there
Pillow's arithmetic is repeated. That takes less than half of Pillow's time, for the same bits.
"""

# H/W pixels of the source, R/K rows and columns of the result, C=3 channels

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = tuple[float, float, float, float, float, float]  # see `randaugment`

UNSURE = 1e-3  # of a grey level; single precision errs by a tenth of it at most
TAPS = np.arange(-1, 3)  # from the pixel before a place to the second one after it


def moves_along_one_axis(matrix: Matrix) -> bool:
    """Whether rows stay rows at whole places, or columns columns."""
    a, b, c, d, e, f = matrix
    return a == e == 1 and ((d == 0 and f == int(f)) or (b == 0 and c == int(c)))


@dataclass(frozen=True)
class Shift:
    """A move of images of (H, W) pixels for which `moves_along_one_axis` holds, to `shape` (R, K); grey `fill` where it shows no image."""

    matrix: Matrix
    source: tuple[int, int]
    shape: tuple[int, int]
    fill: int

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 (H, W, C) -> (R, K, C)."""
        pixels = image.reshape(-1, 3)
        known = pixels.take(self._read, axis=0)
        known = known.reshape(len(known), -1)
        first, *others = self._taps(known)
        differ = np.logical_or.reduce([other != first for other in others])  # where they do not, the value is theirs
        values, rest = self._interpolated(known)
        np.abs(np.subtract(values, np.rint(values, out=rest), out=rest), out=rest)
        unsure = np.flatnonzero((rest < UNSURE) & differ & self._shows)
        values += UNSURE / 2
        moved = np.clip(values, 0, 255, out=values).astype(np.uint8)
        moved.ravel()[unsure] = self._as_pillow(pixels, unsure)
        moved[~self._shows] = self.fill
        return moved.reshape(*self.shape, 3)

    def _interpolated(self, known: NDArray[np.uint8]) -> NDArray[np.float32]:
        """In single precision, and room for as many: (2, R, 3 · K). The memory is kept, since new memory takes longer than the work."""
        floats, (values, rest) = self._room
        np.copyto(floats, known)
        first, *others = zip(self._weights, self._taps(floats), strict=True)
        np.multiply(*first, out=values)
        for weights, tap in others:
            values += np.multiply(weights, tap, out=rest)
        return self._room[1]

    @cached_property
    def _room(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        known = len(self._read), 3 * self._read.shape[1]
        return np.empty(known, np.float32), np.empty((2, self.shape[0], 3 * self.shape[1]), np.float32)

    def _taps(self, known: NDArray[Any]) -> list[NDArray[Any]]:
        """The four values that each one of the result is made of, (R, 3 · K) each."""
        rows, length = self.shape[0], 3 * self.shape[1]
        if self._sideways:
            return [known[:, 3 * tap : 3 * tap + length] for tap in range(4)]
        return [known[tap : tap + rows] for tap in range(4)]

    def _as_pillow(self, pixels: NDArray[np.uint8], places: NDArray[np.intp]) -> NDArray[np.uint8]:
        """The values of the result at `places`, in double precision in Pillow's order of operations."""
        place, channel = np.divmod(places, 3)
        first, share = self._first.ravel()[place], self._share.ravel()[place]
        other = self._other.ravel()[place]
        height, width = self.source
        along = np.clip(first + TAPS[:, None], 0, (width if self._sideways else height) - 1)
        index = other * width + along if self._sideways else along * width + other
        v1, v2, v3, v4 = pixels.ravel()[3 * index + channel].astype(np.float64)
        value = v2 + share * (-v1 + v3 + share * (2 * (v1 - v2) + v3 - v4 + share * (-v1 + v2 - v3 + v4)))
        return np.clip(value, 0, 255).astype(np.uint8)

    @cached_property
    def _sideways(self) -> bool:
        _, _, _, d, _, f = self.matrix
        return d == 0 and f == int(f)

    @cached_property
    def _from(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where each pixel is taken from, x and y (R, K), by Pillow's arithmetic."""
        a, b, c, d, e, f = self.matrix
        x, y = np.arange(self.shape[1])[None] + 0.5, np.arange(self.shape[0])[:, None] + 0.5
        return a * x + b * y + c, d * x + e * y + f

    @cached_property
    def _shows(self) -> NDArray[np.bool_]:
        """Whether a value of the result, (R, 3 · K), is of the image."""
        (x, y), (height, width) = self._from, self.source
        return np.repeat((x >= 0) & (x < width) & (y >= 0) & (y < height), 3, axis=1)

    @cached_property
    def _first(self) -> NDArray[np.intp]:
        """The pixel at or before each place, along the move."""
        return np.floor(self._from[0 if self._sideways else 1] - 0.5).astype(np.intp)

    @cached_property
    def _share(self) -> NDArray[np.float64]:
        """How far each place lies beyond that pixel."""
        return self._from[0 if self._sideways else 1] - 0.5 - self._first

    @cached_property
    def _other(self) -> NDArray[np.intp]:
        """The row that each pixel is taken from, or the column."""
        most = self.source[0 if self._sideways else 1] - 1
        return np.clip(np.floor(self._from[1 if self._sideways else 0]).astype(np.intp), 0, most)

    @cached_property
    def _read(self) -> NDArray[np.intp]:
        """Numbers of the pixels that each row of the result is made of, (R, K + 3), or each column, (R + 3, K)."""
        (height, width), (rows, columns) = self.source, self.shape
        if self._sideways:
            along = self._first[:, :1] + np.arange(-1, columns + 2)
            return self._other[:, :1] * width + np.clip(along, 0, width - 1)
        along = self._first[:1] + np.arange(-1, rows + 2)[:, None]
        return np.clip(along, 0, height - 1) * width + self._other[:1]

    @cached_property
    def _weights(self) -> list[NDArray[np.float32]]:
        """Of the four taps, one for each row of the result, or for each value of a row."""
        d = self._share[:, :1] if self._sideways else np.repeat(self._share[0], 3)
        weights = (-d + 2 * d**2 - d**3, 1 - 2 * d**2 + d**3, d + d**2 - d**3, -(d**2) + d**3)
        return [weight.astype(np.float32) for weight in weights]
