"""Attention on CPUs as plain products over blocks of queries, whose scores stay in the processor's cache.

The fused kernel multiplies small tiles, which processors with fast products of bf16 numbers, or with oneDNN's in fp32, do
far below their speed. Here a block of queries meets all keys at once. Nothing but the three inputs is kept: scores are
made again in the backward pass. In bf16 scores are rounded to bf16 before the softmax, as plain modules do it.
"""

# B batch, N queries, M keys, h heads, D channels of folded queries and keys, d channels of values,
# G pairs of a sample and a head that are worked on together, n queries of a block

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mvit_video.model.ops import cpu
from mvit_video.model.ops.norm import zeros
from mvit_video.model.ops.operators import autograd_rule, by_formula, operator
from mvit_video.model.ops.products import LEAST_WIDTH, products

BYTES = 2**20  # of a block's scores and thread, between the least and the most queries
LEAST_QUERIES, MOST_QUERIES = 256, 1024


def goes_by_blocks(queries: Tensor, keys: Tensor, channels: int) -> bool:
    """Whether this CPU attends faster by blocks: queries (B, N, h, D), keys (B, M, h, D), values of so many channels."""
    if queries.device.type != "cpu" or queries.numel() == 0:
        return False
    if queries.dtype == torch.bfloat16:
        return cpu.ways().bf16_blocks
    sizes = (queries.shape[1], keys.shape[1], keys.shape[3], channels)
    return queries.dtype == torch.float32 and min(sizes) >= LEAST_WIDTH and cpu.takes_onednn()


def block_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(queries·keysᵀ)·values: (B, N, h, D), (B, M, h, D), (B, M, h, d) -> (B, N, h, d)."""
    return _block_attention(queries, keys, values)


def attention_formula(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The same with the N×M matrix."""
    queries, keys, values = (tokens.transpose(1, 2) for tokens in (queries, keys, values))
    return ((queries @ keys.transpose(-2, -1)).softmax(-1) @ values).transpose(1, 2)


class _Pairs(NamedTuple):
    """Some samples and some of their heads, and the queries of each block."""

    samples: slice
    heads: slice
    blocks: list[slice]

    def take(self, tokens: Tensor, rows: slice = slice(None)) -> Tensor:
        """(B, ·, h, C) -> (G, rows, C), as they lie best for products."""
        return tokens[self.samples, rows, self.heads].transpose(1, 2).flatten(0, 1).contiguous()

    def put(self, tokens: Tensor, found: Tensor, rows: slice = slice(None)) -> None:
        """The reverse."""
        place = tokens[self.samples, rows, self.heads].transpose(1, 2)
        place.copy_(found.view(place.shape))


def _pairs(queries: Tensor, keys: Tensor) -> Iterator[_Pairs]:
    """Blocks of one head where there are many queries, else as many samples at once as a block has room for."""
    (batch, count, heads, _), bytes_each = queries.shape, keys.shape[1] * queries.element_size()
    room = BYTES * torch.get_num_threads() // bytes_each  # queries
    step = min(max(room, LEAST_QUERIES), MOST_QUERIES * torch.get_num_threads())
    if 2 * count > step or queries.dtype == torch.float32:
        blocks = [slice(start, start + step) for start in range(0, count, step)]
        for sample in range(batch):
            for head in range(heads):
                yield _Pairs(slice(sample, sample + 1), slice(head, head + 1), blocks)
        return
    samples = max(room // (count * heads), 1)
    for sample in range(0, batch, samples):
        yield _Pairs(slice(sample, sample + samples), slice(None), [slice(None)])


def _fake_block_attention(queries, keys, values):
    return values.new_empty(*queries.shape[:-1], values.shape[-1])


@operator(_fake_block_attention)
def _block_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    out = values.new_empty(*queries.shape[:-1], values.shape[-1])
    for pairs in _pairs(queries, keys):
        turned, some_values = pairs.take(keys).transpose(1, 2), pairs.take(values)
        for rows in pairs.blocks:
            weights = products(pairs.take(queries, rows), turned).softmax(-1)
            pairs.put(out, products(weights, some_values), rows)
    return out


def _fake_block_attention_backward(gradient, queries, keys, values):
    return tuple(part.new_empty(part.shape) for part in (queries, keys, values))


@operator(_fake_block_attention_backward)
def _block_attention_backward(
    gradient: Tensor, queries: Tensor, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    of_queries, of_keys, of_values = (part.new_empty(part.shape) for part in (queries, keys, values))
    for pairs in _pairs(queries, keys):
        some_keys, some_values = pairs.take(keys), pairs.take(values)
        key_sums, value_sums = (zeros(*part.shape, like=part) for part in (some_keys, some_values))
        for rows in pairs.blocks:
            some_queries, back = pairs.take(queries, rows), pairs.take(gradient, rows)
            weights = products(some_queries, some_keys.transpose(1, 2)).softmax(-1)
            value_sums += products(weights.transpose(1, 2), back)
            of_weights = products(back, some_values.transpose(1, 2))
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            key_sums += products(of_scores.transpose(1, 2), some_queries)
            pairs.put(of_queries, products(of_scores, some_keys), rows)
        pairs.put(of_keys, key_sums)
        pairs.put(of_values, value_sums)
    return of_queries, of_keys, of_values


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, gradient):
    if torch.is_grad_enabled():
        return tuple(by_formula(attention_formula, ctx.saved_tensors, ctx.needs_input_grad[1:], [gradient]))
    return _block_attention_backward(gradient, *ctx.saved_tensors)


autograd_rule(_block_attention, _keep, _backward)
