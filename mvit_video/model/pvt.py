"""PVT v2 (arXiv 2106.13797) and Twins (arXiv 2104.13840) for images and video: attention to spatially reduced keys, in Twins
alternating with windows; positions from depth-wise convolutions.

Parameter names are timm's. With one frame they are the image networks; a video network's filters have a temporal axis, and
keys are reduced in space only.
"""

# B batch, T/H/W token grid, C channels, h heads, d = C // h. Tokens are (B, T, H, W, C).

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mvit_video.model.backbone import (
    Mlp,
    VideoBackbone,
    drop_path_rates,
    height_and_width,
    register_family,
)
from mvit_video.model.checkpoint_format import CheckpointFormat, has
from mvit_video.model.checks import check_head_widths, check_stages, check_switches
from mvit_video.model.evidence import entering
from mvit_video.model.layers import DropPath, init_normal
from mvit_video.model.ops.convolution import Conv3d
from mvit_video.model.partition import from_windows, padded, unpadded, windows
from mvit_video.model.registry import Capabilities

EPS = 1e-6  # of the norms in and after blocks; those of patches and reduced keys have PyTorch's 1e-5
POOLED = 7  # keys per side of a frame in the linear form


def apply_conv(x: Tensor, module: nn.Module) -> Tensor:
    """Apply a channels-first module to tokens (B, T, H, W, C)."""
    return module(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)


class PatchEmbed(nn.Module):
    """Strided convolution and norm at the start of a stage: (B, C, T, H, W) -> (B, T', H', W', C')."""

    def __init__(
        self, dim: int, dim_out: int, size: int, stride: int, padding: int, taps: int, frame_stride: int
    ) -> None:
        super().__init__()
        time = taps // 2
        self.proj = Conv3d(dim, dim_out, (taps, size, size), (frame_stride, stride, stride), (time, padding, padding))
        self.norm = nn.LayerNorm(dim_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 4, 1))


@dataclass(frozen=True)
class StageArguments:
    """Arguments shared by the blocks of a stage. `sr_ratio`: stride of the keys; `taps`: temporal taps of filters."""

    dim: int
    num_heads: int
    mlp_ratio: float
    sr_ratio: int
    window: int | None = None
    taps: int = 1
    linear: bool = False


class ReducedAttention(nn.Module):
    """Global attention to keys that a convolution of kernel and stride `sr_ratio` has reduced.

    `linear`: the keys are averaged to 7×7 per frame instead.
    """

    def __init__(self, stage: StageArguments) -> None:
        super().__init__()
        dim, ratio = stage.dim, 1 if stage.linear else stage.sr_ratio
        self.num_heads, self.linear = stage.num_heads, stage.linear
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        reduces = stage.linear or ratio > 1
        self.sr = Conv3d(dim, dim, (1, ratio, ratio), (1, ratio, ratio)) if reduces else None
        self.norm = nn.LayerNorm(dim) if reduces else None

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).flatten(1, 3).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(self.reduced(x)).flatten(1, 3).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.proj(out.reshape(x.shape))

    def reduced(self, x: Tensor) -> Tensor:
        """The tokens that keys and values are computed from (B, T, H', W', C)."""
        if self.sr is None or self.norm is None:
            return x
        if not self.linear:
            return self.norm(apply_conv(x, self.sr))
        grid = F.adaptive_avg_pool3d(x.permute(0, 4, 1, 2, 3), (x.shape[1], POOLED, POOLED))
        return F.gelu(self.norm(self.sr(grid).permute(0, 2, 3, 4, 1)))


class WindowAttention(nn.Module):
    """Attention in windows of all frames × window × window; zero padding is attended to, as published."""

    def __init__(self, stage: StageArguments, window: int) -> None:
        super().__init__()
        self.num_heads, self.window = stage.num_heads, window
        self.qkv = nn.Linear(stage.dim, 3 * stage.dim)
        self.proj = nn.Linear(stage.dim, stage.dim)

    def forward(self, x: Tensor) -> Tensor:
        thw = (x.shape[1], x.shape[2], x.shape[3])
        size = (thw[0], self.window, self.window)
        x = padded(x, size)
        grid = (x.shape[1], x.shape[2], x.shape[3])
        q, k, v = self.qkv(windows(x, size)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.proj(unpadded(from_windows(out, size, grid), thw))


class ConvMlp(nn.Module):
    """MLP with a depth-wise 3×3 filter before its activation, whose zero padding encodes positions (PVT v2)."""

    def __init__(self, stage: StageArguments) -> None:
        super().__init__()
        hidden = int(stage.dim * stage.mlp_ratio)
        self.linear = stage.linear
        self.fc1 = nn.Linear(stage.dim, hidden)
        self.dwconv = Conv3d(hidden, hidden, (stage.taps, 3, 3), padding=(stage.taps // 2, 1, 1), groups=hidden)
        self.fc2 = nn.Linear(hidden, stage.dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = x.relu() if self.linear else x
        return self.fc2(F.gelu(apply_conv(x, self.dwconv)))


class Block(nn.Module):
    """(B, T, H, W, C) -> same."""

    def __init__(self, dim: int, attn: nn.Module, mlp: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, EPS)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """A stage of PVT v2: downsampling (except in the first), blocks and norm."""

    def __init__(self, stage: StageArguments, dim: int | None, rates: Sequence[float]) -> None:
        super().__init__()
        self.downsample = PatchEmbed(dim, stage.dim, 3, 2, 1, stage.taps, 1) if dim else None
        self.blocks = nn.ModuleList(Block(stage.dim, ReducedAttention(stage), ConvMlp(stage), rate) for rate in rates)
        self.norm = nn.LayerNorm(stage.dim, EPS)


class PVTv2(VideoBackbone):
    """PVT v2: clips (B, 3, T, H, W), RGB, normalised -> logits (B, num_classes).

    Height and width from `smallest_side`, 29 with the usual sr_ratios.

    Args:
        num_frames: 1 for the image network, which also takes (B, 3, H, W).
        num_classes, drop_path_rate, dropout_rate, activation_checkpointing: as in MViT. crop_size is only checked.
        depths, embed_dims, num_heads, mlp_ratios: blocks, width, heads and MLP ratio of each stage.
        sr_ratios: kernel and stride of the convolution that reduces each stage's keys.
        linear: average the keys to 7×7 per frame instead (the `li` variants).

    Source: arXiv 2106.13797 Table 1 and timm's pvt_v2.
    """

    def __init__(
        self,
        *,
        num_frames: int = 16,
        crop_size: int | Sequence[int] = 224,
        num_classes: int = 400,
        depths: Sequence[int] = (2, 2, 2, 2),
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        linear: bool = False,
        drop_path_rate: float = 0.0,
        dropout_rate: float = 0.0,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__(num_frames, crop_size, num_classes, drop_path_rate, dropout_rate, activation_checkpointing)
        counts = dict(embed_dims=embed_dims, num_heads=num_heads, sr_ratios=sr_ratios)
        check_stages(depths, ratios=dict(mlp_ratios=mlp_ratios), **counts)
        check_head_widths(embed_dims=embed_dims, num_heads=num_heads)
        check_switches(linear=linear)
        reduced = [1] * len(depths) if linear else sr_ratios
        # A stage has ⌈side / step⌉ tokens a side, and the filter of its keys needs `ratio`
        self.smallest_side = max((ratio - 1) * step + 1 for ratio, step in zip(reduced, _steps(depths), strict=True))
        self.check_size(height_and_width(crop_size))
        taps = 1 if num_frames == 1 else 3
        self.stage_dims = tuple(embed_dims)
        self.patch_embed = PatchEmbed(3, embed_dims[0], 7, 4, 3, taps, 1 if num_frames == 1 else 2)
        arguments = [
            StageArguments(*values, taps=taps, linear=linear)
            for values in zip(embed_dims, num_heads, mlp_ratios, sr_ratios, strict=True)
        ]
        rates = drop_path_rates(depths, drop_path_rate)
        self.stages = nn.ModuleList(
            Stage(each, embed_dims[index - 1] if index else None, rates[index]) for index, each in enumerate(arguments)
        )
        self.dropout = nn.Dropout(dropout_rate)
        self.head = nn.Linear(embed_dims[-1], num_classes)
        init_weights(self)

    def stage_maps(self, clips: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        x = self.patch_embed(clips)
        for stage in self.stages:
            assert isinstance(stage, Stage)
            x = stage.downsample(maps[-1]) if stage.downsample is not None else x
            for block in stage.blocks:
                x = self.run(block, x)
            maps.append(stage.norm(x).permute(0, 4, 1, 2, 3))
        return maps

    def feature(self, grid: Tensor) -> Tensor:
        return self.dropout(grid.mean((2, 3, 4)))


class PositionFilter(nn.Module):
    """Conditional positional encoding (arXiv 2102.10882): tokens plus a depth-wise 3×3 filter of them."""

    def __init__(self, dim: int, taps: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(Conv3d(dim, dim, (taps, 3, 3), padding=(taps // 2, 1, 1), groups=dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + apply_conv(x, self.proj)


class Twins(VideoBackbone):
    """Twins: clips (B, 3, T, H, W), RGB, normalised -> logits (B, num_classes).

    Height and width from `smallest_side`, 32 with the usual sr_ratios.

    With `windows` (SVT) blocks alternate between windows and global attention; without (PCPVT) all are global, to reduced keys.

    Args:
        num_frames: 1 for the image network, which also takes (B, 3, H, W).
        num_classes, drop_path_rate, dropout_rate, activation_checkpointing: as in MViT. crop_size is only checked.
        depths, embed_dims, num_heads, mlp_ratios, sr_ratios: as in PVTv2.
        windows: tokens per side of each stage's windows (SVT), or None (PCPVT).

    Source: arXiv 2104.13840 Tables 1 and 2, and timm's twins.
    """

    def __init__(
        self,
        *,
        num_frames: int = 16,
        crop_size: int | Sequence[int] = 224,
        num_classes: int = 400,
        depths: Sequence[int] = (2, 2, 10, 4),
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        windows: Sequence[int] | None = (7, 7, 7, 7),
        drop_path_rate: float = 0.0,
        dropout_rate: float = 0.0,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__(num_frames, crop_size, num_classes, drop_path_rate, dropout_rate, activation_checkpointing)
        counts = dict(embed_dims=embed_dims, num_heads=num_heads, sr_ratios=sr_ratios)
        check_stages(
            depths, ratios=dict(mlp_ratios=mlp_ratios), **counts, **({} if windows is None else {"windows": windows})
        )
        check_head_widths(embed_dims=embed_dims, num_heads=num_heads)
        sides: Sequence[int | None] = windows or [None] * len(depths)
        # A stage has ⌊side / step⌋ tokens a side, and the filter of its keys needs `ratio`
        self.smallest_side = max(ratio * step for ratio, step in zip(sr_ratios, _steps(depths), strict=True))
        self.check_size(height_and_width(crop_size))
        taps, dims = 1 if num_frames == 1 else 3, (3, *embed_dims)
        self.stage_dims = tuple(embed_dims)
        self.patch_embeds = nn.ModuleList(
            PatchEmbed(
                dims[k], dims[k + 1], 4 if k == 0 else 2, 4 if k == 0 else 2, 0, taps if k == 0 else 1, _step(k, taps)
            )
            for k in range(len(depths))
        )
        arguments = [
            StageArguments(*values, taps=taps)
            for values in zip(embed_dims, num_heads, mlp_ratios, sr_ratios, sides, strict=True)
        ]
        rates = drop_path_rates(depths, drop_path_rate)
        self.blocks = nn.ModuleList(
            nn.ModuleList(twins_block(each, index, rate) for index, rate in enumerate(rates[k]))
            for k, each in enumerate(arguments)
        )
        self.pos_block = nn.ModuleList(PositionFilter(dim, taps) for dim in embed_dims)
        self.norm = nn.LayerNorm(embed_dims[-1], EPS)
        self.dropout = nn.Dropout(dropout_rate)
        self.head = nn.Linear(embed_dims[-1], num_classes)
        init_weights(self)

    def stage_maps(self, clips: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        grid = clips
        for embed, blocks, positions in zip(self.patch_embeds, self.blocks, self.pos_block, strict=True):
            x = embed(grid)
            for index, block in enumerate(blocks.children()):
                x = self.run(block, x)
                x = positions(x) if index == 0 else x
            grid = x.permute(0, 4, 1, 2, 3)
            maps.append(grid)
        return maps

    def feature(self, grid: Tensor) -> Tensor:
        return self.dropout(self.norm(grid.flatten(2).transpose(1, 2)).mean(1))


def _steps(depths: Sequence[int]) -> list[int]:
    """Pixels from token to token in each stage."""
    return [4 * 2**stage for stage in range(len(depths))]


def _step(stage: int, taps: int) -> int:
    """Temporal stride of a stage's patches: 2 in the first stage of a video network."""
    return 2 if stage == 0 and taps > 1 else 1


def twins_block(stage: StageArguments, index: int, drop_path: float) -> Block:
    attn = ReducedAttention(stage) if stage.window is None or index % 2 else WindowAttention(stage, stage.window)
    return Block(stage.dim, attn, Mlp(stage.dim, int(stage.dim * stage.mlp_ratio)), drop_path)


def init_weights(model: nn.Module) -> None:
    """Linear layers from a normal (σ .02), filters from a normal by their fan-out; biases 0, norms 1."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            init_normal(module.weight)
        elif isinstance(module, nn.Conv3d):
            fan_out = module.weight.shape[0] * module.weight[0, 0].numel() // module.groups
            init_normal(module.weight, std=(2 / fan_out) ** 0.5)
        if isinstance(module, nn.Linear | nn.Conv3d) and module.bias is not None:
            nn.init.zeros_(module.bias)


def _stages(network: nn.Module) -> list[list[nn.Module]]:
    """Blocks by stage: `stages.i.blocks` of PVT v2, `blocks.i` of Twins."""
    name = "stages" if isinstance(network, PVTv2) else "blocks"
    stages = network.get_submodule(name).children()
    return [list((stage if name == "blocks" else stage.get_submodule("blocks")).children()) for stage in stages]


def _capabilities(timm: CheckpointFormat) -> Capabilities:
    return Capabilities(
        head="head",
        blocks=lambda network: [block for stage in _stages(network) for block in stage],
        feature=True,
        stage_maps=True,
        evidence=entering(lambda network: _stages(network)[-1], channels_last=True),
        activation_checkpointing=True,
        formats=(timm,),
        graphs=True,
        meta=True,
    )


_PVT_DEPTHS = dict(
    b0=(2, 2, 2, 2), b1=(2, 2, 2, 2), b2=(3, 4, 6, 3), b3=(3, 4, 18, 3), b4=(3, 8, 27, 3), b5=(3, 6, 40, 3)
)
PVT_SIZES: dict[str, dict[str, Any]] = {
    size: dict(depths=depths, drop_path_rate=0.3 if size in ("b3", "b4", "b5") else 0.1)
    for size, depths in _PVT_DEPTHS.items()
}
PVT_SIZES["b0"] |= dict(embed_dims=(32, 64, 160, 256))
PVT_SIZES["b5"] |= dict(mlp_ratios=(4, 4, 4, 4))
PVT_SIZES["b2_li"] = PVT_SIZES["b2"] | dict(linear=True)
_SVT_LARGE = (2, 2, 18, 2)
SVT_SIZES: dict[str, dict[str, Any]] = {
    "s": dict(drop_path_rate=0.2),
    "b": dict(depths=_SVT_LARGE, embed_dims=(96, 192, 384, 768), num_heads=(3, 6, 12, 24), drop_path_rate=0.3),
    "l": dict(depths=_SVT_LARGE, embed_dims=(128, 256, 512, 1024), num_heads=(4, 8, 16, 32), drop_path_rate=0.5),
}
_PCPVT: dict[str, Any] = dict(
    embed_dims=(64, 128, 320, 512), num_heads=(1, 2, 5, 8), mlp_ratios=(8, 8, 4, 4), windows=None
)
PCPVT_SIZES: dict[str, dict[str, Any]] = {
    "s": _PCPVT | dict(depths=(3, 4, 6, 3), drop_path_rate=0.2),
    "b": _PCPVT | dict(depths=(3, 4, 18, 3), drop_path_rate=0.3),
    "l": _PCPVT | dict(depths=(3, 8, 27, 3), drop_path_rate=0.3),
}
TIMM_PVT = CheckpointFormat("timm PVT v2", has("stages.0.blocks.0.mlp.dwconv.weight"))
TIMM_TWINS = CheckpointFormat("timm Twins", has("patch_embeds.0.proj.weight"))
register_family("pvt_v2", PVTv2, PVT_SIZES, _capabilities(TIMM_PVT), "arXiv 2106.13797")
register_family("twins_svt", Twins, SVT_SIZES, _capabilities(TIMM_TWINS), "arXiv 2104.13840")
register_family("twins_pcpvt", Twins, PCPVT_SIZES, _capabilities(TIMM_TWINS), "arXiv 2104.13840")
