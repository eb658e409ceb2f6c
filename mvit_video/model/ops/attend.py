"""The attention of folded queries and keys, and what is added to its grid behind it."""

# B batch, N queries, M keys, h heads, d channels of a head, D channels of folded queries and keys

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mvit_video.model.heads import Heads
from mvit_video.model.ops import device
from mvit_video.model.ops.block_attention import attention_formula, block_attention, goes_by_blocks
from mvit_video.model.ops.folding import Tables, fold, widen
from mvit_video.model.ops.operators import autograd_rule, by_formula, operator


def folded_attention(
    q: Heads, k: Heads, v: Heads, tables: Tables, scale: float, formula: Callable[..., Tensor]
) -> Tensor:
    """softmax(q·kᵀ·scale + E)·v without an N×M matrix: (B, N, h, d). `formula` is the same with it, for who looks on.

    Positions become channels of queries and keys. On CPUs where that is faster, attention goes by blocks of queries. The
    fused kernels, which everything else takes, want one channel count for all: the values get zeros that are cut off again.
    """
    if device.is_watched():
        return formula(q, k, v, tables, scale)
    queries, keys = fold(q, k, tables, scale)
    channels = v.grid.shape[-1]
    if queries.device.type != "cpu" or device.is_decomposed():
        values = widen(v, queries.shape[-1])
        queries, keys, values = (tokens.transpose(1, 2) for tokens in (queries, keys, values))
        return F.scaled_dot_product_attention(queries, keys, values, scale=1.0).transpose(1, 2)[..., :channels]
    dtype = device.compute_dtype(queries)
    queries, keys = queries.to(dtype), keys.to(dtype)
    if not torch.compiler.is_compiling() and goes_by_blocks(queries, keys, channels):
        return block_attention(queries, keys, widen(v, channels).to(dtype))
    return _attention(queries, keys, widen(v, queries.shape[-1]).to(dtype))[0][..., :channels]


def _fake_attention(queries, keys, values):
    return queries.new_empty(queries.shape), queries.new_empty(queries.shape[:-1], dtype=_sum_dtype(queries))


@operator(_fake_attention)
def _attention(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The attention (B, N, h, D) and the logarithms of its sums (B, N, h)."""
    if queries.numel() == 0:
        sums = queries.new_empty(queries.shape[:-1], dtype=_sum_dtype(queries))
        return torch.empty_like(queries, memory_format=torch.contiguous_format), sums
    parts = (tokens.transpose(1, 2) for tokens in (queries, keys, values))
    out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*parts, scale=1.0)
    return out.transpose(1, 2).contiguous(), sums.transpose(1, 2).contiguous()


def _sum_dtype(queries: Tensor) -> torch.dtype:
    return torch.promote_types(queries.dtype, torch.float32)


def _fake_attention_backward(gradient, queries, keys, values, out, sums):
    return tuple(part.new_empty(part.shape) for part in (queries, keys, values))


@operator(_fake_attention_backward)
def _attention_backward(
    gradient: Tensor, queries: Tensor, keys: Tensor, values: Tensor, out: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if queries.numel() == 0:
        return torch.zeros_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
    parts = (tokens.transpose(1, 2) for tokens in (gradient, queries, keys, values, out, sums))
    found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*parts, 0.0, False, scale=1.0)
    of_queries, of_keys, of_values = (part.transpose(1, 2).contiguous() for part in found)
    return of_queries, of_keys, of_values


def _keep(ctx, inputs, output) -> None:
    out, sums = output
    ctx.mark_non_differentiable(sums)
    ctx.save_for_backward(*inputs, out, sums)


def _backward(ctx, gradient, _):
    *given, out, sums = ctx.saved_tensors
    if torch.is_grad_enabled():
        return tuple(by_formula(attention_formula, given, ctx.needs_input_grad[1:], [gradient]))
    return _attention_backward(gradient, *given, out, sums)


autograd_rule(_attention, _keep, _backward)


def add_to_grid(out: Tensor, term: Heads) -> Tensor:
    """A term, such as the pooled queries (residual pooling, paper §4.1), added to the attention's output, but to no class token."""
    if device.is_decomposed():
        num_cls = term.cls.shape[1]
        return torch.cat([out[:, :num_cls], out[:, num_cls:] + term.grid], 1)
    return _add_to_grid(out, term.grid)


def _fake_add_to_grid(out, grid):
    return out.new_empty(out.shape)


@operator(_fake_add_to_grid)
def _add_to_grid(out: Tensor, grid: Tensor) -> Tensor:
    num_cls = out.shape[1] - grid.shape[1]
    total = torch.empty_like(out, memory_format=torch.contiguous_format)
    total[:, :num_cls] = out[:, :num_cls]
    torch.add(out[:, num_cls:], grid, out=total[:, num_cls:])
    return total


def _keep_count(ctx, inputs, output) -> None:
    ctx.num_cls = inputs[0].shape[1] - inputs[1].shape[1]


def _back_through_residual(ctx, gradient):
    return gradient, gradient[:, ctx.num_cls :]


autograd_rule(_add_to_grid, _keep_count, _back_through_residual)
