"""Attention by blocks of queries against the formula with its N×M matrix, and where it is blockwise."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import tiny_video

from mvit_video.model.ops import block_attention as module
from mvit_video.model.ops import cpu
from mvit_video.model.ops.attend import _attention
from mvit_video.model.ops.block_attention import (
    attention_formula,
    block_attention,
    use_block_attention,
    use_block_gradients,
)
from mvit_video.model.ops.cpu import CpuBackends

BLOCKS = CpuBackends(onednn=True, bf16_blocks=True)


def parts(batch, queries, keys, heads, channels, of_values, dtype=torch.float64):
    torch.manual_seed(0)
    sizes = ((queries, channels), (keys, channels), (keys, of_values))
    return [torch.randn(batch, count, heads, width, dtype=dtype, requires_grad=True) for count, width in sizes]


def with_gradients(attend, given):
    out = attend(*given)
    back = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad(out, given, back)]


@pytest.mark.parametrize("block_bytes", [1, 10**6], ids=["a few queries", "many samples"])
@pytest.mark.parametrize("shape", [(3, 40, 7, 2, 8, 6), (1, 41, 7, 3, 8, 8), (4, 9, 1, 1, 4, 2)], ids=str)
def test_blocks_have_the_values_and_gradients_of_the_formula(shape, block_bytes, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(module, "MIN_QUERIES", 16)
    given = parts(*shape)
    for ours, expected in zip(
        with_gradients(block_attention, given), with_gradients(attention_formula, given), strict=True
    ):
        assert torch.allclose(ours, expected, atol=1e-12)


def test_gradients_of_gradients_are_right():
    given = parts(1, 3, 2, 2, 3, 2)
    assert torch.autograd.gradgradcheck(lambda *given: block_attention(*given).square(), given)


@pytest.mark.parametrize(
    ("dtype", "keys", "heads", "count", "groups"),
    [
        (torch.bfloat16, 393, 1, 2500, [(1, 1024), (1, 1024), (1, 452)] * 3),  # one head at a time
        (torch.bfloat16, 2001, 1, 600, [(1, 262), (1, 262), (1, 76)] * 3),  # many keys: fewer queries
        (torch.bfloat16, 9, 4, 100, [(12, 100)]),  # all samples and heads together
        (torch.float32, 393, 2, 400, [(1, 400)] * 6),
    ],
)
def test_a_block_has_as_many_queries_as_fit(dtype, keys, heads, count, groups):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        queries, others, _ = parts(3, count, keys, heads, 4, 4, dtype)
        found = list(module._head_groups(queries, others))
    finally:
        torch.set_num_threads(threads)
    assert [tuple(group.gather(queries, rows).shape[:2]) for group in found for rows in group.blocks] == groups


def test_fp32_by_onednn_is_as_exact_as_single_precision_can_be():
    given = parts(1, 600, 393, 1, 120, 96, torch.float32)
    with cpu.use_backends(BLOCKS):
        ours = with_gradients(block_attention, given)
    exact = with_gradients(attention_formula, [part.detach().double().requires_grad_() for part in given])
    plain = with_gradients(attention_formula, given)
    for one, other, expected in zip(ours, plain, exact, strict=True):
        assert (one - expected).norm() < max(2 * (other - expected).norm(), 1e-6 * expected.norm())


def test_bf16_is_as_exact_as_plain_modules():
    """Largest errors in shares of the largest value; the fused kernel, whose scores are not rounded, is closer."""
    given = parts(2, 300, 100, 2, 32, 32, torch.bfloat16)
    exact = with_gradients(attention_formula, [part.detach().double().requires_grad_() for part in given])
    actual = [with_gradients(attend, given) for attend in (block_attention, attention_formula)]
    for one, other, expected in zip(*actual, exact, strict=True):
        errors = [(value - expected).abs().max() for value in (one, other)]
        assert one.dtype == torch.bfloat16 and errors[0] < 1.5 * errors[1]


@pytest.mark.parametrize(
    ("backends", "dtype", "keys", "channels", "blockwise"),
    [
        (BLOCKS, torch.bfloat16, 4, 8, True),
        (BLOCKS, torch.float32, 393, 96, True),
        (BLOCKS, torch.float32, 95, 96, False),
        (BLOCKS, torch.float32, 393, 32, False),
        (BLOCKS, torch.float16, 393, 96, False),
        (BLOCKS, torch.float64, 393, 96, False),
        (CpuBackends(onednn=True), torch.bfloat16, 393, 96, False),
        (CpuBackends(bf16_blocks=True), torch.float32, 393, 96, False),
        (CpuBackends(), torch.bfloat16, 393, 96, False),
    ],
)
def test_block_attention_is_used_where_cpu_dtype_and_sizes_gain(backends, dtype, keys, channels, blockwise):
    queries, others, _ = parts(1, 100, keys, 1, channels, channels, dtype)
    with cpu.use_backends(backends):
        assert use_block_attention(queries, others, channels) == blockwise
        assert not use_block_attention(queries[:0], others, channels)


@pytest.mark.parametrize(
    ("keys", "channels", "blockwise", "gradients"),
    [(512, 64, True, True), (512, 63, False, True), (513, 64, False, False), (513, 32, False, False)],
)
def test_with_amx_blocks_need_few_keys_and_but_for_gradients_wide_heads(keys, channels, blockwise, gradients):
    queries, others, _ = parts(1, 20, keys, 1, channels, channels, torch.bfloat16)
    with cpu.use_backends(CpuBackends(bf16_blocks=True, few_keys=True)):
        assert use_block_attention(queries, others, channels) == blockwise
        assert use_block_gradients(others) == gradients and not use_block_gradients(others.float())
    with cpu.use_backends(CpuBackends(bf16_blocks=True)):
        assert not use_block_gradients(others)


def test_gradients_of_fused_attention_may_be_block_wise():
    exact = parts(2, 40, 9, 2, 16, 16, torch.float64)
    grad = torch.randn(2, 40, 2, 16, dtype=torch.float64)
    expected = torch.autograd.grad(attention_formula(*exact), exact, grad)
    for few_keys in (False, True):
        rounded = [part.detach().bfloat16().requires_grad_() for part in exact]
        with cpu.use_backends(CpuBackends(bf16_blocks=True, few_keys=few_keys)):
            found = torch.autograd.grad(_attention(*rounded)[0], rounded, grad.bfloat16())
        for one, other in zip(found, expected, strict=True):
            assert (one - other).norm() < 0.03 * other.norm()


def operators(out: torch.Tensor) -> set[str]:
    """The names of the operators that `out` comes from."""
    found, waiting = set(), [out.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [following for following, _ in node.next_functions]
    return {node._forward_cls.__name__ for node in found if hasattr(node, "_forward_cls")}


def test_a_network_uses_block_attention_where_the_cpu_gains_and_gives_nearly_the_same():
    torch.manual_seed(0)
    model, clips = tiny_video(drop_path_rate=0.0).eval(), torch.randn(2, 3, 4, 32, 32)
    found = {}
    for backends in (BLOCKS, CpuBackends()):
        with cpu.use_backends(backends), torch.autocast("cpu", torch.bfloat16):
            logits = model(clips)
            gradients = torch.autograd.grad(logits.float().square().sum(), list(model.parameters()), retain_graph=True)
        found[backends] = torch.cat([part.flatten().float() for part in (logits, *gradients)])
        blockwise = {name for name in operators(logits) if "attention" in name}
        assert blockwise == ({"block_attention"} if backends == BLOCKS else {"attention"})
    assert F.cosine_similarity(*found.values(), 0) > 0.999


def test_only_the_inputs_are_saved_for_backward():
    given, kept = parts(1, 13, 5, 2, 8, 6), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        block_attention(*given)
    assert {tensor.data_ptr() for tensor in kept} == {tensor.data_ptr() for tensor in given}
