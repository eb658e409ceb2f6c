"""Block-wise attention on CPUs: plain matrix products over blocks of queries whose scores fit into the cache.

The fused kernel multiplies small tiles, far below the peak of CPUs with bf16 instructions, or with oneDNN in fp32. Here
each block of queries is multiplied with all keys at once. Only the three inputs are saved for backward; scores are
recomputed. In bf16, scores are rounded to bf16 before the softmax, as in plain modules.
"""

# B batch, N queries, M keys, h heads, D channels of folded queries and keys, d channels of values,
# G (sample, head) pairs processed together, n queries of a block

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mvit_video.model.ops import cpu
from mvit_video.model.ops.matmul import MIN_SIZE, bmm
from mvit_video.model.ops.norm import accumulator
from mvit_video.model.ops.operators import differentiable_grad, operator, register_autograd

BLOCK_BYTES = 2**20  # of a block's scores, per thread
MIN_QUERIES, MAX_QUERIES = 256, 1024  # of a block; the maximum is per thread
FEW_KEYS, WIDE = 512, 64  # keys and channels of values: where blocks gain with AMX; gradients also of narrower heads


def use_block_attention(queries: Tensor, keys: Tensor, channels: int) -> bool:
    """Whether block-wise attention is faster on this CPU: queries (B, N, h, D), keys (B, M, h, D), values of `channels`."""
    if queries.device.type != "cpu" or queries.numel() == 0:
        return False
    if queries.dtype == torch.bfloat16:
        backends = cpu.cpu_backends()
        few = keys.shape[1] <= FEW_KEYS and channels >= WIDE
        return backends.bf16_blocks and (few or not backends.few_keys)
    sizes = (queries.shape[1], keys.shape[1], keys.shape[3], channels)
    return queries.dtype == torch.float32 and min(sizes) >= MIN_SIZE and cpu.onednn_enabled()


def use_block_gradients(keys: Tensor) -> bool:
    """Whether block-wise gradients of the fused kernel's attention are faster on this CPU, for keys (B, M, h, D)."""
    few = keys.shape[1] <= FEW_KEYS and cpu.cpu_backends().few_keys
    return few and keys.device.type == "cpu" and keys.dtype == torch.bfloat16


def block_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(queries·keysᵀ)·values: (B, N, h, D), (B, M, h, D), (B, M, h, d) -> (B, N, h, d)."""
    return _block_attention(queries, keys, values)


def block_gradients(gradient: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients w.r.t. queries, keys and values of softmax(queries·keysᵀ)·values; the scores are computed again."""
    return _block_attention_backward(gradient, queries, keys, values)


def attention_formula(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The plain formula, with the N×M matrix."""
    queries, keys, values = (tokens.transpose(1, 2) for tokens in (queries, keys, values))
    return ((queries @ keys.transpose(-2, -1)).softmax(-1) @ values).transpose(1, 2)


class _HeadGroup(NamedTuple):
    """Samples and heads that are processed together, and their blocks of queries."""

    samples: slice
    heads: slice
    blocks: list[slice]

    def gather(self, tokens: Tensor, rows: slice = slice(None)) -> Tensor:
        """(B, ·, h, C) -> (G, rows, C), contiguous."""
        return tokens[self.samples, rows, self.heads].transpose(1, 2).flatten(0, 1).contiguous()

    def scatter(self, tokens: Tensor, values: Tensor, rows: slice = slice(None)) -> None:
        """Inverse of `gather`: write values (G, rows, C) into tokens (B, ·, h, C)."""
        view = tokens[self.samples, rows, self.heads].transpose(1, 2)
        view.copy_(values.view(view.shape))


def _head_groups(queries: Tensor, keys: Tensor) -> Iterator[_HeadGroup]:
    """Blocks of a single head where there are many queries, else as many whole samples as fit into a block."""
    (batch, count, heads, _), row_bytes = queries.shape, keys.shape[1] * queries.element_size()
    capacity = BLOCK_BYTES * torch.get_num_threads() // row_bytes  # queries
    step = min(max(capacity, MIN_QUERIES), MAX_QUERIES * torch.get_num_threads())
    if 2 * count > step or queries.dtype == torch.float32:
        blocks = [slice(start, start + step) for start in range(0, count, step)]
        for sample in range(batch):
            for head in range(heads):
                yield _HeadGroup(slice(sample, sample + 1), slice(head, head + 1), blocks)
        return
    samples = max(capacity // (count * heads), 1)
    for sample in range(0, batch, samples):
        yield _HeadGroup(slice(sample, sample + samples), slice(None), [slice(None)])


def _fake_block_attention(queries, keys, values):
    return values.new_empty(*queries.shape[:-1], values.shape[-1])


@operator(_fake_block_attention)
def _block_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    out = values.new_empty(*queries.shape[:-1], values.shape[-1])
    for group in _head_groups(queries, keys):
        keys_t, values_g = group.gather(keys).transpose(1, 2), group.gather(values)
        for rows in group.blocks:
            weights = bmm(group.gather(queries, rows), keys_t).softmax(-1)
            group.scatter(out, bmm(weights, values_g), rows)
    return out


def _fake_block_attention_backward(gradient, queries, keys, values):
    return tuple(part.new_empty(part.shape) for part in (queries, keys, values))


@operator(_fake_block_attention_backward)
def _block_attention_backward(
    gradient: Tensor, queries: Tensor, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad_queries, grad_keys, grad_values = (part.new_empty(part.shape) for part in (queries, keys, values))
    for group in _head_groups(queries, keys):
        keys_g, values_g = group.gather(keys), group.gather(values)
        grad_keys_g, grad_values_g = (accumulator(*part.shape, like=part) for part in (keys_g, values_g))
        for rows in group.blocks:
            queries_g, grad_out = group.gather(queries, rows), group.gather(gradient, rows)
            weights = bmm(queries_g, keys_g.transpose(1, 2)).softmax(-1)
            grad_values_g += bmm(weights.transpose(1, 2), grad_out)
            grad_weights = bmm(grad_out, values_g.transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_keys_g += bmm(grad_scores.transpose(1, 2), queries_g)
            group.scatter(grad_queries, bmm(grad_scores, keys_g), rows)
        group.scatter(grad_keys, grad_keys_g)
        group.scatter(grad_values, grad_values_g)
    return grad_queries, grad_keys, grad_values


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, gradient):
    if torch.is_grad_enabled():
        return tuple(differentiable_grad(attention_formula, ctx.saved_tensors, ctx.needs_input_grad[1:], [gradient]))
    return _block_attention_backward(gradient, *ctx.saved_tensors)


register_autograd(_block_attention, _setup_context, _backward)
