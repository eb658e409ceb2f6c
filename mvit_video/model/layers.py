"""Layers shared by networks."""

import torch
from torch import Tensor, nn

from mvit_video.model.ops.convolution import Conv3d
from mvit_video.model.ops.linear import Linear, mlp
from mvit_video.model.ops.pooling import patch_conv


class Mlp(nn.Module):
    """fc2(gelu(fc1(x))): x (..., dim) -> (..., dim_out)."""

    def __init__(self, dim: int, hidden_dim: int, dim_out: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        return mlp(x, self.fc1, self.fc2)


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): drops a branch per sample and rescales the others to preserve the mean."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """The branch (B, ...), zeroed for some samples; scaled in single precision, returned in its own dtype."""
        if not self.training or self.rate == 0.0:
            return branch
        dtype = torch.promote_types(branch.dtype, torch.float32)
        mask = torch.empty(branch.shape[0], *[1] * (branch.ndim - 1), dtype=dtype, device=branch.device)
        mask = mask.bernoulli_(1.0 - self.rate).div_(1.0 - self.rate)
        return (branch * mask).to(branch.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class PatchConv(Conv3d):
    """nn.Conv3d with a bias, fast also for clips of few channels: (B, c, T, H, W) -> (B, C, T', H', W')."""

    def forward(self, clips: Tensor) -> Tensor:
        return patch_conv(clips, self)


def init_normal(weight: Tensor, std: float = 0.02) -> None:
    """Fill from a normal. Tensors on the meta device have nothing to fill, and PyTorch would load its compiler for them."""
    if not weight.is_meta:
        nn.init.normal_(weight, std=std)
