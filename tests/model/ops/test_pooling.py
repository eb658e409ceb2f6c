from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from mvit_video import build_model
from mvit_video.model.layers import PatchConv
from mvit_video.model.ops import device
from mvit_video.model.ops import linear as linear_ops
from mvit_video.model.ops.linear import Linear
from mvit_video.model.ops.pooling import conv3d_as_2d, max_pool, project_and_pool


@pytest.fixture(autouse=True, params=[0, linear_ops.SMALL], ids=["parts alone", "parts together"])
def projection(request, monkeypatch):
    """Small projections are plain layers, whose parts are pooled together."""
    monkeypatch.setattr(linear_ops, "SMALL", request.param)


def layers(strides, kernel=(3, 3, 3), heads=2, head_dim=3):
    """A linear layer in double precision and, for each stride, a filter and a norm of its part; None without a stride."""
    torch.manual_seed(0)
    dim, middle = heads * head_dim, [length // 2 for length in kernel]
    linear, pools = Linear(4, len(strides) * dim), []
    for stride in strides:
        conv = nn.Conv3d(head_dim, head_dim, kernel, stride or 1, middle, groups=head_dim, bias=False)
        norm = nn.LayerNorm(head_dim, 1e-6)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        pools.append((conv.double(), norm.double()) if stride else (None, None))
    return linear.double(), pools


def by_loops(x, thw, linear, pools, heads=2):
    """One part and one head at a time, through PyTorch's own functions."""
    found, num_cls = [], x.shape[1] - thw[0] * thw[1] * thw[2]
    for part, (conv, norm) in zip(F.linear(x, linear.weight, linear.bias).chunk(len(pools), -1), pools, strict=True):
        tokens = []
        for head in part.chunk(heads, -1):
            if conv is None:
                tokens.append(head)
                continue
            cls, grid = head[:, :num_cls], head[:, num_cls:].transpose(1, 2).unflatten(2, thw)
            grid = F.conv3d(grid, conv.weight, None, conv.stride, conv.padding, groups=len(conv.weight))
            joined = torch.cat([cls, grid.flatten(2).transpose(1, 2)], 1)
            tokens.append(F.layer_norm(joined, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
        found.append(torch.stack(tokens, 2))
    return found


@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3), (5, 3, 1), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (1, 8, 8), (2, 1, 3), (3, 2, 2)], ids=str)
@pytest.mark.parametrize("size", [(1, 5, 7), (2, 8, 8), (7, 3, 2), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("num_cls", [0, 1])
def test_pooling_and_its_gradients_are_those_of_conv3d_and_layer_norm(kernel, stride, size, num_cls):
    """A grid of one cell comes alone: torch.cat(out=) of PyTorch 2.13 wrote nothing for it."""
    linear, pools = layers([(1, 1, 1), stride, None], kernel)
    x = torch.randn(
        1 if size == (1, 1, 1) else 2, num_cls + size[0] * size[1] * size[2], 4, dtype=torch.float64, requires_grad=True
    )
    expected = by_loops(x, size, linear, pools)
    heads = project_and_pool(x, size, linear, pools, 2)
    pooled_size = tuple((length - 1) // step + 1 for length, step in zip(size, stride, strict=True))
    assert [part.thw for part in heads] == [size, pooled_size, size]
    assert all(part.cls.shape[1] == num_cls for part in heads)
    ours = [part.joined() for part in heads]
    given = [
        x,
        *linear.parameters(),
        *(weight for pool in pools[:2] for layer in pool for weight in layer.parameters()),
    ]
    backs = [torch.randn_like(part) for part in expected]
    gradients = [torch.autograd.grad(actual, given, backs) for actual in (ours, expected)]
    for one, other in zip([*ours, *gradients[0]], [*expected, *gradients[1]], strict=True):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=1e-9)
    with torch.inference_mode():
        again = project_and_pool(x, size, linear, pools, 2)
    for one, other in zip(again, expected, strict=True):
        torch.testing.assert_close(one.joined(), other, atol=1e-11, rtol=1e-9)


def test_an_image_whose_last_grid_is_one_cell_has_its_gradients_alone_too():
    """Of a batch of one, torch.cat(out=) of PyTorch 2.13 wrote nothing: the gradient was what memory held."""
    model = build_model("mvitv2_t_in1k", num_classes=5, depths=(1, 2), embed_dim=16, crop_size=8).double().eval()
    image, parameters = torch.randn(1, 3, 1, 8, 8, dtype=torch.float64), list(model.parameters())
    twice = torch.cat([image, image])
    one, other = (torch.autograd.grad(model(x).mean(), parameters) for x in (image, twice))
    for found, expected in zip(one, other, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)


def with_filter(x, thw, linear, conv):
    """Only the output of the value filter."""
    *_, (cls, grid, size) = project_and_pool(x, thw, linear, [(None, None)] * 2, 2, conv)
    assert cls.shape[1] == x.shape[1] - thw[0] * thw[1] * thw[2]
    return grid, size


def filter_by_loops(values, weight, thw, stride):
    """Cell by cell and tap by tap: values (B, T·H·W, C), weight (C, 1, t, h, w), zeros beyond the grid."""
    grid, found = values.unflatten(1, thw), []
    middle = [length // 2 for length in weight.shape[2:]]
    for place in product(*(range(0, length, step) for length, step in zip(thw, stride, strict=True))):
        total = torch.zeros_like(values[:, 0])
        for tap in product(*map(range, weight.shape[2:])):
            seen = [p + one - half for p, one, half in zip(place, tap, middle, strict=True)]
            if all(0 <= p < length for p, length in zip(seen, thw, strict=True)):
                total = total + grid[(slice(None), *seen)] * weight[(slice(None), 0, *tap)]
        found.append(total)
    return torch.stack(found, 1)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3), (1, 5, 1)], ids=str)
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 1)], ids=str)
@pytest.mark.parametrize("num_cls", [0, 1])
def test_a_value_filter_and_its_gradients_are_those_of_a_loop(kernel, stride, num_cls):
    linear, _ = layers([None, None])
    conv = nn.Conv3d(6, 6, kernel, stride, [k // 2 for k in kernel], groups=6, bias=False, dtype=torch.float64)
    thw = (2, 3, 4)
    x = torch.randn(2, num_cls + 24, 4, dtype=torch.float64, requires_grad=True)
    values = F.linear(x, linear.weight, linear.bias)[:, num_cls:, 6:]
    expected = filter_by_loops(values, conv.weight, thw, stride)
    actual, size = with_filter(x, thw, linear, conv)
    assert size == tuple((length - 1) // step + 1 for length, step in zip(thw, stride, strict=True))
    given, back = [x, linear.weight, linear.bias, conv.weight], torch.randn_like(expected)
    gradients = [torch.autograd.grad(out, given, back) for out in (actual.flatten(2), expected)]
    for one, other in zip([actual.flatten(2), *gradients[0]], [expected, *gradients[1]], strict=True):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=1e-9)
    handle = conv.register_forward_hook(lambda module, inputs, out: 2 * out)
    torch.testing.assert_close(with_filter(x, thw, linear, conv)[0], 2 * actual)
    handle.remove()
    conv.weight.requires_grad_(False)
    with_filter(x, thw, linear, conv)[0].sum().backward()
    assert conv.weight.grad is None and x.grad is not None


@pytest.mark.parametrize("frozen", ["filters", "norms", "all but x", "x"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(frozen):
    linear, pools = layers([(1, 2, 2)])
    (conv, norm), x = pools[0], torch.randn(1, 33, 4, dtype=torch.float64, requires_grad=True)
    given = {"x": x, "conv": conv.weight, "scale": norm.weight, "shift": norm.bias}
    expected = dict(zip(given, torch.autograd.grad(sums(x, linear, pools), list(given.values())), strict=True))
    linear.requires_grad_(False)
    conv.requires_grad_(frozen not in ("filters", "all but x"))
    norm.requires_grad_(frozen not in ("norms", "all but x"))
    x = x.detach().requires_grad_(frozen != "x")
    sums(x, linear, pools).backward()
    actual = {"x": x.grad, "conv": conv.weight.grad, "scale": norm.weight.grad, "shift": norm.bias.grad}
    for name, gradient in actual.items():
        is_frozen = frozen in {"x": ["x"], "conv": ["filters", "all but x"]}.get(name, ["norms", "all but x"])
        assert (gradient is None) == is_frozen
        assert is_frozen or torch.allclose(gradient, expected[name], atol=1e-12)


def sums(x, linear, pools):
    (heads,) = project_and_pool(x, (2, 4, 4), linear, pools, 2)
    return heads.grid.pow(3).sum() + heads.cls.pow(3).sum()


@pytest.mark.parametrize("used", ["cls", "grid"])
def test_outputs_that_nothing_uses_have_zero_gradients(used):
    linear, pools = layers([(1, 1, 1), (1, 2, 2)])
    x = torch.randn(2, 33, 4, dtype=torch.float64, requires_grad=True)
    expected = by_loops(x, (2, 4, 4), linear, pools)[1]
    expected = expected[:, :1] if used == "cls" else expected[:, 1:]
    (_, heads) = project_and_pool(x, (2, 4, 4), linear, pools, 2)
    given = [x, *linear.parameters(), *pools[1][0].parameters(), *pools[1][1].parameters()]
    back = torch.randn_like(expected)
    both = (torch.autograd.grad(out, given, back, allow_unused=True) for out in (getattr(heads, used), expected))
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, torch.zeros_like(one) if other is None else other, atol=1e-11, rtol=1e-9)


def test_gradients_of_gradients_are_right():
    linear, pools = layers([(1, 2, 1)])
    x = torch.randn(1, 13, 4, dtype=torch.float64, requires_grad=True)
    given = (x, pools[0][0].weight, pools[0][1].weight)

    def run(x, *_):
        (heads,) = project_and_pool(x, (2, 2, 3), linear, pools, 2)
        return heads.cls, heads.grid

    assert torch.autograd.gradcheck(run, given)
    assert torch.autograd.gradgradcheck(run, given)
    conv = nn.Conv3d(6, 6, (1, 3, 3), (1, 2, 1), (0, 1, 1), groups=6, bias=False, dtype=torch.float64)
    linear, _ = layers([None, None])
    filtered = lambda x, _: with_filter(x, (2, 2, 3), linear, conv)[0]  # noqa: E731
    assert torch.autograd.gradgradcheck(filtered, (x, conv.weight))


@pytest.mark.parametrize("stride", [(1, 2, 2), (2, 2, 2), (1, 1, 3)], ids=str)
@pytest.mark.parametrize("size", [(1, 1, 2), (3, 5, 8), (4, 7, 7)], ids=str)
def test_max_pooling_is_over_overlapping_windows(stride, size):
    torch.manual_seed(0)
    cells = torch.randn(2, *size, 5, requires_grad=True)
    pooled = max_pool(cells.permute(0, 4, 1, 2, 3), stride)
    kernel = [step + 1 if step > 1 else 1 for step in stride]
    padded = F.pad(cells.permute(0, 4, 1, 2, 3), [k // 2 for k in reversed(kernel) for _ in "ab"], value=float("-inf"))
    windows = padded
    for axis in range(3):
        windows = windows.unfold(2 + axis, kernel[axis], stride[axis])
    expected = windows.amax((-1, -2, -3))
    assert torch.equal(pooled, expected)
    back = torch.randn_like(expected)
    assert torch.allclose(*(torch.autograd.grad(value, cells, back)[0] for value in (pooled, expected)))


class Doubled(nn.Conv3d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("num_cls", [0, 1])
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2)], ids=str)
def test_hooks_pruning_and_filters_of_other_types_are_honoured(num_cls, stride):
    torch.manual_seed(0)
    x, thw = torch.randn(2, num_cls + 2 * 4 * 5, 4), (2, 4, 5)
    conv, norm = nn.Conv3d(6, 6, 3, stride, 1, groups=6, bias=False), nn.LayerNorm(6, 0.1)

    linear = Linear(4, 18)

    def pooled(conv):
        return project_and_pool(x, thw, linear, [(conv, norm)], 3)[0]

    cls, plain, size = pooled(conv)
    seen = []
    handle = conv.register_forward_hook(lambda module, given, out: seen.append(out.shape[2:]))
    for one, other in zip(pooled(conv)[:2], (cls, plain), strict=True):
        torch.testing.assert_close(one, other)
    handle.remove()
    assert seen == [size] and pooled(conv)[2] == size

    doubled = Doubled(6, 6, 3, stride, 1, groups=6, bias=False)
    doubled.weight = nn.Parameter(conv.weight / 2)
    torch.testing.assert_close(pooled(doubled)[1], plain)
    biased = nn.Conv3d(6, 6, 3, stride, 1, groups=6)
    with_bias = pooled(biased)[1]
    nn.init.zeros_(biased.bias)
    assert not torch.allclose(pooled(biased)[1], with_bias)

    prune.l1_unstructured(conv, "weight", 0.5)
    with torch.no_grad():
        conv.weight_orig += 1
    once = conv.weight_orig * conv.weight_mask
    masked = nn.Conv3d(6, 6, 3, stride, 1, groups=6, bias=False)
    masked.weight = nn.Parameter(once.detach())
    torch.testing.assert_close(pooled(conv)[1], pooled(masked)[1])


@pytest.mark.parametrize("size", [(4, 8, 8), (5, 9, 7)], ids=str)
def test_patches_by_a_2d_convolution_are_those_of_the_3d_convolution(size):
    torch.manual_seed(0)
    conv, clips = PatchConv(3, 4, (3, 7, 7), (2, 4, 4), (1, 3, 3)), torch.randn(2, 3, *size)
    torch.testing.assert_close(conv3d_as_2d(clips, conv), nn.Conv3d.forward(conv, clips))
    torch.testing.assert_close(conv(clips), nn.Conv3d.forward(conv, clips))


def test_observers_see_plain_operations(monkeypatch):
    """Under torch.func, tracers and counters."""
    linear, pools = layers([(1, 2, 2)])
    x = torch.randn(1, 33, 4, dtype=torch.float64)
    expected = sums(x, linear, pools)
    monkeypatch.setattr(device, "is_observed", lambda: True)
    assert torch.allclose(sums(x, linear, pools), expected)
