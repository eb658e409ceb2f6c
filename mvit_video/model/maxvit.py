"""MaxViT (arXiv 2204.01697) for images and video: convolutions, attention in windows, attention over a dilated grid.

Parameter names and numerics are those of timm's `maxvit_*_tf_*`, which match the paper's TensorFlow network; torchvision's
`maxvit_t` is a different network (scale, activation, padding) with incompatible weights.
"""

# B batch, T/H/W grid, C channels, h heads of 32 channels. Convolutions take (B, C, T, H, W), attention (B, T, H, W, C).

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import lcm
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvit_video.errors import ConfigError, MvitVideoError
from mvit_video.model.backbone import (
    Mlp,
    VideoBackbone,
    drop_path_rates,
    height_and_width,
    register_family,
)
from mvit_video.model.checkpoint_format import CheckpointFormat, has
from mvit_video.model.checks import check_counts, check_sizes, check_stages
from mvit_video.model.evidence import entering
from mvit_video.model.layers import DropPath, init_normal
from mvit_video.model.ops.convolution import Conv3d
from mvit_video.model.partition import Grid, from_grids, from_windows, grids, largest_divisor, windows
from mvit_video.model.registry import Capabilities

HEAD_DIM = 32


def gelu() -> nn.Module:
    return nn.GELU("tanh")


class SameConv(Conv3d):
    """3×3 convolution with TensorFlow's "same" padding: at stride 2 only at the end. Time is padded on both sides."""

    def __init__(self, dim: int, dim_out: int, stride: Grid, taps: int, groups: int = 1, bias: bool = True) -> None:
        super().__init__(dim, dim_out, (taps, 3, 3), stride, groups=groups, bias=bias)
        before, time = (0 if stride[2] == 2 else 1), taps // 2
        self.amounts = [before, 1, before, 1, time, time]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.amounts))


class BatchNorm(nn.BatchNorm3d):
    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-3, momentum=0.01)


class Shortcut(nn.Module):
    """2×2 average pooling in strided blocks, and a 1×1 convolution where the width changes."""

    def __init__(self, dim: int, dim_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.expand = Conv3d(dim, dim_out, 1) if dim != dim_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:  # in 2D, which PyTorch has in half precision on CPUs, too
            x = F.avg_pool2d(x.flatten(1, 2), self.stride).unflatten(1, x.shape[1:3])
        return self.expand(x)


class SqueezeExcitation(nn.Module):
    """Channels scaled by a gate computed from the mean over the whole clip."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = Conv3d(dim, hidden_dim, 1)
        self.fc2 = Conv3d(hidden_dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(F.silu(self.fc1(x.mean((2, 3, 4), keepdim=True)))).sigmoid()


class MBConv(nn.Module):
    """Inverted residual (B, C, T, H, W) -> (B, C', T, H', W'): expand by 4, depth-wise filter, squeeze-excite, project."""

    def __init__(self, dim: int, dim_out: int, stride: int, taps: int, drop_path: float) -> None:
        super().__init__()
        hidden = 4 * dim_out
        self.shortcut = Shortcut(dim, dim_out, stride) if stride > 1 or dim != dim_out else nn.Identity()
        self.pre_norm = BatchNorm(dim)
        self.conv1_1x1 = Conv3d(dim, hidden, 1, bias=False)
        self.norm1 = BatchNorm(hidden)
        self.conv2_kxk = SameConv(hidden, hidden, (1, stride, stride), taps, groups=hidden, bias=False)
        self.norm2 = BatchNorm(hidden)
        self.se = SqueezeExcitation(hidden, dim_out // 4)
        self.conv3_1x1 = Conv3d(hidden, dim_out, 1)
        self.act = gelu()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.act(self.norm1(self.conv1_1x1(self.pre_norm(x))))
        branch = self.conv3_1x1(self.se(self.act(self.norm2(self.conv2_kxk(branch)))))
        return self.shortcut(x) + self.drop_path(branch)


class PositionBias(nn.Module):
    """Learned relative position bias per head within a group: a table (h, [2t−1,] 2H−1, 2W−1) of offsets key − query."""

    def __init__(self, num_heads: int, size: Grid) -> None:
        super().__init__()
        t, h, w = size
        time = () if t == 1 else (2 * t - 1,)  # an image network's table has no temporal axis
        self.size = size
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_heads, *time, 2 * h - 1, 2 * w - 1))

    def forward(self, frames: int) -> Tensor:
        """The bias of groups of `frames`×H×W tokens, `frames` being at most the table's: (h, N, N)."""
        t, h, w = self.size
        table = self.relative_position_bias_table.unflatten(0, (-1, 1)) if t == 1 else self.relative_position_bias_table
        table = table[:, t - frames : t + frames - 1]
        device = table.device
        rows = [_offsets(length, device) for length in (frames, h, w)]
        time, high, wide = (
            rows[0][:, None, None, :, None, None],
            rows[1][:, None, None, :, None],
            rows[2][:, None, None, :],
        )
        return table[:, time, high, wide].flatten(4).flatten(1, 3)


def _offsets(length: int, device: torch.device) -> Tensor:
    """(query, key) -> row of a table of 2·length − 1 offsets key − query."""
    positions = torch.arange(length, device=device)
    return positions[None, :] - positions[:, None] + length - 1


class GroupAttention(nn.Module):
    """Attention within groups (B·n, N, C), with a relative position bias."""

    def __init__(self, dim: int, size: Grid) -> None:
        super().__init__()
        self.num_heads = dim // HEAD_DIM
        self.qkv = nn.Linear(dim, 3 * dim)
        self.rel_pos = PositionBias(self.num_heads, size)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, HEAD_DIM)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.rel_pos(frames).to(q.dtype))
        return self.proj(out.transpose(1, 2).flatten(2))


@dataclass(frozen=True)
class Partition:
    """A partition of a grid into groups of `size` tokens, and its inverse."""

    size: Grid
    split: Callable[[Tensor, Grid], Tensor]
    merge: Callable[[Tensor, Grid, Grid], Tensor]


class PartitionAttention(nn.Module):
    """Attention within the groups of a partition, then an MLP: (B, T, H, W, C) -> same."""

    def __init__(self, dim: int, partition: Partition, drop_path: float) -> None:
        super().__init__()
        self.partition = partition
        self.norm1 = nn.LayerNorm(dim)
        self.attn = GroupAttention(dim, partition.size)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim, gelu)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attend(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def attend(self, x: Tensor) -> Tensor:
        thw, (t, h, w) = (x.shape[1], x.shape[2], x.shape[3]), self.partition.size
        size = (largest_divisor(thw[0], t), h, w)
        return self.partition.merge(self.attn(self.partition.split(x, size), size[0]), size, thw)


@dataclass(frozen=True)
class BlockGroups:
    """Arguments shared by all blocks: tokens of a window and of a grid, and temporal taps of the filters."""

    window: Grid
    grid: Grid
    taps: int


class Block(nn.Module):
    """Convolution, windows, grid: (B, C, T, H, W) -> (B, C', T, H', W')."""

    def __init__(self, dim: int, dim_out: int, stride: int, groups: BlockGroups, drop_path: float) -> None:
        super().__init__()
        self.conv = MBConv(dim, dim_out, stride, groups.taps, drop_path)
        self.attn_block = PartitionAttention(dim_out, Partition(groups.window, windows, from_windows), drop_path)
        self.attn_grid = PartitionAttention(dim_out, Partition(groups.grid, grids, from_grids), drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).permute(0, 2, 3, 4, 1)
        return self.attn_grid(self.attn_block(x)).permute(0, 4, 1, 2, 3)


class Stage(nn.Module):
    """Blocks, the first of which halves height and width; `rates` are their stochastic depths."""

    def __init__(self, dim: int, dim_out: int, groups: BlockGroups, rates: Sequence[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(dim_out if index else dim, dim_out, 1 if index else 2, groups, rate)
            for index, rate in enumerate(rates)
        )


class Stem(nn.Module):
    def __init__(self, dim: int, taps: int) -> None:
        super().__init__()
        self.conv1 = SameConv(3, dim, (1 if taps == 1 else 2, 2, 2), taps)
        self.norm1 = BatchNorm(dim)
        self.act = gelu()
        self.conv2 = SameConv(dim, dim, (1, 1, 1), taps)

    def forward(self, clips: Tensor) -> Tensor:
        return self.conv2(self.act(self.norm1(self.conv1(clips))))


class PreLogits(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).tanh()


class Head(nn.Module):
    """Norm, a tanh layer and the classifier, for the mean of the tokens: (B, C) -> (B, K)."""

    def __init__(self, dim: int, num_classes: int, dropout_rate: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.pre_logits = PreLogits(dim)
        self.drop = nn.Dropout(dropout_rate)
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, feature: Tensor) -> Tensor:
        return self.fc(self.drop(self.pre_logits(self.norm(feature))))


class MaxViT(VideoBackbone):
    """MaxViT: clips (B, 3, T, H, W), RGB, normalised -> logits (B, num_classes).

    Args:
        num_frames: 1 for the image network, which also takes (B, 3, H, W). A video network's filters and position tables
            have a temporal axis, and its windows and grids span all frames.
        crop_size: H and W; `window` and `grid` default to 1/32 of it. Other sizes work at run time if windows and grids
            divide every stage.
        num_classes, drop_path_rate, dropout_rate, activation_checkpointing: as in MViT.
        embed_dims, depths: width and blocks of each stage; a head has 32 channels.
        stem_width: channels of the stem.
        window, grid: tokens of a window and of the dilated grid on each side.

    Source: arXiv 2204.01697 Table 1, and timm's names and numerics.
    """

    def __init__(
        self,
        *,
        num_frames: int = 16,
        crop_size: int | Sequence[int] = 224,
        num_classes: int = 400,
        depths: Sequence[int] = (2, 2, 5, 2),
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        stem_width: int = 64,
        window: int | Sequence[int] | None = None,
        grid: int | Sequence[int] | None = None,
        drop_path_rate: float = 0.0,
        dropout_rate: float = 0.0,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__(num_frames, crop_size, num_classes, drop_path_rate, dropout_rate, activation_checkpointing)
        check_stages(depths, embed_dims=embed_dims)
        check_counts(stem_width=stem_width)
        check_sizes(**{name: size for name, size in (("window", window), ("grid", grid)) if size is not None})
        crop = height_and_width(crop_size)
        taps, frames = (1, 1) if num_frames == 1 else (3, (num_frames + 1) // 2)
        self.window, self.grid = _group_size(window, crop), _group_size(grid, crop)
        self.stage_dims = tuple(embed_dims)
        _check_widths(embed_dims)
        self.check_size(crop)
        self.stem = Stem(stem_width, taps)
        dims, rates = (stem_width, *embed_dims), drop_path_rates(depths, drop_path_rate)
        groups = BlockGroups((frames, *self.window), (frames, *self.grid), taps)
        self.stages = nn.ModuleList(
            Stage(dims[stage], dims[stage + 1], groups, rates[stage]) for stage in range(len(depths))
        )
        self.head = Head(self.stage_dims[-1], num_classes, dropout_rate)
        self.init_weights()

    def init_weights(self) -> None:
        """Filters, linear layers and position tables from a normal (σ .02), biases 0, norms 1."""
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                init_normal(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def check_size(self, size: tuple[int, int], error: type[MvitVideoError] = ConfigError) -> None:
        """Raise an error, naming valid sizes, if windows and grids do not divide every stage."""
        steps = [2 ** (len(self.stage_dims) + 1) * lcm(*sides) for sides in zip(self.window, self.grid, strict=True)]
        if any(length % step for length, step in zip(size, steps, strict=True)):
            raise error(
                f"images of {size[0]}×{size[1]} cannot be cut into windows of {self.window} and grids of {self.grid} in "
                f"every stage: expected height and width that are multiples of {steps[0]} and {steps[1]}"
            )

    def stage_maps(self, clips: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        x = self.stem(clips)
        for stage in self.stages:
            for block in stage.get_submodule("blocks").children():
                x = self.run(block, x)
            maps.append(x)
        return maps

    def feature(self, grid: Tensor) -> Tensor:
        return grid.mean((2, 3, 4))


def _group_size(size: int | Sequence[int] | None, crop: tuple[int, int]) -> tuple[int, int]:
    """Tokens per side of a window or grid; by default 1/32 of the image."""
    return height_and_width(size) if size is not None else (max(crop[0] // 32, 1), max(crop[1] // 32, 1))


def _check_widths(embed_dims: Sequence[int]) -> None:
    if any(dim % HEAD_DIM for dim in embed_dims):
        raise ConfigError(f"embed_dims={tuple(embed_dims)}: expected multiples of {HEAD_DIM}, the channels of a head")


def _blocks(network: nn.Module) -> list[nn.Module]:
    return [
        block
        for stage in network.get_submodule("stages").children()
        for block in stage.get_submodule("blocks").children()
    ]


def _last_stage(network: nn.Module) -> list[nn.Module]:
    stage = list(network.get_submodule("stages").children())[-1]
    return list(stage.get_submodule("blocks").children())


_WIDE: dict[str, Any] = dict(embed_dims=(96, 192, 384, 768))
SIZES: dict[str, dict[str, Any]] = {
    "t": dict(drop_path_rate=0.2),
    "s": _WIDE | dict(drop_path_rate=0.3),
    "b": _WIDE | dict(depths=(2, 6, 14, 2), drop_path_rate=0.4),
    "l": dict(depths=(2, 6, 14, 2), embed_dims=(128, 256, 512, 1024), stem_width=128, drop_path_rate=0.6),
}
MAXVIT = Capabilities(
    head="head.fc",
    blocks=_blocks,
    feature=True,
    stage_maps=True,
    evidence=entering(_last_stage),
    activation_checkpointing=True,
    formats=(CheckpointFormat("timm MaxViT", has("stages.0.blocks.0.attn_block.attn.qkv.weight")),),
    graphs=True,
    meta=True,
)
register_family("maxvit", MaxViT, SIZES, MAXVIT, "arXiv 2204.01697")
