"""Relative positions as extra query and key channels, so that attention needs neither a mask nor an N×M matrix.

An axis' term q_i·R[i, j] depends on one coordinate of the key only, so E is a product too: the terms are appended to the
query, the key's one-hot coordinates to the key, and [q, terms]·[k·scale, one-hot]ᵀ = q·kᵀ·scale + E. The class token has
no coordinates: zeros. Channels are zero-padded to a multiple of 8 for the kernels.
"""

# B batch, N = c + T*H*W tokens, M keys, h heads, d channels of a head, K key positions on one axis (possibly padded),
# D = d + the three K, rounded up to a multiple of 8. R (·, K, d) is an axis' embedding, read from its table.

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mvit_video.model.heads import Grid, Heads
from mvit_video.model.ops import device
from mvit_video.model.ops.operators import differentiable_grad, operator, pack_grads, register_autograd, unpack_grads
from mvit_video.model.ops.tables import cached_table
from mvit_video.model.relative_position import axis_embedding, distance_rows, resampling, table_rows

Tables = Sequence[Tensor | None]  # of t, h, w; None for an axis without positions


def fold(q: Heads, k: Heads, tables: Tables, scale: float) -> tuple[Tensor, Tensor]:
    """Queries (B, N, h, D) and keys (B, M, h, D) whose products are q·kᵀ·scale + E."""
    head_dim = q.grid.shape[-1]
    sizes = [0 if table is None else size for size, table in zip(k.thw, tables, strict=True)]
    channels, padded = round_up(head_dim + sum(sizes)), [round_up(size) for size in sizes]
    if device.kernels_for(q.grid) and head_dim + sum(padded) <= channels:
        sizes = padded  # products of 8 columns are faster than of 7, and fit without more channels
    if device.must_decompose():
        queries = queries_formula(q.thw, k.thw, sizes, channels, q.cls, q.grid, *tables)
        return queries, keys_formula(k, tables, scale, channels)
    queries = _fold_queries(q.cls, q.grid, *tables, q.thw, k.thw, sizes, channels)
    return queries, _fold_keys(k.cls, k.grid, k.thw, sizes, scale, channels)


def round_up(channels: int) -> int:
    """The next multiple of 8."""
    return -(-channels // 8) * 8


def pad_channels(tokens: Heads, channels: int) -> Tensor:
    """Tokens zero-padded to `channels`: (B, N, h, channels)."""
    if device.must_decompose():
        return _pad_last(tokens.joined(), channels)
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
    return torch.cat([_pad_last(cls, channels), _pad_last(torch.cat([grid, *padded], -1), channels)], 1)


def position_terms(q: Heads, tables: Tables, k_thw: Grid) -> list[Tensor]:
    """As `relative_position.axis_terms`, without copying the queries: (B, T, H, W, h, K) per axis with a table.

    Each axis is one batched product over a view of the queries in which that axis is a batch dimension.
    """
    batch, _, heads, channels = q.grid.shape
    (t, h, w), terms = q.thw, []
    table_t, table_h, table_w = tables

    def rows(table: Tensor, side: int, keys: int) -> Tensor:
        """(side, d, K), of the queries' type: double backward is outside autocast."""
        return axis_embedding(table, side, keys).transpose(1, 2).to(q.grid.dtype)

    if table_t is not None:
        terms.append(q.grid.reshape(batch, t, h * w * heads, channels) @ rows(table_t, t, k_thw[0]))
    if table_h is not None:
        terms.append(q.grid.reshape(batch * t, h, w * heads, channels) @ rows(table_h, h, k_thw[1]))
    if table_w is not None:
        of_columns = rows(table_w, w, k_thw[2]).repeat_interleave(heads, 0)  # (W·h, d, K)
        terms.append((q.grid.reshape(batch * t * h, w * heads, channels).transpose(0, 1) @ of_columns).transpose(0, 1))
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
    """One-hot coordinates of the grid's keys, `sizes` channels per axis (0: none): (Kt·Kh·Kw, sum of sizes)."""
    one_hot = []
    for axis, (count, size) in enumerate(zip(k_thw, sizes, strict=True)):
        if size:
            shape = [1, 1, 1, size]
            shape[axis] = count
            one_hot.append(torch.eye(count, size, dtype=like.dtype, device=like.device).view(shape).expand(*k_thw, -1))
    return torch.cat(one_hot, -1).flatten(0, 2) if one_hot else like.new_zeros(k_thw[0] * k_thw[1] * k_thw[2], 0)


def _pad_last(x: Tensor, channels: int) -> Tensor:
    return F.pad(x, (0, channels - x.shape[-1]))


def _fake_fold_queries(cls, grid, table_t, table_h, table_w, thw, k_thw, sizes, channels):
    return grid.new_empty(grid.shape[0], cls.shape[1] + grid.shape[1], grid.shape[2], channels)


@operator(_fake_fold_queries)
def _fold_queries(
    cls: Tensor, grid: Tensor, table_t: Tensor | None, table_h: Tensor | None, table_w: Tensor | None,
    thw: Sequence[int], k_thw: Sequence[int], sizes: Sequence[int], channels: int,
) -> Tensor:  # fmt: skip
    axes = _AxisProducts(grid, thw, k_thw, sizes)
    queries = axes.views(grid.contiguous())
    terms: list[Tensor | None] = [None, None, None]
    for axis, embedding in enumerate(axes.embeddings((table_t, table_h, table_w))):
        if embedding is not None:
            term = torch.bmm(queries[axis], embedding.transpose(1, 2))  # (axis batch, rows, K)
            term = term.transpose(0, 1) if axis == 2 else term
            terms[axis] = term.reshape(grid.shape[0], *thw, grid.shape[2], embedding.shape[1])
    kernels = device.kernels_for(grid)
    if kernels:
        return kernels.fold_queries(cls, grid, tuple(thw), terms, channels)
    out = grid.new_empty(grid.shape[0], cls.shape[1] + grid.shape[1], grid.shape[2], channels)
    return _fill(out, cls, grid, [term.flatten(1, 3) for term in terms if term is not None])


def _fill(out: Tensor, cls: Tensor, grid: Tensor, extra: Sequence[Tensor]) -> Tensor:
    """Fill (B, N, h, D) with the class token and the grid, whose rows continue with `extra`; zeros elsewhere."""
    out_cls, out_grid = out.split_with_sizes([cls.shape[1], grid.shape[1]], 1)
    for rows, values in ((out_cls, [cls]), (out_grid, [grid, *extra])):
        widths = [value.shape[-1] for value in values]
        *columns, rest = rows.split_with_sizes([*widths, out.shape[-1] - sum(widths)], -1)
        for column, value in zip(columns, values, strict=True):
            column.copy_(value)
        rest.zero_()
    return out


def _fake_fold_queries_backward(gradient, grid, table_t, table_h, table_w, thw, k_thw, sizes, needs_grad):
    tables = [None if table is None else table.new_empty(table.shape) for table in (table_t, table_h, table_w)]
    return pack_grads([grid.new_empty(grid.shape), *tables], needs_grad)


@operator(_fake_fold_queries_backward)
def _fold_queries_backward(
    gradient: Tensor, grid: Tensor, table_t: Tensor | None, table_h: Tensor | None, table_w: Tensor | None,
    thw: Sequence[int], k_thw: Sequence[int], sizes: Sequence[int], needs_grad: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    """Gradients w.r.t. the grid and the tables, as far as needed; `gradient` (B, T·H·W, h, D) has no class token."""
    axes, tables, head_dim = _AxisProducts(grid, thw, k_thw, sizes), (table_t, table_h, table_w), grid.shape[3]
    grad_grid = gradient[..., :head_dim].contiguous() if needs_grad[0] else None
    parts = gradient[..., head_dim : head_dim + sum(sizes)].contiguous().split(list(sizes), -1)
    grad_embeddings: list[Tensor | None] = [None, None, None]
    embeddings, queries = axes.embeddings(tables), axes.views(grid.contiguous())
    for axis, embedding in enumerate(embeddings):
        if embedding is None:
            continue
        grad_term = axes.views(parts[axis])[axis]
        if grad_grid is not None:
            axes.views(grad_grid)[axis].baddbmm_(grad_term, embedding)
        if needs_grad[1 + axis]:
            grad_embeddings[axis] = torch.bmm(grad_term.transpose(1, 2), queries[axis])  # (axis batch, K, d)
    return pack_grads([grad_grid, *axes.tables_gradient(grad_embeddings, tables)], needs_grad)


def _setup_queries(ctx, inputs, output) -> None:
    cls, grid, *tables, ctx.thw, ctx.k_thw, ctx.sizes, ctx.channels = inputs
    ctx.save_for_backward(cls if cls.shape[1] else None, grid, *tables)
    ctx.num_cls = cls.shape[1]


def _grad_queries(ctx, gradient):
    cls, grid, *tables = ctx.saved_tensors
    num_cls, needs_grad, no_grads = ctx.num_cls, ctx.needs_input_grad[1:6], (None,) * 4
    if torch.is_grad_enabled():
        cls = grid[:, :0] if cls is None else cls
        formula = partial(queries_formula, ctx.thw, ctx.k_thw, ctx.sizes, ctx.channels)
        return *differentiable_grad(formula, [cls, grid, *tables], needs_grad, [gradient]), *no_grads
    grad_cls = gradient[:, :num_cls, :, : grid.shape[-1]] if needs_grad[0] else None
    rest = needs_grad[1:]
    grad_out = gradient[:, num_cls:]
    grads = _fold_queries_backward(grad_out, grid, *tables, ctx.thw, ctx.k_thw, ctx.sizes, rest) if any(rest) else []
    return grad_cls, *unpack_grads(grads, rest), *no_grads


register_autograd(_fold_queries, _setup_queries, _grad_queries)


class _AxisProducts:
    """Each axis' batched product of queries and embedding; the batch is (B, T), (B, T, H) and (W, h)."""

    def __init__(self, grid: Tensor, thw: Sequence[int], k_thw: Sequence[int], sizes: Sequence[int]) -> None:
        self.batch, _, self.heads, self.channels = grid.shape
        self.thw, self.k_thw, self.sizes = tuple(thw), tuple(k_thw), tuple(sizes)
        self.dtype, self.kernels = grid.dtype, device.kernels_for(grid)
        self.repeats = (self.batch, self.batch * thw[0], 1)  # of an embedding in its product's batch

    def views(self, x: Tensor) -> list[Tensor]:
        """x (B, T·H·W, h, ·), contiguous, as the first factor of each axis' product."""
        (t, h, w), last = self.thw, x.shape[-1]
        by_row = x.view(self.batch * t * h, w * self.heads, last)
        return [x.view(self.batch * t, h * w * self.heads, last), by_row, by_row.transpose(0, 1)]

    def embeddings(self, tables: Tables) -> list[Tensor | None]:
        """R of each axis as the second factor (axis batch, K, d); None for an axis without a table."""
        if self.kernels and tables_fit(tables, self.thw, self.k_thw):
            return self.kernels.gather_tables(
                tables, self.thw, self.k_thw, self.sizes, self.heads, self.repeats, self.dtype
            )
        embeddings: list[Tensor | None] = []
        for axis, table in enumerate(tables):
            if table is None:
                embeddings.append(None)
                continue
            embedding, padding = self._embedding(table, axis).to(self.dtype), self.sizes[axis] - self.k_thw[axis]
            embedding = F.pad(embedding, (0, 0, 0, padding)) if padding else embedding
            repeats = self.heads if axis == 2 else self.repeats[axis]
            if repeats != 1:
                expanded = embedding[:, None] if axis == 2 else embedding[None]
                embedding = expanded.expand(*((-1, repeats) if axis == 2 else (repeats, -1)), -1, -1).flatten(0, 1)
            embeddings.append(embedding)
        return embeddings

    def _embedding(self, table: Tensor, axis: int) -> Tensor:
        """R of one axis (Q, K, d); read at every call, never cached, because weights change."""
        q_size, k_size = self.thw[axis], self.k_thw[axis]
        if len(table) == table_rows(q_size, k_size):
            return table[_cached_rows(q_size, k_size, table.device)]
        mix = _cached_resampling(q_size, k_size, len(table), self.dtype, table.device)
        return (mix @ table.to(self.dtype)).unflatten(0, (q_size, k_size))

    def tables_gradient(self, grad_embeddings: Sequence[Tensor | None], tables: Tables) -> list[Tensor | None]:
        """Gradients w.r.t. the tables, given those w.r.t. `embeddings`; None where there is none."""
        if (
            self.kernels
            and tables_fit(tables, self.thw, self.k_thw)
            and all(part is not None for part, table in zip(grad_embeddings, tables, strict=True) if table is not None)
        ):
            arguments = (grad_embeddings, tables, self.thw, self.k_thw, self.sizes, self.heads, self.repeats)
            return self.kernels.tables_gradient(*arguments)
        grads: list[Tensor | None] = []
        for axis, (part, table) in enumerate(zip(grad_embeddings, tables, strict=True)):
            grads.append(None if part is None or table is None else self._table_gradient(part, table, axis))
        return grads

    def _table_gradient(self, grad_products: Tensor, table: Tensor, axis: int) -> Tensor:
        q_size, k_size = self.thw[axis], self.k_thw[axis]
        split = (q_size, self.heads) if axis == 2 else (self.repeats[axis], q_size)
        grad_embedding = grad_products.unflatten(0, split).sum(1 if axis == 2 else 0, dtype=table.dtype)
        pairs = grad_embedding[:, :k_size].flatten(0, 1)
        if len(table) == table_rows(q_size, k_size):
            return torch.zeros_like(table).index_add_(0, _cached_rows(q_size, k_size, table.device).flatten(), pairs)
        return _cached_resampling(q_size, k_size, len(table), table.dtype, table.device).t() @ pairs


def tables_fit(tables: Tables, q_thw: Sequence[int], k_thw: Sequence[int]) -> bool:
    """Whether there are tables and all of them have exactly the rows of these grids, so that none is resampled."""
    sizes = zip(tables, q_thw, k_thw, strict=True)
    exact = [table.shape[0] == table_rows(q, k) for table, q, k in sizes if table is not None]
    return bool(exact) and all(exact)


# Cached per size, since they depend on sizes only. Not inference tensors, because training may use them later.
@cached_table
def _cached_rows(q_size: int, k_size: int, at: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return distance_rows(q_size, k_size, at)


@cached_table
def _cached_resampling(q_size: int, k_size: int, rows: int, dtype: torch.dtype, at: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return resampling(q_size, k_size, rows, torch.promote_types(dtype, torch.float32), at).to(dtype).flatten(0, 1)


@cached_table
def _cached_coordinates(k_thw: Grid, sizes: Grid, dtype: torch.dtype, at: torch.device) -> Tensor:
    with torch.inference_mode(False):
        one_hot = key_coordinates(k_thw, sizes, torch.empty(0, dtype=dtype, device=at))
        return one_hot.unsqueeze(1)  # the same for all heads


def _fake_fold_keys(cls, grid, thw, sizes, scale, channels):
    return grid.new_empty(grid.shape[0], cls.shape[1] + grid.shape[1], grid.shape[2], channels)


@operator(_fake_fold_keys)
def _fold_keys(
    cls: Tensor, grid: Tensor, thw: Sequence[int], sizes: Sequence[int], scale: float, channels: int
) -> Tensor:
    """[k·scale, one-hot coordinates, zeros] (B, M, h, D); with zero sizes and scale 1 just the padded tokens."""
    kernels = device.kernels_for(grid)
    if kernels:
        return kernels.fold_keys(cls, grid, tuple(thw), sizes, scale, channels)
    out = grid.new_empty(grid.shape[0], cls.shape[1] + grid.shape[1], grid.shape[2], channels)
    coordinates = [_cached_coordinates(tuple(thw), tuple(sizes), grid.dtype, grid.device)] if any(sizes) else []
    if scale != 1.0:
        cls, grid = cls * scale, grid * scale
    return _fill(out, cls, grid, coordinates)


def _setup_keys(ctx, inputs, output) -> None:
    ctx.layout = inputs[0].shape[1], inputs[1].shape[-1], inputs[4]


def _grad_keys(ctx, gradient):
    num_cls, head_dim, scale = ctx.layout
    grad = gradient[..., :head_dim] if scale == 1.0 else gradient[..., :head_dim] * scale
    return grad[:, :num_cls], grad[:, num_cls:], None, None, None, None


register_autograd(_fold_keys, _setup_keys, _grad_keys)
