"""CSWin (arXiv 2107.00652) for images and video: attention in cross-shaped stripes, positions by a filter of the values.

Parameter names are those of microsoft/CSWin-Transformer, whose published files load without a map. With one frame it is the
image network; a video network's filters have a temporal axis.
"""

# B batch, T/H/W token grid, C channels, h heads, d = C // h. Tokens are (B, T, H, W, C).

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvit_video.errors import ConfigError
from mvit_video.model.backbone import (
    Mlp,
    VideoBackbone,
    drop_path_rates,
    height_and_width,
    register_family,
)
from mvit_video.model.checkpoint_format import CheckpointFormat, has
from mvit_video.model.checks import check_counts, check_ratios, check_stages, check_switches
from mvit_video.model.evidence import entering
from mvit_video.model.layers import DropPath, init_normal
from mvit_video.model.ops.convolution import Conv3d
from mvit_video.model.partition import Grid, from_windows, padded, unpadded, windows
from mvit_video.model.registry import Capabilities


class StripeAttention(nn.Module):
    """Attention within stripes, plus a depth-wise filter of the values (LePE).

    A stripe is `width` columns ("vertical") or rows ("horizontal") of the grid over all frames; None is global attention.
    The filter is zero-padded at the stripe's borders.
    """

    def __init__(self, dim: int, num_heads: int, stripe: tuple[str, int] | None, taps: int) -> None:
        super().__init__()
        self.num_heads, self.stripe = num_heads, stripe
        self.get_v = Conv3d(dim, dim, (taps, 3, 3), padding=(taps // 2, 1, 1), groups=dim)

    def forward(self, qkv: Tensor) -> Tensor:
        """Queries, keys and values (3, B, T, H, W, C) -> (B, T, H, W, C)."""
        thw = (qkv.shape[2], qkv.shape[3], qkv.shape[4])
        size = self.size(thw)
        q, k, v = (padded(x, size, both_sides=True) for x in qkv)
        padded_thw = (q.shape[1], q.shape[2], q.shape[3])
        q, k, v = (windows(x, size) for x in (q, k, v))  # (B·n, N, C) each
        heads = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        positions = self.get_v(v.transpose(1, 2).unflatten(2, size)).flatten(2).transpose(1, 2)
        return unpadded(from_windows(out + positions, size, padded_thw), thw, both_sides=True)

    def size(self, thw: Grid) -> Grid:
        frames, height, width = thw
        if self.stripe is None:
            return thw
        direction, columns = self.stripe
        return (frames, height, columns) if direction == "vertical" else (frames, columns, width)


@dataclass(frozen=True)
class StageArguments:
    """Arguments shared by the blocks of a stage; `stripe=None` is global attention."""

    dim: int
    num_heads: int
    stripe: int | None
    mlp_ratio: float
    qkv_bias: bool
    taps: int


class Block(nn.Module):
    """(B, T, H, W, C) -> same. Half of the channels attend within vertical stripes, the other half within horizontal ones."""

    def __init__(self, stage: StageArguments, drop_path: float) -> None:
        super().__init__()
        dim, stripe = stage.dim, stage.stripe
        stripes = [None] if stripe is None else [("vertical", stripe), ("horizontal", stripe)]
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=stage.qkv_bias)
        self.attns = nn.ModuleList(
            StripeAttention(dim // len(stripes), stage.num_heads // len(stripes), each, stage.taps) for each in stripes
        )
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * stage.mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attend(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def attend(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, len(self.attns), -1)).permute(4, 5, 0, 1, 2, 3, 6)
        return self.proj(torch.cat([attend(part) for attend, part in zip(self.attns, qkv.unbind(1), strict=True)], -1))


class ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, T, H, W, C)."""
        return x.permute(0, 2, 3, 4, 1)


class Merge(nn.Module):
    """Strided convolution between stages: halves height and width and doubles the channels."""

    def __init__(self, dim: int, dim_out: int, taps: int) -> None:
        super().__init__()
        self.conv = Conv3d(dim, dim_out, (taps, 3, 3), (1, 2, 2), (taps // 2, 1, 1))
        self.norm = nn.LayerNorm(dim_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1))


class CSWin(VideoBackbone):
    """CSWin: clips (B, 3, T, H, W), RGB, normalised -> logits (B, num_classes).

    Args:
        num_frames: 1 for the image network, which also takes (B, 3, H, W); more for a video network with temporal filters.
        crop_size: the H and W that decide which stages are global; other sizes work at run time, zero-padded on both
            sides to whole stripes.
        num_classes, drop_path_rate, dropout_rate, activation_checkpointing: as in MViT.
        depths: blocks per stage.
        embed_dim: width of the first stage; doubles from stage to stage.
        num_heads: heads of each stage, half of them for each direction.
        stripe_widths: width of each stage's stripes, in tokens. The last stage, and one whose grid at crop_size is as large
            as its stripe, are global.
        mlp_ratio: hidden width of the MLP over its width.
        qkv_bias: whether queries, keys and values have a bias.

    Source: arXiv 2107.00652 Table 1 and microsoft/CSWin-Transformer models/cswin.py.
    """

    def __init__(
        self,
        *,
        num_frames: int = 16,
        crop_size: int | Sequence[int] = 224,
        num_classes: int = 400,
        depths: Sequence[int] = (1, 2, 21, 1),
        embed_dim: int = 64,
        num_heads: Sequence[int] = (2, 4, 8, 16),
        stripe_widths: Sequence[int] = (1, 2, 7, 7),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        dropout_rate: float = 0.0,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__(num_frames, crop_size, num_classes, drop_path_rate, dropout_rate, activation_checkpointing)
        check_stages(depths, num_heads=num_heads, stripe_widths=stripe_widths)
        check_counts(embed_dim=embed_dim)
        check_ratios(mlp_ratio=mlp_ratio)
        check_switches(qkv_bias=qkv_bias)
        self.stage_dims = tuple(embed_dim * 2**stage for stage in range(len(depths)))
        taps = 1 if num_frames == 1 else 3
        grid = tuple((size - 3) // 4 + 1 for size in height_and_width(crop_size))
        stem = Conv3d(3, embed_dim, (taps, 7, 7), (1 if num_frames == 1 else 2, 4, 4), (taps // 2, 2, 2))
        self.stage1_conv_embed = nn.Sequential(stem, ChannelsLast(), nn.LayerNorm(embed_dim))
        rates = drop_path_rates(depths, drop_path_rate)
        for stage, (dim, heads, width) in enumerate(zip(self.stage_dims, num_heads, stripe_widths, strict=True)):
            is_global = stage == len(depths) - 1 or grid == (width, width)
            _check_heads(stage, dim, heads, is_global)
            arguments = StageArguments(dim, heads, None if is_global else width, mlp_ratio, qkv_bias, taps)
            self.add_module(f"stage{stage + 1}", nn.ModuleList(Block(arguments, rate) for rate in rates[stage]))
            if stage < len(depths) - 1:
                self.add_module(f"merge{stage + 1}", Merge(dim, 2 * dim, taps))
            grid = tuple((size + 1) // 2 for size in grid)
        self.norm = nn.LayerNorm(self.stage_dims[-1])
        self.dropout = nn.Dropout(dropout_rate)
        self.head = nn.Linear(self.stage_dims[-1], num_classes)
        self.init_weights()

    def init_weights(self) -> None:
        """Linear layers from a normal (σ .02) with biases of 0; convolutions and norms as PyTorch starts them."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_normal(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def stage_maps(self, clips: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        x = self.stage1_conv_embed(clips)
        for stage in range(1, len(self.stage_dims) + 1):
            for block in self.get_submodule(f"stage{stage}").children():
                x = self.run(block, x)
            maps.append(x.permute(0, 4, 1, 2, 3))
            if stage < len(self.stage_dims):
                x = self.get_submodule(f"merge{stage}")(x)
        return maps

    def feature(self, grid: Tensor) -> Tensor:
        return self.dropout(self.norm(grid.flatten(2).transpose(1, 2)).mean(1))


def _check_heads(stage: int, dim: int, heads: int, is_global: bool) -> None:
    if heads % (1 if is_global else 2) or dim % heads:
        allowed = "a divisor" if is_global else "an even divisor"
        raise ConfigError(f"num_heads={heads} in stage {stage + 1}: expected {allowed} of its width {dim}")


def _blocks(network: nn.Module) -> list[nn.Module]:
    stages = (module for name, module in network.named_children() if name.startswith("stage") and name[5:].isdigit())
    return [block for stage in stages for block in stage.children()]


def _last_stage(network: nn.Module) -> list[nn.Module]:
    stages = [name for name, _ in network.named_children() if name.startswith("stage") and name[5:].isdigit()]
    return list(network.get_submodule(stages[-1]).children())


SIZES: dict[str, dict[str, Any]] = {
    "t": dict(drop_path_rate=0.2),
    "s": dict(depths=(2, 4, 32, 2), drop_path_rate=0.4),
    "b": dict(depths=(2, 4, 32, 2), embed_dim=96, num_heads=(4, 8, 16, 32), drop_path_rate=0.5),
    "l": dict(depths=(2, 4, 32, 2), embed_dim=144, num_heads=(6, 12, 24, 24), drop_path_rate=0.2),
}
CSWIN = Capabilities(
    head="head",
    blocks=_blocks,
    feature=True,
    stage_maps=True,
    evidence=entering(_last_stage, channels_last=True),
    activation_checkpointing=True,
    formats=(CheckpointFormat("CSWin", has("stage1_conv_embed.0.weight")),),
    graphs=True,
    meta=True,
)
register_family("cswin", CSWin, SIZES, CSWIN, "arXiv 2107.00652")
