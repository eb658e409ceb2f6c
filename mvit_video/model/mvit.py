"""Multiscale vision transformer, version 2, for video (arXiv 2112.01526): the network, from small parts to large.

Parameter names are those of PySlowFast, so its published files load without a map.
"""

# B batch, T/H/W token grid (thw), c class tokens (0 or 1), N = c + T*H*W tokens (class token first),
# C channels, h heads, d = C // h. Tokens are (B, N, C) and travel with thw.

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mvit_video.errors import ConfigError, InputError
from mvit_video.model.attention import ATTENTION, Grid, Heads, add_residual
from mvit_video.model.ops.device import compute_dtype, is_plain, kernels_for
from mvit_video.model.ops.norm_linear import normed_linear, normed_mlp
from mvit_video.model.ops.pooling import max_pool, pool_norm, pool_norms, pools_at_once
from mvit_video.model.relative_position import table_rows

LAYER_NORM_EPS = 1e-6


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): leaves a branch out for whole samples and scales the rest to keep the mean."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, shortcut: Tensor, branch: Tensor) -> Tensor:
        """shortcut + branch (B, N, C), the branch dropped for some of the samples, in the type of the plain sum."""
        if not self.training or self.rate == 0.0:
            return shortcut + branch
        dtype = torch.promote_types(branch.dtype, torch.float32)
        keep = torch.empty(branch.shape[0], *[1] * (branch.ndim - 1), dtype=dtype, device=branch.device)
        keep = keep.bernoulli_(1.0 - self.rate).div_(1.0 - self.rate)
        return torch.addcmul(shortcut, branch, keep).to(torch.promote_types(shortcut.dtype, branch.dtype))

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden_dim: int, dim_out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim_out)

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        return normed_mlp(x, norm, self.fc1, self.fc2)


def convolve_patches(clips: Tensor, conv: nn.Conv3d) -> Tensor:
    """conv(clips) with the filter's taps in time as channels of pictures: GPUs lack a fast 3D convolution of so few channels."""
    taps, step = conv.kernel_size[0], conv.stride[0]
    frames = F.pad(clips.to(compute_dtype(clips)), (0, 0, 0, 0, taps // 2, taps // 2)).unfold(2, taps, step)
    pictures = frames.permute(0, 2, 1, 5, 3, 4).flatten(2, 3)  # (B, T, 3 · taps, H, W)
    pictures = pictures.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    found = F.conv2d(pictures, conv.weight.flatten(1, 2), conv.bias, conv.stride[1:], conv.padding[1:])
    return found.unflatten(0, (clips.shape[0], frames.shape[2])).transpose(1, 2)


class PatchEmbed(nn.Module):
    """Clips (B, 3, T, H, W) to tokens by one 3D convolution with overlap."""

    def __init__(self, in_channels: int, dim: int, kernel: Grid, stride: Grid) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_channels, dim, kernel, stride, padding=_half(kernel))

    def forward(self, clips: Tensor) -> tuple[Tensor, Grid]:
        by_pictures = kernels_for(clips) and is_plain(nn.Conv3d, self.proj)
        grid = convolve_patches(clips, self.proj) if by_pictures else self.proj(clips)  # (B, C, T, H, W)
        return grid.flatten(2).transpose(1, 2), _grid(grid.shape[2:])


@dataclass(frozen=True)
class BlockPlan:
    """What tells one block from another; `grid` is the token grid that enters it in the size the model is made for."""

    dim: int
    dim_attention: int
    dim_out: int
    num_heads: int
    grid: Grid
    q_stride: Grid
    kv_stride: Grid
    drop_path: float


@dataclass(frozen=True)
class BlockStyle:
    """What all blocks of a network share."""

    mlp_ratio: float
    pool_kernel: Grid
    num_cls: int
    relative_positions: bool
    residual_pooling: bool
    pool_all_queries: bool
    attention: str


class PooledAttention(nn.Module):
    """Attention over pooled queries, keys and values with relative positions and residual pooling (paper §4.1).

    Position tables are made for the plan's grid; any other works at run time by interpolation. A model made for one
    frame has no temporal table.
    """

    pool_q: nn.Conv3d | None
    pool_k: nn.Conv3d | None
    pool_v: nn.Conv3d | None
    norm_q: nn.LayerNorm | None
    norm_k: nn.LayerNorm | None
    norm_v: nn.LayerNorm | None
    rel_pos_t: nn.Parameter | None
    rel_pos_h: nn.Parameter | None
    rel_pos_w: nn.Parameter | None

    def __init__(self, plan: BlockPlan, style: BlockStyle) -> None:
        super().__init__()
        dim, head_dim = plan.dim_attention, plan.dim_attention // plan.num_heads
        self.num_heads, self.num_cls, self.q_stride = plan.num_heads, style.num_cls, plan.q_stride
        self.scale = head_dim**-0.5
        self.attend, self.residual_pooling = ATTENTION[style.attention], style.residual_pooling
        self.qkv = nn.Linear(plan.dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        for name, stride in (("q", plan.q_stride), ("k", plan.kv_stride), ("v", plan.kv_stride)):
            pools = name != "q" or style.pool_all_queries or prod(stride) > 1
            setattr(self, f"pool_{name}", _pool_filter(head_dim, style.pool_kernel, stride) if pools else None)
            setattr(self, f"norm_{name}", nn.LayerNorm(head_dim, LAYER_NORM_EPS) if pools else None)
        self._make_tables(plan, head_dim, style.relative_positions)

    def _make_tables(self, plan: BlockPlan, head_dim: int, relative_positions: bool) -> None:
        q_grid, k_grid = _divide(plan.grid, plan.q_stride), _divide(plan.grid, plan.kv_stride)
        for axis, q_size, k_size in zip("thw", q_grid, k_grid, strict=True):
            wanted = relative_positions and (axis != "t" or plan.grid[0] > 1)
            rows = table_rows(q_size, k_size)
            setattr(self, f"rel_pos_{axis}", nn.Parameter(torch.zeros(rows, head_dim)) if wanted else None)

    def forward(self, x: Tensor, thw: Grid, norm: nn.LayerNorm) -> tuple[Tensor, Grid]:
        queries, keys, values = self._project(x, thw, norm)
        out = self.attend(queries, keys, values, (self.rel_pos_t, self.rel_pos_h, self.rel_pos_w), self.scale)
        if self.residual_pooling:
            out = add_residual(out, queries)
        return self.proj(out.flatten(2)), queries.thw

    def _project(self, x: Tensor, thw: Grid, norm: nn.LayerNorm) -> list[Heads]:
        """Queries, keys and values, pooled and normed."""
        pools = ((self.pool_q, self.norm_q), (self.pool_k, self.norm_k), (self.pool_v, self.norm_v))
        if pools_at_once(x, pools):
            (qkv,) = normed_linear(x, norm, self.qkv)
            return [Heads(*pooled) for pooled in pool_norms(qkv.unflatten(-1, (3, self.num_heads, -1)), thw, pools)]
        parts = normed_linear(x, norm, self.qkv, parts=3)
        heads = (part.unflatten(-1, (self.num_heads, -1)) for part in parts)
        return [self._pool(part, thw, *pool) for part, pool in zip(heads, pools, strict=True)]

    def _pool(self, x: Tensor, thw: Grid, conv: nn.Conv3d | None, norm: nn.LayerNorm | None) -> Heads:
        """Tokens (B, N, h, d), pooled and normed where there is a filter."""
        if conv is None or norm is None:
            cls, grid = x.split([self.num_cls, x.shape[1] - self.num_cls], 1)
            return Heads(cls, grid.contiguous(), thw)
        return Heads(*pool_norm(x, thw, conv, norm))


class Block(nn.Module):
    """(x, thw) -> (x, thw). Where the width grows, the shortcut of that branch is a Linear of the branch's input."""

    def __init__(self, plan: BlockPlan, style: BlockStyle) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(plan.dim, LAYER_NORM_EPS)
        self.attn = PooledAttention(plan, style)
        self.norm2 = nn.LayerNorm(plan.dim_attention, LAYER_NORM_EPS)
        self.mlp = Mlp(plan.dim_attention, int(plan.dim_attention * style.mlp_ratio), plan.dim_out)
        self.drop_path = DropPath(plan.drop_path)
        self.grows_in_attention = plan.dim != plan.dim_attention
        self.proj = nn.Linear(plan.dim, plan.dim_out) if plan.dim != plan.dim_out else None

    def forward(self, x: Tensor, thw: Grid) -> tuple[Tensor, Grid]:
        branch, thw_out = self.attn(x, thw, self.norm1)
        shortcut = self._widen(x, self.norm1) if self.grows_in_attention else x
        x = self.drop_path(self._pool_shortcut(shortcut, thw), branch)
        branch = self.mlp(x, self.norm2)
        shortcut = x if self.grows_in_attention else self._widen(x, self.norm2)
        return self.drop_path(shortcut, branch), thw_out

    def _widen(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        return x if self.proj is None else normed_linear(x, norm, self.proj)[0]

    def _pool_shortcut(self, x: Tensor, thw: Grid) -> Tensor:
        stride, num_cls = self.attn.q_stride, self.attn.num_cls
        if prod(stride) == 1:
            return x
        cls, grid = x.split([num_cls, x.shape[1] - num_cls], 1)
        grid = max_pool(grid.unflatten(1, thw).permute(0, 4, 1, 2, 3), stride)
        return torch.cat([cls, grid.permute(0, 2, 3, 4, 1).flatten(1, 3)], 1)


class Head(nn.Module):
    def __init__(self, dim: int, num_classes: int, dropout_rate: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout_rate)
        self.projection = nn.Linear(dim, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.projection(self.dropout(features))


class MViT(nn.Module):
    """Video MViTv2: clips (B, 3, T, H, W), RGB, normalised -> logits (B, num_classes); never a softmax.

    Args:
        num_frames, crop_size: the T and H, W (one int, or both) that the position tables are made for. Other sizes
            work at run time: the tables are interpolated. A model made for one frame also takes pictures (B, 3, H, W).
        num_classes: rows of the head.
        depths: blocks per stage; the first block of each later stage strides the queries and doubles the heads.
        embed_dim, num_heads: width and heads of the first stage; both double from stage to stage.
        kv_stride: stride (t, h, w) of keys and values in the first stage; divided by `q_stride` at each stage start.
        q_stride: stride (t, h, w) of the queries at each stage start.
        patch_kernel, patch_stride, pool_kernel: of the 3D convolutions that make patches and pool q, k, v.
        mlp_ratio: hidden width of the MLP over its width.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
        dropout_rate: in front of the head.
        cls_token: classify from a class token; without it from the mean of the last tokens.
        width_growth: the width doubles in the "attention" of a stage's first block (MViTv2), or in the "mlp" of the
            last block before it (MViTv1, and the published IN-1K image model L).
        positions: "relative", decomposed, in every attention (MViTv2), or "absolute", added once (MViTv1).
        residual_pooling: add the pooled queries to the attention's output (MViTv2).
        pool_all_queries: pool queries in every block (MViTv2), or only where they are strided (MViTv1).
        attention: "flash" (fast, no N×M matrix) or "reference" (the plain formula); equal to rounding. Only "reference"
            can be differentiated twice.
        activation_checkpointing: keep only each block's input for the backward pass and compute the rest again.

    Source: arXiv 2112.01526 §4, arXiv 2104.11227 for MViTv1, and the public PySlowFast configurations.
    """

    def __init__(
        self,
        *,
        num_frames: int = 16,
        crop_size: int | tuple[int, int] = 224,
        num_classes: int = 400,
        in_channels: int = 3,
        depths: Sequence[int] = (1, 2, 11, 2),
        embed_dim: int = 96,
        num_heads: int = 1,
        mlp_ratio: float = 4.0,
        patch_kernel: Sequence[int] = (3, 7, 7),
        patch_stride: Sequence[int] = (2, 4, 4),
        pool_kernel: Sequence[int] = (3, 3, 3),
        q_stride: Sequence[int] = (1, 2, 2),
        kv_stride: Sequence[int] = (1, 8, 8),
        drop_path_rate: float = 0.0,
        dropout_rate: float = 0.5,
        cls_token: bool = True,
        width_growth: str = "attention",
        positions: str = "relative",
        residual_pooling: bool = True,
        pool_all_queries: bool = True,
        attention: str = "flash",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        crop = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
        _check_counts(
            num_frames=num_frames,
            num_classes=num_classes,
            in_channels=in_channels,
            embed_dim=embed_dim,
            num_heads=num_heads,
        )
        _check_lists(
            depths=(depths, None),
            crop_size=(crop, 2),
            patch_kernel=(patch_kernel, 3),
            patch_stride=(patch_stride, 3),
            pool_kernel=(pool_kernel, 3),
            q_stride=(q_stride, 3),
            kv_stride=(kv_stride, 3),
        )
        size = _grid((num_frames, *crop))
        _check_together(embed_dim, num_heads, size, patch_stride, pool_kernel, q_stride)
        _check_rates(drop_path_rate=drop_path_rate, dropout_rate=dropout_rate)
        _check_ratio(mlp_ratio)
        _check_switches(
            cls_token=cls_token,
            residual_pooling=residual_pooling,
            pool_all_queries=pool_all_queries,
            activation_checkpointing=activation_checkpointing,
        )
        _check_choice("attention", attention, ATTENTION)
        _check_choice("positions", positions, ("relative", "absolute"))
        _check_choice("width_growth", width_growth, ("attention", "mlp"))
        self.num_frames, self.in_channels, self.num_classes = num_frames, in_channels, num_classes
        self.patch_stride, self.activation_checkpointing = _grid(patch_stride), activation_checkpointing
        self.patch_embed = PatchEmbed(in_channels, embed_dim, _grid(patch_kernel), self.patch_stride)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if cls_token else None
        grid = _divide(size, patch_stride)
        self.grid = grid
        absolute = positions == "absolute"
        self.pos_embed_spatial = nn.Parameter(torch.zeros(1, grid[1] * grid[2], embed_dim)) if absolute else None
        self.pos_embed_temporal = nn.Parameter(torch.zeros(1, grid[0], embed_dim)) if absolute else None
        self.pos_embed_class = nn.Parameter(torch.zeros(1, 1, embed_dim)) if absolute and cls_token else None
        style = BlockStyle(
            mlp_ratio=mlp_ratio,
            pool_kernel=_grid(pool_kernel),
            num_cls=int(cls_token),
            relative_positions=positions == "relative",
            residual_pooling=residual_pooling,
            pool_all_queries=pool_all_queries,
            attention=attention,
        )
        plans = plan_blocks(
            depths, embed_dim, num_heads, grid, _grid(q_stride), _grid(kv_stride), width_growth, drop_path_rate
        )
        self.blocks = nn.ModuleList(Block(plan, style) for plan in plans)
        self.stage_ends = tuple(sum(depths[: stage + 1]) - 1 for stage in range(len(depths)))
        self.stage_dims = tuple(plans[end].dim_out for end in self.stage_ends)
        self.norm = nn.LayerNorm(self.stage_dims[-1], LAYER_NORM_EPS)
        self.head = Head(self.stage_dims[-1], num_classes, dropout_rate)
        self.init_weights()

    def init_weights(self) -> None:
        """Weights, class token and position tables from a normal (σ .02, cut at 2); biases 0; norms 1.

        Biases start at 0 as in torchvision; PySlowFast starts those of Linear and LayerNorm at .02.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith("weight"):
                nn.init.ones_(parameter)
            else:
                nn.init.zeros_(parameter)

    def forward(self, clips: Tensor, with_feature: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Logits; with `with_feature` logits and `pooled`, in one call, so that wrappers of the network see both."""
        feature = self.pooled(clips)
        return (self.head(feature), feature) if with_feature else self.head(feature)

    def pooled(self, clips: Tensor) -> Tensor:
        """The feature that the head classifies (B, C): the class token, or the mean of the tokens, after the last norm."""
        x, thw = self._embed(clips)
        for block in self.blocks:
            x, thw = self._run(block, x, thw)
        x = x[:, :1] if self.cls_token is not None else x
        return self.norm(x).mean(1)

    def forward_features(self, clips: Tensor) -> list[Tensor]:
        """The map after each stage, for use as a backbone: (B, C, T', H', W') with C as in `stage_dims`; no norm."""
        x, thw = self._embed(clips)
        maps = []
        for place, block in enumerate(self.blocks):
            x, thw = self._run(block, x, thw)
            if place in self.stage_ends:
                tokens = x if self.cls_token is None else x[:, 1:]
                maps.append(tokens.transpose(1, 2).unflatten(2, thw))
        return maps

    def _run(self, block: nn.Module, x: Tensor, thw: Grid) -> tuple[Tensor, Grid]:
        if self.activation_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, thw, use_reentrant=False)
        return block(x, thw)

    def _embed(self, clips: Tensor) -> tuple[Tensor, Grid]:
        if clips.ndim == 4 and self.num_frames == 1:
            clips = clips.unsqueeze(2)
        self._check_clips(clips)
        x, thw = self.patch_embed(clips)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        return x + self._absolute_positions(thw), thw

    def _absolute_positions(self, thw: Grid) -> Tensor | float:
        """Positions of a grid's tokens, interpolated where it is not the grid they were made for: (1, N, C), or 0."""
        if self.pos_embed_spatial is None or self.pos_embed_temporal is None:
            return 0.0
        spatial = self.pos_embed_spatial.unflatten(1, self.grid[1:]).permute(0, 3, 1, 2)  # (1, C, H, W)
        temporal = self.pos_embed_temporal.transpose(1, 2)  # (1, C, T)
        if thw != self.grid:
            spatial = F.interpolate(spatial, size=thw[1:], mode="bilinear")
            temporal = F.interpolate(temporal, size=thw[0], mode="linear")
        positions = (temporal[..., None] + spatial.flatten(2)[:, :, None]).flatten(2).transpose(1, 2)
        return positions if self.pos_embed_class is None else torch.cat([self.pos_embed_class, positions], 1)

    def _check_clips(self, clips: Tensor) -> None:
        if clips.ndim != 5 or clips.shape[1] != self.in_channels:
            raise InputError(
                f"clips have shape {tuple(clips.shape)}, wanted (batch, {self.in_channels}, frames, height, width)"
            )
        if not clips.is_floating_point():
            raise InputError(f"clips are {clips.dtype}, wanted floating point values, normalised by mean and std")
        if any(size < stride for size, stride in zip(clips.shape[2:], self.patch_stride, strict=True)):
            raise InputError(
                f"clips of {tuple(clips.shape[2:])} frames × height × width are smaller than one patch step "
                f"{self.patch_stride}: use more frames or larger pictures"
            )


def plan_blocks(
    depths: Sequence[int],
    embed_dim: int,
    num_heads: int,
    grid: Grid,
    q_stride: Grid,
    kv_stride: Grid,
    width_growth: str,
    drop_path_rate: float,
) -> list[BlockPlan]:
    """Width, heads, grid and strides of every block."""
    plans: list[BlockPlan] = []
    dim, kv, total = embed_dim, kv_stride, sum(depths)
    for stage, depth in enumerate(depths):
        for place in range(depth):
            starts, ends = stage > 0 and place == 0, place == depth - 1 and stage < len(depths) - 1
            q = q_stride if starts else (1, 1, 1)
            kv = _divide(kv, q)
            dim_attention = embed_dim * 2**stage if width_growth == "attention" else dim
            dim_out = 2 * dim if width_growth == "mlp" and ends else dim_attention
            drop_path = drop_path_rate * len(plans) / max(total - 1, 1)
            plans.append(BlockPlan(dim, dim_attention, dim_out, num_heads * 2**stage, grid, q, kv, drop_path))
            dim, grid = dim_out, _divide(grid, q)
    return plans


def _pool_filter(head_dim: int, kernel: Grid, stride: Grid) -> nn.Conv3d:
    return nn.Conv3d(head_dim, head_dim, kernel, stride, _half(kernel), groups=head_dim, bias=False)


def _grid(values: Iterable[int]) -> Grid:
    t, h, w = values
    return (t, h, w)


def _half(kernel: Iterable[int]) -> Grid:
    return _grid(size // 2 for size in kernel)


def _divide(grid: Sequence[int], stride: Sequence[int]) -> Grid:
    """Floor division axis by axis, at least 1: how the published files size their position tables."""
    return _grid(max(size // step, 1) for size, step in zip(grid, stride, strict=True))


def _check_counts(**counts: object) -> None:
    for name, value in counts.items():
        if not _is_count(value):
            raise ConfigError(f"{name}={value!r}: wanted a whole number from 1")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_lists(**lists: tuple[object, int | None]) -> None:
    """ConfigError for one that is not a list of whole numbers from 1, as many as are said beside it."""
    for name, (values, count) in lists.items():
        given = values if isinstance(values, Sequence) else ()
        right = len(given) == (count or len(given) or 1)
        if not right or not all(map(_is_count, given)):
            wanted = f"{count} whole numbers" if count else "a list of whole numbers, blocks of each stage,"
            raise ConfigError(f"{name}={values!r}: wanted {wanted} from 1")


def _check_rates(**rates: float) -> None:
    for name, value in rates.items():
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise ConfigError(f"{name}={value!r}: wanted a number from 0 to below 1")


def _check_ratio(mlp_ratio: object) -> None:
    if not isinstance(mlp_ratio, int | float) or isinstance(mlp_ratio, bool) or not 0 < mlp_ratio < inf:
        raise ConfigError(f"mlp_ratio={mlp_ratio!r}: wanted a number above 0")


def _check_switches(**switches: object) -> None:
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{name}={value!r}: wanted true or false")


def _check_together(
    embed_dim: int,
    num_heads: int,
    size: Sequence[int],
    patch_stride: Sequence[int],
    pool_kernel: Sequence[int],
    q_stride: Sequence[int],
) -> None:
    if embed_dim % num_heads:
        raise ConfigError(f"embed_dim={embed_dim} is not a multiple of num_heads={num_heads}")
    if any(length % 2 == 0 for length in pool_kernel):
        raise ConfigError(f"pool_kernel={tuple(pool_kernel)}: wanted odd lengths, so that a window has a middle")
    if any(step % 2 and step > 1 for step in q_stride):
        raise ConfigError(
            f"q_stride={tuple(q_stride)}: wanted 1 or even steps, so that the shortcut's windows of step + 1 have a middle"
        )
    if any(length < step for length, step in zip(size, patch_stride, strict=True)):
        raise ConfigError(
            f"num_frames and crop_size {tuple(size)} are smaller than one patch step {tuple(patch_stride)}: "
            "make them larger"
        )


def _check_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    if value not in list(allowed):
        raise ConfigError(f"{name}='{value}': allowed are {', '.join(allowed)}")
