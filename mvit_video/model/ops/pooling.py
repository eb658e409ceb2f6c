"""Depth-wise pooling of token grids whose channels lie last in memory, with its norm; and passes back that stay fast.

On a GPU Triton kernels do all of it (`kernels.pool_norm`). PyTorch's own backward of a depth-wise Conv3d takes a slow
path on CPUs; here are the same sums, exactly, by faster functions: the gradient of the input is a depth-wise
convolution of the (zero-spread) gradient with the turned filter, and the gradient of the filter is, for each temporal
tap, that of a 2D depth-wise convolution. docs/performance.md has the times.
"""

# B batch, C channels, T/H/W grid. Grids are (B, C, T, H, W) with channels last in memory.

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvit_video.model.ops.device import is_plain, kernels_for

Grid = tuple[int, int, int]
Pools = Sequence[
    tuple[Any, Any]
]  # a filter, nn.Conv3d, and a norm, nn.LayerNorm, of each tensor; None where it has none


def pool_norm(x: Tensor, thw: Grid, conv: nn.Conv3d, norm: nn.LayerNorm) -> tuple[Tensor, Tensor, Grid]:
    """Tokens (B, N, h, d) through the depth-wise filter that all heads share, then the norm; class tokens are normed only.

    Returns class tokens (B, c, h, d), the pooled grid (B, T·H·W, h, d) and its size.
    """
    plain, kernels = _plain(conv, norm), kernels_for(x, compilable=True)
    if plain and kernels and kernels.can_pool(conv.weight):
        stride = _grid(conv.stride)
        cls, grid = kernels.pool_norm(x, conv.weight, norm.weight, norm.bias, norm.eps, thw, stride)
        return cls, grid, _pooled_size(thw, stride)
    num_cls = x.shape[1] - thw[0] * thw[1] * thw[2]
    cls, cells = x.split([num_cls, x.shape[1] - num_cls], 1)
    tokens, size = (_pool_together if plain else _pool_by_module)(cells, thw, conv)
    return norm(cls), norm(tokens), size


def _plain(conv: nn.Module | None, norm: nn.Module | None) -> bool:
    """Whether these are a filter and a norm as a network makes them, with nothing of other people's on them."""
    if conv is None or norm is None or not is_plain(nn.LayerNorm, norm) or not is_plain(nn.Conv3d, conv):
        return False
    return conv.bias is None and conv.groups == conv.out_channels


def _pool_together(cells: Tensor, thw: Grid, conv: nn.Conv3d) -> tuple[Tensor, Grid]:
    """Cells (B, T·H·W, h, d) of all heads as channels of one convolution; and the size of the pooled grid."""
    heads = cells.shape[2]
    grid = cells.flatten(2).unflatten(1, thw).permute(0, 4, 1, 2, 3)  # (B, C, T, H, W), channels last in memory
    grid = depthwise_conv(grid, conv.weight.repeat(heads, 1, 1, 1, 1), _grid(conv.stride))
    return grid.permute(0, 2, 3, 4, 1).flatten(1, 3).unflatten(-1, (heads, -1)), _grid(grid.shape[2:])


def _pool_by_module(cells: Tensor, thw: Grid, conv: nn.Module) -> tuple[Tensor, Grid]:
    """The same by a call of the filter itself, heads as samples: for one with hooks, or of another kind."""
    samples = cells.transpose(1, 2).flatten(0, 1)  # (B·h, T·H·W, d)
    grid = conv(samples.unflatten(1, thw).permute(0, 4, 1, 2, 3))
    tokens = grid.permute(0, 2, 3, 4, 1).flatten(1, 3)
    return tokens.unflatten(0, (cells.shape[0], cells.shape[2])).transpose(1, 2), _grid(grid.shape[2:])


def pools_at_once(x: Tensor, pools: Pools) -> bool:
    """Whether `pool_norms` takes these filters and norms: by kernels, which then need no tensors of their own."""
    kernels = kernels_for(x)
    return bool(kernels) and all(_plain(conv, norm) and kernels.can_pool(conv.weight) for conv, norm in pools)


def pool_norms(x: Tensor, thw: Grid, pools: Pools) -> list[tuple[Tensor, Tensor, Grid]]:
    """`pool_norm` of the P tensors in x (B, N, P, h, d), where `pools_at_once`."""
    kernels = kernels_for(x)
    parameters = [(conv.weight, norm.weight, norm.bias) for conv, norm in pools]
    strides = [_grid(conv.stride) for conv, _ in pools]
    found = kernels.pool_norms(x, parameters, pools[0][1].eps, thw, strides)
    return [(cls, grid, _pooled_size(thw, stride)) for (cls, grid), stride in zip(found, strides, strict=True)]


def _pooled_size(thw: Grid, stride: Grid) -> Grid:
    return _grid((size - 1) // step + 1 for size, step in zip(thw, stride, strict=True))


def depthwise_conv(grid: Tensor, weight: Tensor, stride: Grid) -> Tensor:
    """Depth-wise 3D convolution with padding kernel // 2: grid (B, C, T, H, W), weight (C, 1, t, h, w), odd kernels."""
    if grid.device.type != "cpu" or not torch.is_grad_enabled():
        return _convolve(grid, weight, stride)
    return _DepthwiseConv.apply(grid, weight.to(grid.dtype), stride)


def _convolve(grid: Tensor, weight: Tensor, stride: Grid) -> Tensor:
    return F.conv3d(grid, weight, None, stride, _padding(weight), groups=weight.shape[0])


def max_pool(grid: Tensor, stride: Grid) -> Tensor:
    """Maximum over windows of stride + 1 cells (1 where the stride is 1) that overlap: the shortcut of a stage start.

    Where time is not strided the pictures are pooled in 2D, which has a backward pass for channels-last memory.
    """
    kernel = tuple(step + 1 if step > 1 else 1 for step in stride)
    padding = tuple(length // 2 for length in kernel)
    if stride[0] > 1:
        return F.max_pool3d(grid, kernel, stride, padding)
    grid = grid.contiguous(memory_format=torch.channels_last_3d)  # tokens behind a class token are not
    pictures = F.max_pool2d(_as_pictures(grid), kernel[1:], stride[1:], padding[1:])
    return pictures.unflatten(0, (grid.shape[0], grid.shape[2])).transpose(1, 2)


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grid: Tensor, weight: Tensor, stride: Grid) -> Tensor:
        ctx.save_for_backward(grid, weight)
        ctx.stride = stride
        return _convolve(grid, weight, stride)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        grid, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last_3d)
        of_grid = input_gradient(gradient, weight, ctx.stride, grid.shape) if ctx.needs_input_grad[0] else None
        of_weight = filter_gradient(gradient, grid, weight, ctx.stride) if ctx.needs_input_grad[1] else None
        return of_grid, of_weight, None


def input_gradient(gradient: Tensor, weight: Tensor, stride: Grid, shape: torch.Size) -> Tensor:
    """Each input cell collects, through the turned filter, from the outputs that looked at it."""
    if stride != (1, 1, 1):
        batch, channels, *sizes = shape
        spread = gradient.new_zeros(batch, *sizes, channels).permute(0, 4, 1, 2, 3)
        spread[:, :, :: stride[0], :: stride[1], :: stride[2]] = gradient
        gradient = spread
    return _convolve(gradient, weight.flip(2, 3, 4), (1, 1, 1))


def filter_gradient(gradient: Tensor, grid: Tensor, weight: Tensor, stride: Grid) -> Tensor:
    """For temporal tap a, output frame t looked at input frame t·stride + a − padding: pair these and go on in 2D."""
    padding, taps = _padding(weight), []
    frames_in, frames_out, step = grid.shape[2], gradient.shape[2], stride[0]
    for tap in range(weight.shape[2]):
        shift = tap - padding[0]
        first = max(0, -(shift // step))
        last = min(frames_out, (frames_in - 1 - shift) // step + 1)
        if last <= first:
            taps.append(torch.zeros_like(weight[:, :, tap]))
            continue
        seen = _as_pictures(grid[:, :, first * step + shift : (last - 1) * step + shift + 1 : step])
        back = _as_pictures(gradient[:, :, first:last])
        taps.append(_filter_gradient_2d(back, seen, weight[:, :, tap], stride[1:], padding[1:]))
    return torch.stack(taps, 2)


def _filter_gradient_2d(gradient: Tensor, pictures: Tensor, weight: Tensor, stride, padding) -> Tensor:
    mask = (False, True, False)  # of input, weight, bias
    arguments = (None, stride, padding, (1, 1), False, (0, 0), weight.shape[0], mask)
    return torch.ops.aten.convolution_backward(gradient, pictures, weight, *arguments)[1]


def _as_pictures(grid: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B·T, C, H, W), channels last in memory; a view where possible."""
    return grid.transpose(1, 2).flatten(0, 1)


def _grid(values: Iterable[int]) -> Grid:
    t, h, w = values
    return (t, h, w)


def _padding(weight: Tensor) -> Grid:
    t, h, w = weight.shape[2:]
    return (t // 2, h // 2, w // 2)
