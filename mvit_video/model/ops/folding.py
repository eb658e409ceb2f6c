"""Relative positions as channels of queries and keys, so that attention needs neither a mask nor an N×M matrix.

An axis' term q_i·R[i, j] depends on one coordinate of the key only, so E is a product as well: the terms are appended to
the query, the key's coordinates, one-hot, to the key, and [q, terms]·[k·scale, one-hot]ᵀ = q·kᵀ·scale + E. The class
token has no coordinates: zeros. Kernels want a multiple of 8 channels: zeros behind them.
"""

# B batch, N = c + T*H*W tokens, M keys, h heads, d channels of a head, K key positions on one axis (or more, zeros
# behind them), D = d + the three K, rounded up to a multiple of 8. R (·, K, d) is an axis' embedding of its table.

from collections.abc import Sequence
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mvit_video.model.heads import Grid, Heads
from mvit_video.model.ops import device
from mvit_video.model.ops.operators import autograd_rule, by_formula, in_place, operator, wanted_only
from mvit_video.model.relative_position import axis_embedding, distance_rows, resampling, table_rows

Tables = Sequence[Tensor | None]  # of t, h, w; None where an axis has no positions


def fold(q: Heads, k: Heads, tables: Tables, scale: float) -> tuple[Tensor, Tensor]:
    """Queries (B, N, h, D) and keys (B, M, h, D) whose products are q·kᵀ·scale + E."""
    head_dim = q.grid.shape[-1]
    sizes = [0 if table is None else size for size, table in zip(k.thw, tables, strict=True)]
    channels, padded = rounded(head_dim + sum(sizes)), [rounded(size) for size in sizes]
    if device.kernels_for(q.grid) and head_dim + sum(padded) <= channels:
        sizes = padded  # products of 8 columns are faster than those of 7, and here they cost no channel
    if device.is_decomposed():
        queries = queries_formula(q.thw, k.thw, sizes, channels, q.cls, q.grid, *tables)
        return queries, keys_formula(k, tables, scale, channels)
    queries = _fold_queries(q.cls, q.grid, *tables, q.thw, k.thw, sizes, channels)
    return queries, _fold_keys(k.cls, k.grid, k.thw, sizes, scale, channels)


def rounded(channels: int) -> int:
    """Up to the next multiple of 8."""
    return -(-channels // 8) * 8


def widen(tokens: Heads, channels: int) -> Tensor:
    """[tokens, zeros]: (B, N, h, channels)."""
    if device.is_decomposed():
        return _widened(tokens.joined(), channels)
    return _fold_keys(tokens.cls, tokens.grid, tokens.thw, (0, 0, 0), 1.0, channels)


def queries_formula(
    thw: Grid, k_thw: Grid, sizes: Sequence[int], channels: int, cls: Tensor, grid: Tensor, *tables: Tensor | None
) -> Tensor:
    """[q, terms, zeros] (B, N, h, D) in plain operations; `sizes` are the channels of each axis' term."""
    terms = position_terms(Heads(cls, grid, thw), tables, k_thw)
    padded = [
        F.pad(term, (0, size - term.shape[-1])).flatten(1, 3)
        for term, size in zip(terms, filter(None, sizes), strict=True)
    ]
    return torch.cat([_widened(cls, channels), _widened(torch.cat([grid, *padded], -1), channels)], 1)


def position_terms(q: Heads, tables: Tables, k_thw: Grid) -> list[Tensor]:
    """As `relative_position.axis_terms`, without moving the queries: (B, T, H, W, h, K) per axis that has a table.

    Each axis is one batched product over views of the queries in which the axis is a batch dimension.
    """
    batch, _, heads, channels = q.grid.shape
    (t, h, w), terms = q.thw, []
    table_t, table_h, table_w = tables
    if table_t is not None:
        rows = axis_embedding(table_t, t, k_thw[0]).transpose(1, 2)  # (T, d, K)
        terms.append(q.grid.reshape(batch, t, h * w * heads, channels) @ rows)
    if table_h is not None:
        rows = axis_embedding(table_h, h, k_thw[1]).transpose(1, 2)
        terms.append(q.grid.reshape(batch * t, h, w * heads, channels) @ rows)
    if table_w is not None:
        rows = axis_embedding(table_w, w, k_thw[2]).transpose(1, 2).repeat_interleave(heads, 0)  # (W·h, d, K)
        terms.append((q.grid.reshape(batch * t * h, w * heads, channels).transpose(0, 1) @ rows).transpose(0, 1))
    return [term.reshape(batch, t, h, w, heads, term.shape[-1]) for term in terms]


def keys_formula(k: Heads, tables: Tables, scale: float, channels: int) -> Tensor:
    """[k·scale, one-hot coordinates, zeros] (B, M, h, D) in plain operations."""
    keys = k.joined() * scale
    one_hot = key_coordinates(
        k.thw, [0 if table is None else size for size, table in zip(k.thw, tables, strict=True)], keys
    )
    one_hot = F.pad(one_hot, (0, channels - keys.shape[-1] - one_hot.shape[-1], k.cls.shape[1], 0))
    return torch.cat([keys, one_hot[:, None].expand(keys.shape[0], -1, keys.shape[2], -1)], -1)


def key_coordinates(k_thw: Sequence[int], sizes: Sequence[int], like: Tensor) -> Tensor:
    """One-hot coordinates of every key of the grid in `sizes` channels an axis, 0 where it has none: (cells, their sum)."""
    spread = []
    for axis, (count, size) in enumerate(zip(k_thw, sizes, strict=True)):
        if size:
            shape = [1, 1, 1, size]
            shape[axis] = count
            spread.append(torch.eye(count, size, dtype=like.dtype, device=like.device).view(shape).expand(*k_thw, -1))
    return torch.cat(spread, -1).flatten(0, 2) if spread else like.new_zeros(k_thw[0] * k_thw[1] * k_thw[2], 0)


def _widened(x: Tensor, channels: int) -> Tensor:
    return F.pad(x, (0, channels - x.shape[-1]))


def _fake_fold_queries(cls, grid, table_t, table_h, table_w, thw, k_thw, sizes, channels):
    return grid.new_empty(grid.shape[0], cls.shape[1] + grid.shape[1], grid.shape[2], channels)


@operator(_fake_fold_queries)
def _fold_queries(
    cls: Tensor, grid: Tensor, table_t: Tensor | None, table_h: Tensor | None, table_w: Tensor | None,
    thw: Sequence[int], k_thw: Sequence[int], sizes: Sequence[int], channels: int,
) -> Tensor:  # fmt: skip
    axes = _Axes(grid, thw, k_thw, sizes)
    queries = axes.views(grid.contiguous())
    terms: list[Tensor | None] = [None, None, None]
    for axis, embedding in enumerate(axes.read((table_t, table_h, table_w))):
        if embedding is not None:
            term = torch.bmm(queries[axis], embedding.transpose(1, 2))  # (batch of the axis, rows, K)
            term = term.transpose(0, 1) if axis == 2 else term
            terms[axis] = term.reshape(grid.shape[0], *thw, grid.shape[2], embedding.shape[1])
    kernels = device.kernels_for(grid)
    if kernels:
        return kernels.fold_queries(cls, grid, tuple(thw), terms, channels)
    out = grid.new_empty(grid.shape[0], cls.shape[1] + grid.shape[1], grid.shape[2], channels)
    return _write(out, cls, grid, [term.flatten(1, 3) for term in terms if term is not None])


def _write(out: Tensor, cls: Tensor, grid: Tensor, behind: Sequence[Tensor]) -> Tensor:
    """Fill (B, N, h, D): class token and zeros, then the grid, what comes behind it, and zeros."""
    num_cls, place = cls.shape[1], grid.shape[-1]
    out[:, :num_cls, :, :place], out[:, num_cls:, :, :place] = cls, grid
    out[:, :num_cls, :, place:] = 0
    for part in behind:
        out[:, num_cls:, :, place : place + part.shape[-1]] = part
        place += part.shape[-1]
    out[:, num_cls:, :, place:] = 0
    return out


def _fake_fold_queries_backward(gradient, grid, table_t, table_h, table_w, thw, k_thw, sizes, wanted):
    tables = [None if table is None else table.new_empty(table.shape) for table in (table_t, table_h, table_w)]
    return wanted_only([grid.new_empty(grid.shape), *tables], wanted)


@operator(_fake_fold_queries_backward)
def _fold_queries_backward(
    gradient: Tensor, grid: Tensor, table_t: Tensor | None, table_h: Tensor | None, table_w: Tensor | None,
    thw: Sequence[int], k_thw: Sequence[int], sizes: Sequence[int], wanted: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    """Gradients of the grid and of the tables, those that are wanted; `gradient` (B, T·H·W, h, D) has no class token."""
    axes, tables, head_dim = _Axes(grid, thw, k_thw, sizes), (table_t, table_h, table_w), grid.shape[3]
    of_grid = gradient[..., :head_dim].contiguous() if wanted[0] else None
    parts = gradient[..., head_dim : head_dim + sum(sizes)].contiguous().split(list(sizes), -1)
    of_embeddings: list[Tensor | None] = [None, None, None]
    embeddings, queries = axes.read(tables), axes.views(grid.contiguous())
    for axis, embedding in enumerate(embeddings):
        if embedding is None:
            continue
        of_term = axes.views(parts[axis])[axis]
        if of_grid is not None:
            axes.views(of_grid)[axis].baddbmm_(of_term, embedding)
        if wanted[1 + axis]:
            of_embeddings[axis] = torch.bmm(of_term.transpose(1, 2), queries[axis])  # (batch of the axis, K, d)
    return wanted_only([of_grid, *axes.tables_gradient(of_embeddings, tables)], wanted)


def _keep_queries(ctx, inputs, output) -> None:
    cls, grid, *tables, ctx.thw, ctx.k_thw, ctx.sizes, ctx.channels = inputs
    ctx.save_for_backward(cls if cls.shape[1] else None, grid, *tables)
    ctx.num_cls = cls.shape[1]


def _back_through_queries(ctx, gradient):
    cls, grid, *tables = ctx.saved_tensors
    num_cls, wanted, nothing = ctx.num_cls, ctx.needs_input_grad[1:6], (None,) * 4
    if torch.is_grad_enabled():
        cls = grid[:, :0] if cls is None else cls
        formula = partial(queries_formula, ctx.thw, ctx.k_thw, ctx.sizes, ctx.channels)
        return *by_formula(formula, [cls, grid, *tables], wanted, [gradient]), *nothing
    of_cls = gradient[:, :num_cls, :, : grid.shape[-1]] if wanted[0] else None
    wants = wanted[1:]
    back = gradient[:, num_cls:]
    found = _fold_queries_backward(back, grid, *tables, ctx.thw, ctx.k_thw, ctx.sizes, wants) if any(wants) else []
    return of_cls, *in_place(found, wants), *nothing


autograd_rule(_fold_queries, _keep_queries, _back_through_queries)


class _Axes:
    """The batched products of each axis' queries with its embedding: the batch is (B, T), (B, T, H) and (W, h)."""

    def __init__(self, grid: Tensor, thw: Sequence[int], k_thw: Sequence[int], sizes: Sequence[int]) -> None:
        self.batch, _, self.heads, self.channels = grid.shape
        self.thw, self.k_thw, self.sizes = tuple(thw), tuple(k_thw), tuple(sizes)
        self.dtype, self.kernels = grid.dtype, device.kernels_for(grid)
        self.repeats = (self.batch, self.batch * thw[0], 1)  # of an embedding in its product's batch

    def views(self, x: Tensor) -> list[Tensor]:
        """x (B, T·H·W, h, ·), whose rows lie evenly, as the first factor of each axis' product."""
        (t, h, w), last = self.thw, x.shape[-1]
        by_row = x.view(self.batch * t * h, w * self.heads, last)
        return [x.view(self.batch * t, h * w * self.heads, last), by_row, by_row.transpose(0, 1)]

    def read(self, tables: Tables) -> list[Tensor | None]:
        """R of each axis as the second factor, (batch of its product, K, d), None where it has no table."""
        if self.kernels and reads_whole_tables(tables, self.thw, self.k_thw):
            return self.kernels.read_tables(
                tables, self.thw, self.k_thw, self.sizes, self.heads, self.repeats, self.dtype
            )
        found: list[Tensor | None] = []
        for axis, table in enumerate(tables):
            if table is None:
                found.append(None)
                continue
            embedding, empty = self._embedding(table, axis).to(self.dtype), self.sizes[axis] - self.k_thw[axis]
            embedding = F.pad(embedding, (0, 0, 0, empty)) if empty else embedding
            times = self.heads if axis == 2 else self.repeats[axis]
            if times != 1:
                spread = embedding[:, None] if axis == 2 else embedding[None]
                embedding = spread.expand(*((-1, times) if axis == 2 else (times, -1)), -1, -1).flatten(0, 1)
            found.append(embedding)
        return found

    def _embedding(self, table: Tensor, axis: int) -> Tensor:
        """R of one axis (Q, K, d); its rows are read at every call, never from a cache: weights change."""
        q_size, k_size = self.thw[axis], self.k_thw[axis]
        if len(table) == table_rows(q_size, k_size):
            return table[_kept_rows(q_size, k_size, table.device)]
        mix = _kept_resampling(q_size, k_size, len(table), self.dtype, table.device)
        return (mix @ table.to(self.dtype)).unflatten(0, (q_size, k_size))

    def tables_gradient(self, of_embeddings: Sequence[Tensor | None], tables: Tables) -> list[Tensor | None]:
        """Gradients of the tables from those of R as `read` gives it; None where there is none."""
        if (
            self.kernels
            and reads_whole_tables(tables, self.thw, self.k_thw)
            and all(part is not None for part, table in zip(of_embeddings, tables, strict=True) if table is not None)
        ):
            given = (of_embeddings, tables, self.thw, self.k_thw, self.sizes, self.heads, self.repeats)
            return self.kernels.tables_gradient(*given)
        found: list[Tensor | None] = []
        for axis, (part, table) in enumerate(zip(of_embeddings, tables, strict=True)):
            found.append(None if part is None or table is None else self._table_gradient(part, table, axis))
        return found

    def _table_gradient(self, of_products: Tensor, table: Tensor, axis: int) -> Tensor:
        q_size, k_size = self.thw[axis], self.k_thw[axis]
        split = (q_size, self.heads) if axis == 2 else (self.repeats[axis], q_size)
        of_embedding = of_products.unflatten(0, split).sum(1 if axis == 2 else 0, dtype=table.dtype)
        pairs = of_embedding[:, :k_size].flatten(0, 1)
        if len(table) == table_rows(q_size, k_size):
            return torch.zeros_like(table).index_add_(0, _kept_rows(q_size, k_size, table.device).flatten(), pairs)
        return _kept_resampling(q_size, k_size, len(table), table.dtype, table.device).t() @ pairs


def reads_whole_tables(tables: Tables, q_thw: Sequence[int], k_thw: Sequence[int]) -> bool:
    """Whether there are tables, and all of them are of this very size, so that their rows are read as they are."""
    sizes = zip(tables, q_thw, k_thw, strict=True)
    fit = [table.shape[0] == table_rows(q, k) for table, q, k in sizes if table is not None]
    return bool(fit) and all(fit)


# What depends on sizes alone is made once for each of them, also for training where inference makes it first.
@lru_cache(maxsize=1024)
def _kept_rows(q_size: int, k_size: int, at: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return distance_rows(q_size, k_size, at)


@lru_cache(maxsize=1024)
def _kept_resampling(q_size: int, k_size: int, rows: int, dtype: torch.dtype, at: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return resampling(q_size, k_size, rows, torch.promote_types(dtype, torch.float32), at).to(dtype).flatten(0, 1)


def _fake_fold_keys(cls, grid, thw, sizes, scale, channels):
    return grid.new_empty(grid.shape[0], cls.shape[1] + grid.shape[1], grid.shape[2], channels)


@operator(_fake_fold_keys)
def _fold_keys(
    cls: Tensor, grid: Tensor, thw: Sequence[int], sizes: Sequence[int], scale: float, channels: int
) -> Tensor:
    """[k·scale, one-hot coordinates, zeros] (B, M, h, D); without sizes and with scale 1 just the tokens, widened."""
    kernels = device.kernels_for(grid)
    if kernels:
        return kernels.fold_keys(cls, grid, tuple(thw), sizes, scale, channels)
    out = grid.new_empty(grid.shape[0], cls.shape[1] + grid.shape[1], grid.shape[2], channels)
    one_hot = key_coordinates(thw, sizes, grid)[:, None].expand(-1, grid.shape[2], -1)
    if scale != 1.0:
        cls, grid = cls * scale, grid * scale
    return _write(out, cls, grid, [one_hot])


def _keep_keys(ctx, inputs, output) -> None:
    ctx.layout = inputs[0].shape[1], inputs[1].shape[-1], inputs[4]


def _back_through_keys(ctx, gradient):
    num_cls, head_dim, scale = ctx.layout
    own = gradient[..., :head_dim] if scale == 1.0 else gradient[..., :head_dim] * scale
    return own[:, :num_cls], own[:, num_cls:], None, None, None, None


autograd_rule(_fold_keys, _keep_keys, _back_through_keys)
