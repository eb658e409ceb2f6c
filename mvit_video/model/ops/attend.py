"""Attention over folded queries and keys, and the residual added to its grid tokens."""

# B batch, N queries, M keys, h heads, d channels of a head, D channels of folded queries and keys

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mvit_video.model.heads import Heads
from mvit_video.model.ops import device
from mvit_video.model.ops.block_attention import (
    attention_formula,
    block_attention,
    block_gradients,
    use_block_attention,
    use_block_gradients,
)
from mvit_video.model.ops.folding import Tables, fold, pad_channels
from mvit_video.model.ops.operators import differentiable_grad, operator, register_autograd


def folded_attention(
    q: Heads, k: Heads, v: Heads, tables: Tables, scale: float, formula: Callable[..., Tensor]
) -> Tensor:
    """softmax(q·kᵀ·scale + E)·v without an N×M matrix: (B, N, h, d). `formula` computes the same with it, for observers.

    Positions become channels of queries and keys. Attention is block-wise on CPUs where that is faster, and fused
    elsewhere. Fused kernels require equal channel counts: values are zero-padded, and the padding is cut off again.
    """
    if device.is_observed():
        return formula(q, k, v, tables, scale)
    queries, keys = fold(q, k, tables, scale)
    channels = v.grid.shape[-1]
    if queries.device.type != "cpu" or device.must_decompose():
        values = pad_channels(v, queries.shape[-1])
        queries, keys, values = (tokens.transpose(1, 2) for tokens in (queries, keys, values))
        return F.scaled_dot_product_attention(queries, keys, values, scale=1.0).transpose(1, 2)[..., :channels]
    dtype = device.compute_dtype(queries)
    queries, keys = queries.to(dtype), keys.to(dtype)
    if not torch.compiler.is_compiling() and use_block_attention(queries, keys, channels):
        return block_attention(queries, keys, pad_channels(v, channels).to(dtype))
    return _attention(queries, keys, pad_channels(v, queries.shape[-1]).to(dtype))[0][..., :channels]


def _fake_attention(queries, keys, values):
    return queries.new_empty(queries.shape), queries.new_empty(queries.shape[:-1], dtype=_logsumexp_dtype(queries))


@operator(_fake_attention)
def _attention(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The attention (B, N, h, D) and the logsumexp of its scores (B, N, h)."""
    if queries.numel() == 0:
        logsumexp = queries.new_empty(queries.shape[:-1], dtype=_logsumexp_dtype(queries))
        return torch.empty_like(queries, memory_format=torch.contiguous_format), logsumexp
    parts = (tokens.transpose(1, 2) for tokens in (queries, keys, values))
    out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*parts, scale=1.0)
    return out.transpose(1, 2).contiguous(), logsumexp.transpose(1, 2).contiguous()


def _logsumexp_dtype(queries: Tensor) -> torch.dtype:
    return torch.promote_types(queries.dtype, torch.float32)


def _fake_attention_backward(gradient, queries, keys, values, out, logsumexp):
    return tuple(part.new_empty(part.shape) for part in (queries, keys, values))


@operator(_fake_attention_backward)
def _attention_backward(
    gradient: Tensor, queries: Tensor, keys: Tensor, values: Tensor, out: Tensor, logsumexp: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if queries.numel() == 0:
        return torch.zeros_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
    if use_block_gradients(keys):
        return block_gradients(gradient, queries, keys, values)
    parts = (tokens.transpose(1, 2) for tokens in (gradient, queries, keys, values, out, logsumexp))
    grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*parts, 0.0, False, scale=1.0)
    grad_queries, grad_keys, grad_values = (part.transpose(1, 2).contiguous() for part in grads)
    return grad_queries, grad_keys, grad_values


def _setup_context(ctx, inputs, output) -> None:
    out, logsumexp = output
    ctx.mark_non_differentiable(logsumexp)
    ctx.save_for_backward(*inputs, out, logsumexp)


def _backward(ctx, gradient, _):
    *inputs, out, logsumexp = ctx.saved_tensors
    if torch.is_grad_enabled():
        return tuple(differentiable_grad(attention_formula, inputs, ctx.needs_input_grad[1:], [gradient]))
    return _attention_backward(gradient, *inputs, out, logsumexp)


register_autograd(_attention, _setup_context, _backward)


def add_to_grid(out: Tensor, term: Heads) -> Tensor:
    """Add a term, such as the pooled queries (residual pooling, paper §4.1), to the grid tokens of the attention's output."""
    if device.must_decompose():
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


def _setup_residual(ctx, inputs, output) -> None:
    ctx.num_cls = inputs[0].shape[1] - inputs[1].shape[1]


def _grad_residual(ctx, gradient):
    return gradient, gradient[:, ctx.num_cls :]


register_autograd(_add_to_grid, _setup_residual, _grad_residual)
