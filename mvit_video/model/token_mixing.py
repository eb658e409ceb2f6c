"""Token mixing in MViT: the `token_mixing` syntax, and attention within the groups of tokens it describes.

    all              every query attends to every key
    hwin             windows as large as the stage's grid at crop_size, except in the last block of each later stage
    window 8x7x7     windows of frames × rows × columns
    shifted 8x7x7    windows shifted by half a window
    grid 8x7x7       equally spaced tokens that span the whole grid
    stripes 8x7      columns of width 7 for half of the heads, rows of height 7 for the other half

Sizes are counted in queries. Several kinds, comma-separated, alternate from the first block of each stage.
"""

# B batch, T/H/W query grid, n groups of t×h×w queries, h heads, d channels of a head

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor

from mvit_video.errors import ConfigError, did_you_mean
from mvit_video.model.attention import Tables
from mvit_video.model.heads import Heads
from mvit_video.model.partition import (
    Grid,
    from_grids,
    from_shifted_windows,
    from_windows,
    grids,
    padded,
    shifted_windows,
    unpadded,
    windows,
)

KINDS = ("all", "hwin", "window", "shifted", "grid", "stripes")
Attend = Callable[[Heads, Heads, Heads, Tables, float], Tensor]


@dataclass(frozen=True)
class Mixing:
    """Token mixing of one block: `size` of its groups in queries (t, h, w); None for global attention."""

    kind: str
    size: Grid | None


ALL = Mixing("all", None)


def parse_mixing(text: str) -> list[Mixing]:
    """The comma-separated kinds of a text; ConfigError if one is unknown or has a wrong size."""
    return [_parse_one(part.strip(), text) for part in text.split(",")]


def _parse_one(part: str, text: str) -> Mixing:
    name, _, size = part.partition(" ")
    if name not in KINDS:
        near = did_you_mean(name, KINDS)
        raise ConfigError(f"token_mixing='{text}': '{name}' is unknown{near}: choose from {', '.join(KINDS)}")
    if name in ("all", "hwin"):
        if size:
            raise ConfigError(f"token_mixing='{text}': '{name}' takes no size, not '{size}'")
        return ALL if name == "all" else Mixing("hwin", None)
    count = 2 if name == "stripes" else 3
    if not re.fullmatch(r"\s*[1-9]\d{0,4}" + r"x[1-9]\d{0,4}" * (count - 1), size):
        example = "stripes 8x7" if count == 2 else f"{name} 8x7x7"
        raise ConfigError(
            f"token_mixing='{text}': '{part}' needs {count} whole numbers from 1 to 99999, as in '{example}'"
        )
    numbers = [int(number) for number in size.split("x")]
    return Mixing(name, (numbers[0], numbers[1], numbers[-1]))


def plan_mixing(token_mixing: str | Sequence[str], depths: Sequence[int]) -> list[Mixing]:
    """The mixing of every block, from one text for the network or one per stage. Raises ConfigError."""
    texts = [token_mixing] * len(depths) if isinstance(token_mixing, str) else token_mixing
    if not isinstance(texts, Sequence) or len(texts) != len(depths) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(
            f"token_mixing={token_mixing!r}: expected one text such as 'window 8x7x7', or a list of {len(depths)}, one for each stage"
        )
    plan = []
    for stage, (text, depth) in enumerate(zip(texts, depths, strict=True)):
        kinds = parse_mixing(text)
        for index in range(depth):
            mixing = kinds[index % len(kinds)]
            is_global = mixing.kind == "hwin" and stage > 0 and index == depth - 1
            plan.append(Mixing("global", None) if is_global else mixing)
    return plan


def block_mixing(
    mixing: Mixing, grid: Grid, q_stride: Grid, kv_stride: Grid, num_heads: int, last_stage: bool
) -> tuple[Mixing, Grid]:
    """A block's mixing and kv_stride; `grid` is that of its queries at crop_size. Raises ConfigError.

    hwin's windows are as large as that grid. Its global blocks double the spatial kv_stride, except in the last stage
    (detectron2's MViTv2 backbone).
    """
    if mixing.kind == "hwin":
        mixing = Mixing("window", grid)
    elif mixing.kind == "global" and not last_stage:
        kv_stride = (kv_stride[0], 2 * kv_stride[1], 2 * kv_stride[2])
    check_mixing(mixing, q_stride, kv_stride, num_heads)
    return mixing, kv_stride


def check_mixing(mixing: Mixing, q_stride: Grid, kv_stride: Grid, num_heads: int) -> None:
    """Raise ConfigError if windows of queries do not contain a whole number of (strided) keys."""
    if mixing.kind == "stripes" and num_heads % 2:
        raise ConfigError(
            f"token_mixing='stripes' needs an even number of heads, half for each direction, and a block has {num_heads}: "
            "use num_heads=2, or 'all' for this stage in a list with one text per stage"
        )
    if mixing.size is None:
        return
    for side, q, kv in zip(mixing.size[1:], q_stride[1:], kv_stride[1:], strict=True):
        step = _window_step(q, kv)
        if side % step:
            below = side // step * step
            near = f"{below} or {below + step}" if below else str(step)
            raise ConfigError(
                f"token_mixing='{mixing.kind}' with a side of {side}: keys are strided by {kv} where queries are strided by "
                f"{q}, so sides must be multiples of {step}, the nearest {near}, or keys less strided (kv_stride)"
            )


def _window_step(q_stride: int, kv_stride: int) -> int:
    """The smallest window of queries with a whole number of keys."""
    return kv_stride // gcd(q_stride, kv_stride)


@dataclass(frozen=True)
class Groups:
    """The partition of one grid: windows of `size`, shifted by `shift`, or a dilated grid of `size`."""

    kind: str
    size: Grid
    shift: Grid

    def split(self, part: Heads) -> list[tuple[Heads, Grid]]:
        """Groups as a batch without class token, and their grid, for each group size that occurs."""
        grid = padded(part.grid.unflatten(1, part.thw).flatten(4), self.size)
        if self.kind == "grid":
            groups = [(grids(grid, self.size), self.size)]
        elif any(self.shift):
            groups = shifted_windows(grid, self.size, self.shift)
        else:
            groups = [(windows(grid, self.size), self.size)]
        heads = part.grid.shape[2:]
        return [
            (Heads(group[:, :0].unflatten(-1, heads), group.unflatten(-1, heads), thw), thw) for group, thw in groups
        ]

    def merge(self, outs: list[Tensor], part: Heads) -> Tensor:
        """Attention's outputs for the groups of `part`, back as a grid: (B, T·H·W, h, d)."""
        groups = [out.flatten(2) for out in outs]
        thw = _padded_size(part.thw, self.size)
        if self.kind == "grid":
            grid = from_grids(groups[0], self.size, thw)
        elif any(self.shift):
            grid = from_shifted_windows(groups, self.size, self.shift, thw)
        else:
            grid = from_windows(groups[0], self.size, thw)
        return unpadded(grid, part.thw).flatten(1, 3).unflatten(-1, part.grid.shape[2:])


def _padded_size(thw: Grid, size: Grid) -> Grid:
    """The size of a grid padded to whole windows."""
    t, h, w = (-(-length // side) * side for length, side in zip(thw, size, strict=True))
    return t, h, w


def mixed_attention(
    attend: Attend,
    mixing: Mixing,
    strides: tuple[Grid, Grid],
    q: Heads,
    k: Heads,
    v: Heads,
    tables: Tables,
    scale: float,
) -> Tensor:
    """`attend` within the groups of a mixing: (B, N, h, d), class token first. `strides` are those of queries and keys.

    The class token's key joins every group; its query attends to all keys. Grids are zero-padded at the right and bottom to
    whole windows, and the padding is attended to (as in detectron2's MViTv2); windows in time shrink to the largest divisor
    instead. Positions use the table rows of the true distances.
    """
    if mixing.size is None:
        return attend(q, k, v, tables, scale)
    if mixing.kind == "stripes":
        half, (t, h, w) = q.grid.shape[2] // 2, mixing.size
        halves = []
        for heads, size in ((slice(half), (t, q.thw[1], w)), (slice(half, None), (t, h, q.thw[2]))):
            half_q, half_k, half_v = (_slice_heads(part, heads) for part in (q, k, v))
            halves.append(
                _group_attention(attend, Mixing("window", size), strides, half_q, half_k, half_v, tables, scale)
            )
        grid = torch.cat(halves, 2)
    else:
        grid = _group_attention(attend, mixing, strides, q, k, v, tables, scale)
    return torch.cat([_class_attention(q, k, v, scale), grid], 1) if q.cls.shape[1] else grid


def _slice_heads(part: Heads, heads: slice) -> Heads:
    return Heads(part.cls[:, :, heads], part.grid[:, :, heads], part.thw)


def _class_attention(q: Heads, k: Heads, v: Heads, scale: float) -> Tensor:
    """Attention of the class token's query to all keys, without positions: (B, c, h, d)."""
    queries, keys, values = (part.transpose(1, 2) for part in (q.cls, k.joined(), v.joined()))
    return F.scaled_dot_product_attention(queries, keys, values, scale=scale).transpose(1, 2)


def _group_attention(
    attend: Attend,
    mixing: Mixing,
    strides: tuple[Grid, Grid],
    q: Heads,
    k: Heads,
    v: Heads,
    tables: Tables,
    scale: float,
) -> Tensor:
    """Attention of the grid's queries within their groups: (B, T·H·W, h, d)."""
    q_groups, k_groups = plan_groups(mixing, strides, q.thw, k.thw)
    outs = []
    for (queries, thw_q), (keys, thw_k), (values, _) in zip(
        q_groups.split(q), k_groups.split(k), k_groups.split(v), strict=True
    ):
        rows = [_table_rows(*axis, mixing.kind == "grid") for axis in zip(tables, thw_q, thw_k, strict=True)]
        outs.append(attend(queries, _with_class(keys, k.cls), _with_class(values, v.cls), rows, scale))
    return q_groups.merge(outs, q)


def _with_class(group: Heads, cls: Tensor) -> Heads:
    """Groups (B·n, ...) with their sample's class token."""
    return Heads(cls.repeat_interleave(group.grid.shape[0] // max(cls.shape[0], 1), 0), group.grid, group.thw)


def _table_rows(table: Tensor | None, queries: int, keys: int, dilated: bool) -> Tensor | None:
    """The rows of a whole grid's table for the distances within a group: the middle ones, or every n-th.

    A table without such rows, as on a grid of another size, is returned as it is, for attention to interpolate.
    """
    if table is None:
        return None
    extent, count = (table.shape[0] + 1) // 2, max(queries, keys)
    step = extent // count if dilated else 1
    if count > extent or (dilated and extent % count):
        return table
    return table[extent - 1 - step * (count - 1) : extent + step * (count - 1) : step]


def plan_groups(mixing: Mixing, strides: tuple[Grid, Grid], q_thw: Grid, k_thw: Grid) -> tuple[Groups, Groups]:
    """Matching groups of queries and keys, on grids of any size.

    Windows are limited to the grid of queries; one as large as the grid contains all keys. Shifts are half a window, rounded
    down to a whole number of keys.
    """
    assert mixing.size is not None
    shifted = mixing.kind == "shifted"
    axes = [_temporal_window(mixing.size[0], q_thw[0], k_thw[0], shifted)]
    for axis in (1, 2):
        axes.append(
            _spatial_window(mixing.size[axis], q_thw[axis], k_thw[axis], strides[0][axis], strides[1][axis], shifted)
        )
    sizes, key_sizes, shifts, key_shifts = ((one[0], one[1], one[2]) for one in zip(*axes, strict=True))
    return Groups(mixing.kind, sizes, shifts), Groups(mixing.kind, key_sizes, key_shifts)


def _temporal_window(size: int, queries: int, keys: int, shifted: bool) -> tuple[int, int, int, int]:
    """Frames of a window of queries and of keys, and the shifts of both."""
    side = next(t for t in range(min(size, queries), 0, -1) if queries % t == 0 and t * keys % queries == 0)
    shift = side // 2 if shifted and side < queries else 0
    while shift * keys % queries:
        shift -= 1
    return side, side * keys // queries, shift, shift * keys // queries


def _spatial_window(
    size: int, queries: int, keys: int, q_stride: int, kv_stride: int, shifted: bool
) -> tuple[int, int, int, int]:
    """Rows or columns of a window of queries and of keys, and the shifts of both."""
    if size >= queries:
        return queries, keys, 0, 0
    step = _window_step(q_stride, kv_stride)
    shift = size // 2 // step * step if shifted else 0
    return size, size * q_stride // kv_stride, shift, shift * q_stride // kv_stride
