import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from mvit_video.model.ops.pooling import depthwise_conv, max_pool, pool_norm


@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3), (5, 3, 1), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (1, 8, 8), (2, 1, 3), (3, 2, 2)], ids=str)
@pytest.mark.parametrize("size", [(1, 5, 7), (2, 8, 8), (4, 9, 16), (7, 3, 2)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=["channels first", "last"])
def test_pooling_and_its_gradients_are_those_of_conv3d(kernel, stride, size, layout):
    torch.manual_seed(0)
    grid = torch.randn(2, 6, *size, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    weight = torch.randn(6, 1, *kernel, dtype=torch.float64, requires_grad=True)
    padding = [length // 2 for length in kernel]
    wanted = F.conv3d(grid, weight, None, stride, padding, groups=6)
    ours = depthwise_conv(grid, weight, stride)
    back = torch.randn_like(wanted)
    assert torch.allclose(ours, wanted, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(ours, (grid, weight), back), torch.autograd.grad(wanted, (grid, weight), back), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-12)


def test_only_what_is_asked_for_is_computed():
    grid, weight = torch.randn(1, 2, 2, 4, 4), torch.randn(2, 1, 3, 3, 3, requires_grad=True)
    depthwise_conv(grid, weight, (1, 1, 1)).sum().backward()
    assert grid.grad is None and weight.grad is not None
    grid.requires_grad_()
    (of_grid,) = torch.autograd.grad(depthwise_conv(grid, weight.detach(), (1, 1, 1)).sum(), (grid,))
    assert of_grid.shape == grid.shape


def test_gradients_of_gradients_are_right():
    grid = torch.randn(1, 2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda g, w: depthwise_conv(g, w, (1, 2, 1)), (grid, weight))


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
    wanted = windows.amax((-1, -2, -3))
    assert torch.equal(pooled, wanted)
    back = torch.randn_like(wanted)
    assert torch.allclose(*(torch.autograd.grad(value, cells, back)[0] for value in (pooled, wanted)))


class Doubled(nn.Conv3d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("num_cls", [0, 1])
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2)], ids=str)
def test_hooks_pruning_and_filters_of_another_kind_are_honoured(num_cls, stride):
    torch.manual_seed(0)
    x, thw = torch.randn(2, num_cls + 2 * 4 * 5, 3, 6), (2, 4, 5)
    conv, norm = nn.Conv3d(6, 6, 3, stride, 1, groups=6, bias=False), nn.LayerNorm(6, 0.1)

    def pooled(conv):
        return pool_norm(x, thw, conv, norm)

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
