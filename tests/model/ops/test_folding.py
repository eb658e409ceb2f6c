"""Queries and keys with positions as channels: values, gradients, tables of other sizes, and what is cached between calls."""

import pytest
import torch
from torch import nn

from mvit_video import build_model
from mvit_video.model.heads import Heads
from mvit_video.model.ops import folding
from mvit_video.model.relative_position import table_rows

THW, K_THW, SCALE = (2, 3, 4), (2, 2, 1), 0.37


def tokens(thw, num_cls, batch=2, heads=2):
    sizes = (num_cls, thw[0] * thw[1] * thw[2])
    return Heads(*(torch.randn(batch, n, heads, 5, dtype=torch.float64, requires_grad=True) for n in sizes), thw)


def tables(axes, other_rows=0):
    sizes = zip("thw", THW, K_THW, strict=True)
    return [
        torch.randn(table_rows(q, k) + other_rows, 5, dtype=torch.float64, requires_grad=True) if axis in axes else None
        for axis, q, k in sizes
    ]


@pytest.mark.parametrize("num_cls", [0, 1])
@pytest.mark.parametrize("axes", ["thw", "hw", "t", ""])
@pytest.mark.parametrize("other_rows", [0, 3])
def test_folded_queries_and_keys_and_their_gradients_are_those_of_the_formulas(num_cls, axes, other_rows):
    torch.manual_seed(0)
    q, k, positions = tokens(THW, num_cls), tokens(K_THW, num_cls), tables(axes, other_rows)
    sizes = [size if axis in axes else 0 for axis, size in zip("thw", K_THW, strict=True)]
    channels = folding.round_up(5 + sum(sizes))
    expected = (
        folding.queries_formula(THW, K_THW, sizes, channels, q.cls, q.grid, *positions),
        folding.keys_formula(k, positions, SCALE, channels),
    )
    actual = folding.fold(q, k, positions, SCALE)
    given = [part for part in (q.cls, q.grid, *positions, k.cls, k.grid) if part is not None and part.numel()]
    backs = [torch.randn_like(part) for part in expected]
    gradients = [torch.autograd.grad(outs, given, backs) for outs in (actual, expected)]
    for one, other in zip((*actual, *gradients[0]), (*expected, *gradients[1]), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("other_rows", [0, 4])
def test_a_changed_table_is_read_again_however_it_was_changed(other_rows):
    q, table = tokens((1, 4, 1), 0), nn.Parameter(torch.zeros(7 + other_rows, 5, dtype=torch.float64))

    def terms():
        queries, _ = folding.fold(q, tokens((1, 4, 1), 0), (None, table, None), 1.0)
        return queries[..., 5:9]

    with torch.inference_mode():
        assert terms().abs().max() == 0
    table.data.fill_(2.0)  # which does not change the tensor's version
    with torch.inference_mode():
        assert torch.allclose(terms(), 2.0 * q.grid.sum(-1, keepdim=True).expand(-1, -1, -1, 4))
    terms().sum().backward()  # what was cached in inference serves training too
    assert torch.allclose(table.grad.sum(0), 4 * q.grid.detach().sum((0, 1, 2)))


@pytest.mark.parametrize("other_rows", [0, 4])
def test_what_depends_on_the_sizes_alone_is_computed_once(other_rows):
    cached = (folding._cached_resampling if other_rows else folding._cached_rows).__wrapped__
    cached.cache_clear()
    for _ in range(3):
        folding.fold(tokens(THW, 1), tokens(K_THW, 1), tables("h", other_rows), SCALE)
    assert (cached.cache_info().misses, cached.cache_info().hits) == (1, 2)


def test_gradients_of_gradients_exist_under_autocast():
    arguments = dict(num_frames=2, crop_size=32, depths=(1, 1), embed_dim=16)
    model = build_model("mvitv2_nano_8x3", num_classes=4, **arguments).eval()
    clips, parameters = torch.randn(1, 3, 2, 32, 32), list(model.parameters())
    second = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = model(clips)
        first = torch.autograd.grad(out.float().square().sum(), parameters, create_graph=True)
        total = torch.stack([grad.float().square().sum() for grad in first]).sum()
        second.append(torch.cat([grad.flatten() for grad in torch.autograd.grad(total, parameters)]))
    assert (second[1] - second[0]).norm() < 0.1 * second[0].norm()
