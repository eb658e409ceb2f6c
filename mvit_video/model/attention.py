"""Attention with decomposed relative positions: the plain formula, and the same without the N×M matrix.

softmax(q·kᵀ·scale + E)·v with E_ij = q_i · (R^t[t_i, t_j] + R^h[h_i, h_j] + R^w[w_i, w_j]); the class token's row and
column of E are 0.
"""

# B batch, h heads, d head dim, c class tokens (0 or 1), T/H/W query grid, K key positions on one axis,
# N = c + T*H*W queries, M = c + Kt*Kh*Kw keys, D = d + Kt + Kh + Kw channels, rounded up to a multiple of 8

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mvit_video.model.ops.device import kernels_for
from mvit_video.model.relative_position import axis_embedding, axis_terms

Grid = tuple[int, int, int]
Tables = Sequence[Tensor | None]  # of t, h, w; None where an axis has no positions


class Heads(NamedTuple):
    """Tokens by heads, class token and grid apart: cls (B, c, h, d), grid (B, T*H*W, h, d), thw its size."""

    cls: Tensor
    grid: Tensor
    thw: Grid

    def joined(self) -> Tensor:
        """(B, N, h, d), class token first."""
        return torch.cat([self.cls, self.grid], 1) if self.cls.shape[1] else self.grid


def reference_attention(q: Heads, k: Heads, v: Heads, tables: Tables, scale: float) -> Tensor:
    """The plain formula, with the N×M matrix written out: (B, N, h, d)."""
    queries, keys, values = (part.joined().transpose(1, 2) for part in (q, k, v))  # (B, h, N, d)
    scores = (queries * scale) @ keys.transpose(-2, -1)
    bias = _position_bias(q, tables, k.thw)
    if bias is not None:
        scores = scores + F.pad(bias, (k.cls.shape[1], 0, q.cls.shape[1], 0))
    return (scores.softmax(-1) @ values).transpose(1, 2)


def _position_bias(q: Heads, tables: Tables, k_thw: Grid) -> Tensor | None:
    """E of the grid's tokens, (B, h, T·H·W, Kt·Kh·Kw): each axis' term spread over the other two of the key."""
    bias, axes = None, [axis for axis in range(3) if tables[axis] is not None]
    terms = axis_terms(q.grid.unflatten(1, q.thw).permute(0, 4, 1, 2, 3, 5), tables, k_thw)
    for axis, term in zip(axes, terms, strict=True):
        shape = [1, 1, 1]
        shape[axis] = k_thw[axis]
        spread = term.unflatten(-1, shape).expand(*term.shape[:-1], *k_thw)
        bias = spread if bias is None else bias + spread
    return None if bias is None else bias.flatten(5).flatten(2, 4)


def flash_attention(q: Heads, k: Heads, v: Heads, tables: Tables, scale: float) -> Tensor:
    """The same as `reference_attention`, exactly, by a fused kernel without a mask: (B, N, h, d).

    An axis' term q_i·R[i, j] depends on one coordinate of the key only, so E is a product as well: the terms are
    appended to the query, the key's coordinates, one-hot, to the key, and [q, terms]·[k·scale, one-hot]ᵀ =
    q·kᵀ·scale + E. The class token has no coordinates: zeros. The fused kernels want one channel count for all, a
    multiple of 8, so v gets zeros that are cut off again.
    """
    head_dim = q.grid.shape[-1]
    sizes = [0 if table is None else size for size, table in zip(k.thw, tables, strict=True)]
    channels = _rounded(head_dim + sum(sizes))
    kernels, padded = kernels_for(q.grid), [_rounded(size) for size in sizes]
    if kernels and head_dim + sum(padded) <= channels:
        sizes = padded  # products of 8 columns are faster than those of 7, and here they cost no channel
    if kernels and kernels.reads_whole_tables(tables, q.thw, k.thw):
        queries = kernels.fold_queries_and_read_tables(q.cls, q.grid, tables, q.thw, k.thw, sizes, channels)
    else:
        append = _append_plainly if torch.compiler.is_exporting() else _Append.apply
        queries = append(channels, q.thw, q.cls, q.grid, *position_terms(q, tables, k.thw, sizes))
    queries = queries.transpose(1, 2)
    keys = _folded_keys(k, tables, sizes, scale, channels).transpose(1, 2)
    values = _widened_tokens(v, channels).transpose(1, 2)
    out = F.scaled_dot_product_attention(queries, keys, values, scale=1.0)
    return _narrowed(out.transpose(1, 2), head_dim)


def _rounded(channels: int) -> int:
    """Up to the next multiple of 8."""
    return -(-channels // 8) * 8


def _folded_keys(k: Heads, tables: Tables, sizes: Sequence[int], scale: float, channels: int) -> Tensor:
    """[k·scale, one-hot coordinates, zeros]: (B, M, h, channels)."""
    if kernels_for(k.grid):
        return _Widen.apply(k.cls, k.grid, k.thw, sizes, scale, channels)
    keys = k.joined() * scale
    empty = channels - keys.shape[-1] - sum(sizes)
    one_hot = F.pad(key_coordinates(k.thw, tables, keys), (0, empty, k.cls.shape[1], 0))
    return torch.cat([keys, one_hot[:, None].expand(keys.shape[0], -1, keys.shape[2], -1)], -1)


def _widened_tokens(v: Heads, channels: int) -> Tensor:
    """[v, zeros]: (B, M, h, channels)."""
    if kernels_for(v.grid):
        return _Widen.apply(v.cls, v.grid, v.thw, (0, 0, 0), 1.0, channels)
    return F.pad(v.joined(), (0, channels - v.grid.shape[-1]))


def _narrowed(out: Tensor, head_dim: int) -> Tensor:
    return _Narrow.apply(out, head_dim) if kernels_for(out) else out[..., :head_dim]


def position_terms(q: Heads, tables: Tables, k_thw: Grid, padded: Sequence[int] | None = None) -> list[Tensor]:
    """As `relative_position.axis_terms`, without moving the queries: (B, T, H, W, h, K) per axis that has a table.

    `padded` sizes get zeros behind K. Each axis is one batched product over views of the queries in which the axis is a
    batch dimension.
    """
    batch, _, heads, channels = q.grid.shape
    (t, h, w), terms = q.thw, []
    table_t, table_h, table_w = tables
    p_t, p_h, p_w = padded or k_thw
    if table_t is not None:
        rows = axis_embedding(table_t, t, k_thw[0], p_t).transpose(1, 2)  # (T, d, K)
        terms.append(q.grid.view(batch, t, h * w * heads, channels) @ rows)
    if table_h is not None:
        rows = axis_embedding(table_h, h, k_thw[1], p_h).transpose(1, 2)
        terms.append(q.grid.view(batch * t, h, w * heads, channels) @ rows)
    if table_w is not None:
        rows = axis_embedding(table_w, w, k_thw[2], p_w).transpose(1, 2).repeat_interleave(heads, 0)  # (W·h, d, K)
        terms.append((q.grid.view(batch * t * h, w * heads, channels).transpose(0, 1) @ rows).transpose(0, 1))
    return [term.reshape(batch, t, h, w, heads, term.shape[-1]) for term in terms]


def key_coordinates(k_thw: Grid, tables: Tables, like: Tensor) -> Tensor:
    """One-hot coordinates of every key of the grid on each axis that has a table: (Kt·Kh·Kw, sum of the sizes)."""
    spread = []
    for axis, size in enumerate(k_thw):
        if tables[axis] is not None:
            shape = [1, 1, 1, size]
            shape[axis] = size
            spread.append(torch.eye(size, dtype=like.dtype, device=like.device).view(shape).expand(*k_thw, -1))
    return torch.cat(spread, -1).flatten(0, 2) if spread else like.new_zeros(k_thw[0] * k_thw[1] * k_thw[2], 0)


def _append_plainly(channels: int, thw: Grid, cls: Tensor, grid: Tensor, *terms: Tensor) -> Tensor:
    """As `_Append`, in operations that an exported file keeps: writing into slices would become scatters over indices."""
    parts = [grid, *(term.flatten(1, 3) for term in terms)]
    return torch.cat([_widened(cls, channels), _widened(torch.cat(parts, -1), channels)], 1)


def _widened(x: Tensor, channels: int) -> Tensor:
    return F.pad(x, (0, channels - x.shape[-1]))


class _Append(torch.autograd.Function):
    """Class token, grid and terms written once into (B, N, h, D); backward hands out views, where cat and pad copy."""

    @staticmethod
    def forward(ctx, channels: int, thw: Grid, cls: Tensor, grid: Tensor, *terms: Tensor) -> Tensor:
        batch, cells, heads, head_dim = grid.shape
        num_cls, kernels = cls.shape[1], kernels_for(grid)
        ctx.layout = num_cls, head_dim, [tuple(term.shape) for term in terms]
        if kernels:
            return kernels.fold_queries(cls, grid, thw, terms, channels)
        out = grid.new_empty(batch, num_cls + cells, heads, channels)
        out[:, :num_cls, :, :head_dim] = cls
        out[:, :num_cls, :, head_dim:] = 0
        out[:, num_cls:, :, :head_dim] = grid
        place = head_dim
        for term in terms:
            out[:, num_cls:, :, place : place + term.shape[-1]] = term.flatten(1, 3)
            place += term.shape[-1]
        out[:, num_cls:, :, place:] = 0
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor):
        num_cls, place, shapes = ctx.layout
        of_cls, of_grid = gradient[:, :num_cls, :, :place], gradient[:, num_cls:, :, :place]
        of_terms = []
        for shape in shapes:
            part = gradient[:, num_cls:, :, place : place + shape[-1]]
            of_terms.append(part.unflatten(1, shape[1:4]))
            place += shape[-1]
        return None, None, of_cls, of_grid, *of_terms


class _Widen(torch.autograd.Function):
    """`kernels.fold_keys`: tokens · scale in more channels, by one kernel; backward hands out views."""

    @staticmethod
    def forward(ctx, cls: Tensor, grid: Tensor, thw: Grid, sizes: Sequence[int], scale: float, channels: int) -> Tensor:
        ctx.layout = cls.shape[1], grid.shape[-1], scale
        return kernels_for(grid).fold_keys(cls, grid, thw, sizes, scale, channels)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        num_cls, head_dim, scale = ctx.layout
        own = gradient[..., :head_dim] if scale == 1.0 else gradient[..., :head_dim] * scale
        return own[:, :num_cls], own[:, num_cls:], None, None, None, None


class _Narrow(torch.autograd.Function):
    """The first channels of tokens (B, N, h, ·); backward puts zeros behind them by one kernel."""

    @staticmethod
    def forward(ctx, out: Tensor, head_dim: int) -> Tensor:
        ctx.channels = out.shape[-1]
        return out[..., :head_dim]

    @staticmethod
    def backward(ctx, gradient: Tensor):
        none, cells = gradient[:, :0], (1, 1, gradient.shape[1])
        return kernels_for(gradient).fold_keys(none, gradient, cells, (0, 0, 0), 1.0, ctx.channels), None


class _AddResidual(torch.autograd.Function):
    """out + pooled queries, class token left out: (B, N, h, d)."""

    @staticmethod
    def forward(ctx, out: Tensor, grid: Tensor) -> Tensor:
        num_cls = ctx.num_cls = out.shape[1] - grid.shape[1]
        total = torch.empty_like(out, memory_format=torch.contiguous_format)
        total[:, :num_cls] = out[:, :num_cls]
        torch.add(out[:, num_cls:], grid, out=total[:, num_cls:])
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient, gradient[:, ctx.num_cls :]


def add_residual(out: Tensor, q: Heads) -> Tensor:
    """Residual pooling (paper §4.1): the pooled queries are added to the attention's output, the class token's not."""
    if torch.compiler.is_compiling():
        num_cls = q.cls.shape[1]
        return torch.cat([out[:, :num_cls], out[:, num_cls:] + q.grid], 1)
    return _AddResidual.apply(out, q.grid)


ATTENTION = {"flash": flash_attention, "reference": reference_attention}
