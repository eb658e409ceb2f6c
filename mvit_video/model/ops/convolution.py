"""3D convolutions whose gradients are right in bf16 on CPUs.

oneDNN, as PyTorch 2.13 ships it, computes gradients w.r.t. filters in bf16 from uninitialised memory where the grid is about
as small as the filter (2 frames and 3 taps, say), with and without groups, and of single taps for grids of many sizes:
silently wrong, infinite, or a crash. Outputs and gradients w.r.t. the input are right, and so is all of it in fp32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvit_video.model.ops import device


class Conv3d(nn.Conv3d):
    """nn.Conv3d; where a gradient would be computed in bf16 on a CPU, of the same rounded values, in fp32.

    A filter of one tap is a product of matrices then, whose gradient is right in bf16.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not _needs_fp32(x):
            return super().forward(x)
        if self.kernel_size == (1, 1, 1) and self.groups == 1 and not any(self.padding):
            t, h, w = self.stride
            cells = x[:, :, ::t, ::h, ::w]
            out = self.weight.flatten(1) @ cells.flatten(2)
            return (out if self.bias is None else out + self.bias[:, None].to(out.dtype)).unflatten(2, cells.shape[2:])
        bias = None if self.bias is None else _rounded(self.bias)
        with torch.autocast("cpu", enabled=False):
            return self._conv_forward(_rounded(x), _rounded(self.weight), bias).to(torch.bfloat16)


def replace_conv3d(network: nn.Module) -> None:
    """Make `Conv3d` of each plain nn.Conv3d, such as those of other packages' networks: before they are trained in bf16 on a CPU."""
    for module in network.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = Conv3d


def depthwise_conv(grid: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> Tensor:
    """A depth-wise 3D convolution without bias, of grid (B, C, T, H, W) and weight (C, 1, t, h, w); in fp32 as `Conv3d`."""
    groups = weight.shape[0]
    if not _needs_fp32(grid):
        return F.conv3d(grid, weight, None, stride, padding, groups=groups)
    with torch.autocast("cpu", enabled=False):
        return F.conv3d(_rounded(grid), _rounded(weight), None, stride, padding, groups=groups).to(torch.bfloat16)


def _rounded(x: Tensor) -> Tensor:
    """In fp32, with the values of bf16."""
    return x.to(torch.bfloat16).float()


def _needs_fp32(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_grad_enabled() and device.compute_dtype(x) == torch.bfloat16
