import pytest
import torch
import torch.nn.functional as F

from mvit_video.model.pooling import depthwise_conv


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
