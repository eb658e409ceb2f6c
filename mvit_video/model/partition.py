"""Partitions of a T×H×W grid into groups of tokens that attend to each other, and their inverses, as pure reshapes.

Groups become the batch of an attention, which needs no changes. The drawings show a 4×4 grid of one frame; equal letters
are one group.

Sources: windows and shifted windows arXiv 2103.14030 and 2106.13230, grids arXiv 2204.01697, stripes arXiv 2107.00652.
"""

# x (B, T, H, W, C) -> groups (B·n, t·h·w, C): n groups of t×h×w tokens, both in raster order

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int, int]


def windows(x: Tensor, size: Grid) -> Tensor:
    """Windows of neighbouring tokens; `size` must divide the grid.

    A window of 1×2×2:

        a a b b
        a a b b
        c c d d
        c c d d

    Stripes are windows as long as the grid: 1×4×2 gives `a a b b` in every row, 1×2×4 two rows of a above two of b.
    """
    batch, frames, height, width, channels = x.shape
    t, h, w = size
    x = x.reshape(batch, frames // t, t, height // h, h, width // w, w, channels)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, t * h * w, channels)


def from_windows(groups: Tensor, size: Grid, thw: Grid) -> Tensor:
    """Inverse of `windows` for a grid thw: (B·n, t·h·w, C) -> (B, T, H, W, C)."""
    (t, h, w), (frames, height, width) = size, thw
    x = groups.reshape(-1, frames // t, height // h, width // w, t, h, w, groups.shape[-1])
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, frames, height, width, groups.shape[-1])


def grids(x: Tensor, size: Grid) -> Tensor:
    """Dilated groups: each has `size` equally spaced tokens that span the whole grid.

    A grid of 1×2×2:

        a b a b
        c d c d
        a b a b
        c d c d
    """
    batch, frames, height, width, channels = x.shape
    t, h, w = size
    x = x.reshape(batch, t, frames // t, h, height // h, w, width // w, channels)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(-1, t * h * w, channels)


def from_grids(groups: Tensor, size: Grid, thw: Grid) -> Tensor:
    """Inverse of `grids` for a grid thw: (B·n, t·h·w, C) -> (B, T, H, W, C)."""
    (t, h, w), (frames, height, width) = size, thw
    x = groups.reshape(-1, frames // t, height // h, width // w, t, h, w, groups.shape[-1])
    return x.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(-1, frames, height, width, groups.shape[-1])


def axis_windows(length: int, window: int, shift: int) -> list[tuple[int, int, int]]:
    """Windows of one axis, shifted by `shift`: (start, stop, window size) of each run of equal windows.

    Eight tokens, windows of 4: `a a a a b b b b` without a shift, `a a b b b b c c` with a shift of 2. Windows are cut off
    at the ends instead of rolled to the other side, so no mask is needed.
    """
    assert 0 <= shift < window or shift == 0, f"shift {shift} is not smaller than the window {window}"
    if shift == 0 or length <= window:
        return [(0, length, min(window, length))]
    last = shift + (length - shift) // window * window
    runs = [(0, shift, shift), (shift, last, window), (last, length, length - last)]
    return [run for run in runs if run[0] < run[1]]


def shifted_windows(x: Tensor, size: Grid, shift: Grid) -> list[tuple[Tensor, Grid]]:
    """Shifted windows: the groups of each window size that occurs, and that size. `size` must divide the grid.

    A window of 1×2×2 shifted by one row and one column gives groups of 1, 2 and 4 tokens:

        a b b c
        d e e f
        d e e f
        g h h i
    """
    axes = [axis_windows(*axis) for axis in zip(x.shape[1:4], size, shift, strict=True)]
    groups = []
    for (t0, t1, t), (h0, h1, h), (w0, w1, w) in product(*axes):
        groups.append((windows(x[:, t0:t1, h0:h1, w0:w1], (t, h, w)), (t, h, w)))
    return groups


def from_shifted_windows(groups: list[Tensor], size: Grid, shift: Grid, thw: Grid) -> Tensor:
    """Inverse of `shifted_windows`, groups in the same order: (B, T, H, W, C)."""
    axes = [axis_windows(*axis) for axis in zip(thw, size, shift, strict=True)]
    rest = iter(groups)

    def join(runs: tuple[tuple[int, int, int], ...]) -> Tensor:
        axis = len(runs)
        if axis < 3:
            return torch.cat([join((*runs, run)) for run in axes[axis]], 1 + axis)
        lengths = [stop - start for start, stop, _ in runs]
        t, h, w = (window for _, _, window in runs)
        return from_windows(next(rest), (t, h, w), (lengths[0], lengths[1], lengths[2]))

    return join(())


def padded(x: Tensor, size: Grid, both_sides: bool = False) -> Tensor:
    """x zero-padded so that windows of `size` divide its grid: at the end, or half (rounded down) at the start of each axis."""
    amounts: list[int] = [0, 0]
    for length, window in reversed(list(zip(x.shape[1:4], size, strict=True))):
        missing = -length % window
        before = missing // 2 if both_sides else 0
        amounts += [before, missing - before]
    return F.pad(x, amounts) if any(amounts) else x


def unpadded(x: Tensor, thw: Grid, both_sides: bool = False) -> Tensor:
    """Inverse of `padded`: the grid thw without its padding."""
    for axis, length in enumerate(thw, start=1):
        extra = x.shape[axis] - length
        x = x.narrow(axis, extra // 2 if both_sides else 0, length)
    return x


def largest_divisor(length: int, limit: int) -> int:
    """The largest divisor of `length` up to `limit`: windows in time, which is never padded."""
    return next(size for size in range(min(limit, length), 0, -1) if length % size == 0)
