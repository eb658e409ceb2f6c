"""Kernels that fold relative positions into extra query and key channels: see `ops.folding`."""

# B batch, N = c + T*H*W tokens, h heads, d channels of a head, K key positions on one axis, R (·, K, d) an axis' embedding

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mvit_video.model.ops.tables import cached_table
from mvit_video.model.ops.triton.device import on_tensor_device
from mvit_video.model.relative_position import distance_rows

Grid = tuple[int, int, int]
Tables = Sequence[Tensor | None]
SIZES = ("T", "H", "W", "heads", "rows")  # not specialised: one kernel for all sizes


@triton.jit(do_not_specialize=SIZES)
def _fold_kernel(
    cls, grid, term_t, term_h, term_w, out, cls_batch, cls_row, cls_head, grid_batch, grid_row, grid_head,
    T, H, W, heads, rows, scale, t_strides, h_strides, w_strides, D: tl.constexpr, KT: tl.constexpr, KH: tl.constexpr,
    KW: tl.constexpr, CLS: tl.constexpr, TERMS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows (token, head) of `out` (B, N, h, WIDTH): token · scale, then a term or one-hot coordinate per axis, then zeros."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK)[None, :]
    head, token = (row % heads)[:, None], row // heads
    batch = (token // (CLS + T * H * W)).to(tl.int64)[:, None]
    cell = (token % (CLS + T * H * W) - CLS)[:, None]
    real, is_cell = (row < rows)[:, None], cell >= 0
    own = real & (c < D)
    value = tl.load(
        grid + batch * grid_batch + cell * grid_row + head * grid_head + c, mask=own & is_cell, other=0.0
    ).to(tl.float32)
    if CLS:
        token_at = cls + batch * cls_batch + head * cls_head + c
        value += tl.load(token_at, mask=own & (cell < 0), other=0.0).to(tl.float32)
    value *= scale
    t, h, w = cell // (H * W), (cell // W) % H, cell % W
    if TERMS:
        value += _load_term(term_t, t_strides, batch, t, h, w, head, c - D, KT, real & is_cell)
        value += _load_term(term_h, h_strides, batch, t, h, w, head, c - D - KT, KH, real & is_cell)
        value += _load_term(term_w, w_strides, batch, t, h, w, head, c - D - KT - KH, KW, real & is_cell)
    else:
        at = ((KT > 0) & (c == D + t)) | ((KH > 0) & (c == D + KT + h)) | ((KW > 0) & (c == D + KT + KH + w))
        value += tl.where(at & is_cell, 1.0, 0.0)
    out_row = out + row.to(tl.int64)[:, None] * WIDTH + c
    tl.store(out_row, value.to(out.dtype.element_ty), mask=real & (c < WIDTH))


@triton.jit
def _load_term(term, strides, batch, t, h, w, head, k, K: tl.constexpr, ok):
    """One axis' term (B, T, H, W, h, K) in its channels, 0 elsewhere."""
    if K == 0:
        return 0.0
    else:
        place = (
            batch * strides[0] + t * strides[1] + h * strides[2] + w * strides[3] + head * strides[4] + k * strides[5]
        )
        return tl.load(term + place, mask=ok & (k >= 0) & (k < K), other=0.0).to(tl.float32)


def fold_queries(cls: Tensor, grid: Tensor, thw: Grid, terms: Tables, width: int) -> Tensor:
    """Tokens (B, c + T·H·W, h, width): [q, terms, zeros]. Three terms, (B, T, H, W, h, K) each, or None."""
    return _fold(cls, grid, thw, width, 1.0, terms)


def fold_keys(cls: Tensor, grid: Tensor, thw: Grid, sizes: Sequence[int], scale: float, width: int) -> Tensor:
    """Tokens (B, c + Kt·Kh·Kw, h, width): [k · scale, coordinates as one-hot, zeros]; `sizes` are 0 for axes without terms.

    With zero sizes and scale 1 just the padded tokens: values.
    """
    return _fold(cls, grid, thw, width, scale, [None] * 3, sizes)


@on_tensor_device
def _fold(cls, grid, thw, width, scale, terms, sizes=None) -> Tensor:
    batch, cells, heads, channels = grid.shape
    with_terms, num_cls = sizes is None, cls.shape[1]
    k_t, k_h, k_w = [0 if term is None else term.shape[-1] for term in terms] if with_terms else sizes
    out = grid.new_empty(batch, num_cls + cells, heads, width)
    rows = batch * (num_cls + cells) * heads
    strides = [(0,) * 6 if term is None else term.stride() for term in terms]
    _fold_kernel[(triton.cdiv(rows, 16),)](
        cls, grid, *(grid if term is None else term for term in terms), out, *cls.stride()[:3], *grid.stride()[:3],
        *thw, heads, rows, scale, *strides, D=channels, KT=k_t, KH=k_h, KW=k_w, CLS=num_cls,
        TERMS=with_terms, ROWS=16, WIDTH=width, BLOCK=triton.next_power_of_2(width),
    )  # fmt: skip
    return out


@triton.jit
def _gather_tables_kernel(
    table_t, table_h, table_w, table_rows, out, pairs_t, pairs_h, pairs_w, out_t, out_h, out_w,
    D: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows of three tables, axis by axis; an axis' pairs repeat until its part of `out` is full."""
    at = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    c = tl.arange(0, BLOCK)
    in_t, in_h = at < out_t, (at >= out_t) & (at < out_t + out_h)
    in_w = (at >= out_t + out_h) & (at < out_t + out_h + out_w)
    pair = tl.where(in_t, at % tl.maximum(pairs_t, 1), 0)  # an axis without a table has no pairs
    pair = tl.where(in_h, pairs_t + (at - out_t) % tl.maximum(pairs_h, 1), pair)
    pair = tl.where(in_w, pairs_t + pairs_h + (at - out_t - out_h) % tl.maximum(pairs_w, 1), pair)
    place = tl.load(table_rows + pair, mask=at < out_t + out_h + out_w, other=-1)
    cell, ok = place[:, None] * D + c[None, :], (place >= 0)[:, None] & (c < D)[None, :]
    value = tl.load(table_t + cell, mask=ok & in_t[:, None], other=0.0).to(tl.float32)
    value += tl.load(table_h + cell, mask=ok & in_h[:, None], other=0.0).to(tl.float32)
    value += tl.load(table_w + cell, mask=ok & in_w[:, None], other=0.0).to(tl.float32)
    real = (at < out_t + out_h + out_w)[:, None] & (c < D)[None, :]
    tl.store(out + at[:, None] * D + c[None, :], value.to(out.dtype.element_ty), mask=real)


@triton.jit
def _tables_gradient_kernel(
    grad_t, grad_h, grad_w, table_rows, out, pairs_t, pairs_h, pairs_w, rows_t, rows_h,
    D: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row of one table: the sum over the pairs that read it."""
    row = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    if row < rows_t:
        total = _row_sum(grad_t, table_rows, pairs_t, row, c, D, PAIRS)
    else:
        if row < rows_t + rows_h:
            total = _row_sum(grad_h, table_rows + pairs_t, pairs_h, row - rows_t, c, D, PAIRS)
        else:
            total = _row_sum(grad_w, table_rows + pairs_t + pairs_h, pairs_w, row - rows_t - rows_h, c, D, PAIRS)
    tl.store(out + row * D + c, total, mask=c < D)


@triton.jit
def _row_sum(grad_pairs, table_rows, pairs, row, c, D: tl.constexpr, PAIRS: tl.constexpr):
    total = tl.zeros((PAIRS, c.shape[0]), tl.float32)
    for first in range(0, pairs, PAIRS):
        pair = first + tl.arange(0, PAIRS)
        reads = tl.load(table_rows + pair, mask=pair < pairs, other=-1) == row
        total += tl.load(
            grad_pairs + pair[:, None] * D + c[None, :], mask=reads[:, None] & (c < D)[None, :], other=0.0
        ).to(tl.float32)
    return tl.sum(total, 0)


@cached_table
def _table_rows(q_thw: Grid, k_thw: Grid, sizes: Grid, heads: int, device: torch.device) -> Tensor:
    """Table row of each (query, key) pair of all axes (w: for each head), -1 for padding beyond K: int32."""
    parts = []
    for axis, size in enumerate(sizes):
        if size:
            rows = distance_rows(q_thw[axis], k_thw[axis]).to(torch.int32)
            rows = torch.nn.functional.pad(rows, (0, size - k_thw[axis]), value=-1)
            parts.append(rows.repeat_interleave(heads, 0).flatten() if axis == 2 else rows.flatten())
    with torch.inference_mode(False):
        return torch.cat(parts).to(device)


def gather_tables(
    tables: Tables, thw: Grid, k_thw: Grid, sizes: Grid, heads: int, repeats: Grid, dtype: torch.dtype
) -> list[Tensor | None]:
    """Each axis' embedding from tables that need no resampling: (repeats · Q, K, d), w's (W · h, K, d); padded to `sizes`."""
    first = next(table for table in tables if table is not None)
    pairs, table_rows = _num_pairs(thw, sizes, heads), _table_rows(thw, k_thw, sizes, heads, first.device)
    lengths = [count * repeat for count, repeat in zip(pairs, repeats, strict=True)]
    out = first.new_empty(sum(lengths), first.shape[1], dtype=dtype)
    arguments = [first if table is None else table for table in tables]
    with torch.cuda.device_of(out):
        _gather_tables_kernel[(triton.cdiv(len(out), 16),)](
            *arguments, table_rows, out, *pairs, *lengths, D=first.shape[1], PAIRS=16, BLOCK=_block(first.shape[1])
        )
    parts = out.split(lengths)
    return [part.view(-1, size, first.shape[1]) if size else None for part, size in zip(parts, sizes, strict=True)]


def tables_gradient(
    grad_embeddings: Tables, tables: Tables, thw: Grid, k_thw: Grid, sizes: Grid, heads: int, repeats: Grid
) -> list[Tensor | None]:
    """Gradients w.r.t. the tables, given those w.r.t. what `gather_tables` returns."""
    first = next(part for part in grad_embeddings if part is not None)
    arguments = [
        first if part is None else part.reshape(repeat, -1).sum(0) if repeat > 1 else part.reshape(-1)
        for part, repeat in zip(grad_embeddings, repeats, strict=True)
    ]
    rows, channels = [0 if table is None else len(table) for table in tables], first.shape[-1]
    table_rows = _table_rows(thw, k_thw, sizes, heads, first.device)
    out = first.new_empty(sum(rows), channels, dtype=torch.float32)
    with torch.cuda.device_of(out):
        _tables_gradient_kernel[(sum(rows),)](
            *arguments,
            table_rows,
            out,
            *_num_pairs(thw, sizes, heads),
            *rows[:2],
            D=channels,
            PAIRS=16,
            BLOCK=_block(channels),
        )
    parts = out.split(rows)
    return [
        None if table is None else part.to(table.dtype, copy=True)  # operators must not return views of one tensor
        for part, table in zip(parts, tables, strict=True)
    ]


def _num_pairs(thw: Grid, sizes: Grid, heads: int) -> list[int]:
    """Queries × keys of each axis; for w, of each head."""
    t, h, w = thw
    return [length * size for length, size in zip((t, h, w * heads), sizes, strict=True)]


def _block(channels: int) -> int:
    return triton.next_power_of_2(channels)
