"""Multiscale vision transformer for video, versions 1 and 2 (arXiv 2112.01526, 2104.11227), from small parts to large.

Parameter names are PySlowFast's, so its published files load without a map.
"""

# B batch, T/H/W token grid (thw), c class tokens (0 or 1), N = c + T*H*W tokens (class token first),
# C channels, h heads, d = C // h. Tokens are (B, N, C) and travel with thw.

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mvit_video.errors import ConfigError, InputError
from mvit_video.model.attention import ATTENTION
from mvit_video.model.checks import (
    check_choice,
    check_counts,
    check_lists,
    check_rates,
    check_ratios,
    check_sizes,
    check_strides,
    check_switches,
    is_nested,
)
from mvit_video.model.heads import Grid
from mvit_video.model.layers import DropPath, Mlp, PatchConv, init_normal
from mvit_video.model.ops.attend import add_to_grid
from mvit_video.model.ops.convolution import Conv3d
from mvit_video.model.ops.linear import Linear
from mvit_video.model.ops.norm import LayerNorm
from mvit_video.model.ops.pooling import max_pool, project_and_pool
from mvit_video.model.pretrained import Pretrained
from mvit_video.model.relative_position import table_rows
from mvit_video.model.token_mixing import Mixing, block_mixing, mixed_attention, plan_mixing
from mvit_video.model.weights.inflate import VALUE_FILTER

LAYER_NORM_EPS = 1e-6
WIDEST = 65_536  # channels: L's last stage has 1,152


class PatchEmbed(nn.Module):
    """Clips (B, 3, T, H, W) to tokens by one 3D convolution with overlapping patches."""

    def __init__(self, in_channels: int, dim: int, kernel: Grid, stride: Grid) -> None:
        super().__init__()
        self.proj = PatchConv(in_channels, dim, kernel, stride, padding=_half(kernel))

    def forward(self, clips: Tensor) -> tuple[Tensor, Grid]:
        grid = self.proj(clips)  # (B, C, T, H, W)
        return grid.flatten(2).transpose(1, 2), _grid(grid.shape[2:])


@dataclass(frozen=True)
class BlockPlan:
    """Arguments of one block; `grid` is its input token grid at the size the model is made for."""

    dim: int
    dim_attention: int
    dim_out: int
    num_heads: int
    grid: Grid
    q_stride: Grid
    kv_stride: Grid
    drop_path: float
    mixing: Mixing


@dataclass(frozen=True)
class BlockStyle:
    """Arguments shared by all blocks."""

    mlp_ratio: float
    pool_kernel: Grid | None  # None: the windows follow from the strides
    num_cls: int
    relative_positions: bool
    filter_values: bool
    residual_pooling: bool
    pool_all_queries: bool
    attention: str

    def kernel(self, stride: Grid) -> Grid:
        """Of the filter that pools with this stride."""
        return self.pool_kernel or _grid(step + (step > 1) for step in stride)

    def pools(self, name: str, stride: Grid) -> bool:
        """Whether "q", "k" or "v" has a filter: MViTv1 pools queries, or everything, only where they are strided."""
        always = self.pool_kernel is not None and (name != "q" or self.pool_all_queries)
        return always or prod(stride) > 1


class PooledAttention(nn.Module):
    """Attention over pooled queries, keys and values with relative positions and residual pooling (paper §4.1).

    Position tables have the size of the plan's grid and are interpolated for others. A model made for one frame has no
    temporal table. `lepe`, a depth-wise filter of the unpooled values with the stride of the queries, is added to the
    output of the grid's queries; it spans the whole grid under any token mixing (arXiv 2107.00652 §3.3).
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
    lepe: nn.Conv3d | None

    def __init__(self, plan: BlockPlan, style: BlockStyle) -> None:
        super().__init__()
        dim, head_dim = plan.dim_attention, plan.dim_attention // plan.num_heads
        self.num_heads, self.scale = plan.num_heads, head_dim**-0.5
        self.attend, self.residual_pooling = ATTENTION[style.attention], style.residual_pooling
        self.mixing, self.strides = plan.mixing, (plan.q_stride, plan.kv_stride)
        self.qkv = Linear(plan.dim, 3 * dim)
        self.proj = Linear(dim, dim)
        for name, stride in (("q", plan.q_stride), ("k", plan.kv_stride), ("v", plan.kv_stride)):
            pools = style.pools(name, stride)
            setattr(self, f"pool_{name}", _depthwise(head_dim, style.kernel(stride), stride) if pools else None)
            setattr(self, f"norm_{name}", nn.LayerNorm(head_dim, LAYER_NORM_EPS) if pools else None)
        self._make_tables(plan, head_dim, style.relative_positions)
        self.lepe = _depthwise(dim, style.kernel(plan.q_stride), plan.q_stride) if style.filter_values else None

    def _make_tables(self, plan: BlockPlan, head_dim: int, relative_positions: bool) -> None:
        q_grid, k_grid = _divide(plan.grid, plan.q_stride), _divide(plan.grid, plan.kv_stride)
        for axis, q_size, k_size in zip("thw", q_grid, k_grid, strict=True):
            has_table = relative_positions and (axis != "t" or plan.grid[0] > 1)
            rows = table_rows(q_size, k_size)
            setattr(self, f"rel_pos_{axis}", nn.Parameter(torch.zeros(rows, head_dim)) if has_table else None)

    def forward(self, x: Tensor, thw: Grid) -> Tensor:
        """(B, N, C) with thw -> (B, N', C'), N' being the number of pooled queries."""
        pools = ((self.pool_q, self.norm_q), (self.pool_k, self.norm_k), (self.pool_v, self.norm_v))
        q, k, v, *filtered = project_and_pool(x, thw, self.qkv, pools, self.num_heads, self.lepe)
        tables = (self.rel_pos_t, self.rel_pos_h, self.rel_pos_w)
        out = mixed_attention(self.attend, self.mixing, self.strides, q, k, v, tables, self.scale)  # (B, N', h, d)
        for term in (*filtered, q) if self.residual_pooling else filtered:
            out = add_to_grid(out, term)
        return self.proj(out.flatten(2))


class SkipPool(nn.Module):
    """Max pooling of tokens (B, N, C) over overlapping windows of stride + 1 cells, with the stride of the queries."""

    def __init__(self, stride: Grid, num_cls: int) -> None:
        super().__init__()
        self.stride, self.num_cls = stride, num_cls

    def forward(self, x: Tensor, thw: Grid) -> tuple[Tensor, Grid]:
        if prod(self.stride) == 1:
            return x, thw
        cls, grid = x.split([self.num_cls, x.shape[1] - self.num_cls], 1)
        grid = max_pool(grid.unflatten(1, thw).permute(0, 4, 1, 2, 3), self.stride)  # (B, C, T, H, W)
        return torch.cat([cls, grid.permute(0, 2, 3, 4, 1).flatten(1, 3)], 1), _grid(grid.shape[2:])

    def extra_repr(self) -> str:
        return f"stride={self.stride}"


class Block(nn.Module):
    """(x, thw) -> (x, thw). Where the width grows, the shortcut of that branch is a Linear of its normed input."""

    def __init__(self, plan: BlockPlan, style: BlockStyle) -> None:
        super().__init__()
        self.norm1 = LayerNorm(plan.dim, LAYER_NORM_EPS)
        self.attn = PooledAttention(plan, style)
        self.pool_skip = SkipPool(plan.q_stride, style.num_cls)
        self.norm2 = LayerNorm(plan.dim_attention, LAYER_NORM_EPS)
        self.mlp = Mlp(plan.dim_attention, int(plan.dim_attention * style.mlp_ratio), plan.dim_out)
        self.drop_path = DropPath(plan.drop_path)
        self.proj = Linear(plan.dim, plan.dim_out) if plan.dim != plan.dim_out else None
        self.grows_in_attention, self.grows_in_mlp = plan.dim != plan.dim_attention, plan.dim_attention != plan.dim_out

    def forward(self, x: Tensor, thw: Grid) -> tuple[Tensor, Grid]:
        normed = self.norm1(x)
        branch = self.attn(normed, thw)
        skip, thw = self.pool_skip(self._skip(x, normed, self.grows_in_attention), thw)
        x = skip + self.drop_path(branch)
        normed = self.norm2(x)
        branch = self.mlp(normed)
        x = self._skip(x, normed, self.grows_in_mlp) + self.drop_path(branch)
        return x, thw

    def _skip(self, x: Tensor, normed: Tensor, grows: bool) -> Tensor:
        return self.proj(normed) if grows and self.proj is not None else x


class Head(nn.Module):
    def __init__(self, dim: int, num_classes: int, dropout_rate: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout_rate)
        self.projection = nn.Linear(dim, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.projection(self.dropout(features))


@dataclass(frozen=True, kw_only=True)
class MViTArguments:
    """The arguments of an `MViT`, validated once. Raises ConfigError for invalid ones.

    num_frames, crop_size: the T and H, W (one int, or both) that the position tables are made for. Other sizes
        work at run time by interpolation. A model made for one frame also takes images (B, 3, H, W).
    num_classes: outputs of the head.
    depths: blocks per stage; the first block of each later stage strides the queries and doubles the heads.
    embed_dim, num_heads: width and heads of the first stage; both double from stage to stage.
    kv_stride: stride (t, h, w) of keys and values in the first stage; divided by `q_stride` at each stage start.
    q_stride: stride (t, h, w) of the queries at each stage start, or one for each of them.
    patch_kernel, patch_stride, pool_kernel: of the 3D convolutions that embed patches and pool q, k, v. With
        pool_kernel="stride" windows are one longer than their stride, and what is not strided is not pooled (MViTv1).
    mlp_ratio: hidden width of the MLP over its width.
    drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
    dropout_rate: before the head.
    head_init_scale: factor of the head's initial weights.
    cls_token: put a class token in front of the patches.
    pooling: what the head classifies: "cls", the class token, the default with one; "mean" of all tokens, the default
        without; both after the last norm. "mean_without_cls": the norm of the mean of the patches' tokens (MaskFeat).
    width_growth: the width doubles in the "attention" of a stage's first block (MViTv2), or in the "mlp" of the
        last block before it (MViTv1, and the published IN-1K image model L).
    positions: "relative", decomposed, in every attention (MViTv2); "lepe", these and a depth-wise filter of the values,
        initialised to zero so that it can be added to a trained network; or "absolute", added once (MViTv1).
    residual_pooling: add the pooled queries to the attention's output (MViTv2).
    pool_all_queries: pool queries in every block (MViTv2), or only where they are strided (MViTv1).
    token_mixing: which tokens attend to each other, for the network or, in a list, for each stage: "all", "hwin",
        "window 8x7x7", "shifted 8x7x7", "grid 8x7x7", "stripes 8x7", or several, comma-separated, that alternate.
        See `model/token_mixing.py`.
    attention: "flash" (fast, no N×M matrix) or "reference" (the plain formula); equal to rounding.
    activation_checkpointing: save only each block's input for backward and recompute the rest.
    """

    num_frames: int = 16
    crop_size: int | tuple[int, int] = 224
    num_classes: int = 400
    in_channels: int = 3
    depths: Sequence[int] = (1, 2, 11, 2)
    embed_dim: int = 96
    num_heads: int = 1
    mlp_ratio: float = 4.0
    patch_kernel: Sequence[int] = (3, 7, 7)
    patch_stride: Sequence[int] = (2, 4, 4)
    pool_kernel: Sequence[int] | str = (3, 3, 3)
    q_stride: Sequence[int] | Sequence[Sequence[int]] = (1, 2, 2)
    kv_stride: Sequence[int] = (1, 8, 8)
    drop_path_rate: float = 0.0
    dropout_rate: float = 0.5
    head_init_scale: float = 1.0
    cls_token: bool = True
    pooling: str | None = None
    width_growth: str = "attention"
    positions: str = "relative"
    residual_pooling: bool = True
    pool_all_queries: bool = True
    token_mixing: str | Sequence[str] = "all"
    attention: str = "flash"
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        counts = ("num_frames", "num_classes", "in_channels", "embed_dim", "num_heads")
        check_counts(**{name: getattr(self, name) for name in counts})
        check_sizes(crop_size=self.crop_size)
        by_stride = self.pool_kernel == "stride"
        if isinstance(self.pool_kernel, str) and not by_stride:
            raise ConfigError(f"pool_kernel={self.pool_kernel!r}: expected 3 odd whole numbers from 1, or 'stride'")
        three = ("patch_kernel", "patch_stride", "kv_stride") + (() if by_stride else ("pool_kernel",))
        check_lists(depths=(self.depths, None), **{name: (getattr(self, name), 3) for name in three})
        check_strides("q_stride", self.q_stride, len(self.depths) - 1)
        self._check_together()
        check_rates(drop_path_rate=self.drop_path_rate, dropout_rate=self.dropout_rate)
        check_ratios(mlp_ratio=self.mlp_ratio, head_init_scale=self.head_init_scale)
        switches = ("cls_token", "residual_pooling", "pool_all_queries", "activation_checkpointing")
        check_switches(**{name: getattr(self, name) for name in switches})
        check_choice("attention", self.attention, ATTENTION)
        check_choice("positions", self.positions, ("relative", "lepe", "absolute"))
        check_choice("width_growth", self.width_growth, ("attention", "mlp"))
        self.block_plans()
        if not isinstance(self.token_mixing, str):
            object.__setattr__(self, "token_mixing", tuple(self.token_mixing))
        self._settle(three)

    def _settle(self, three: Iterable[str]) -> None:
        """Lists from a file become tuples, which are hashable, and defaults that follow from other arguments are put in."""
        for name in three:
            object.__setattr__(self, name, _grid(getattr(self, name)))
        object.__setattr__(self, "q_stride", self.q_strides[1:] if is_nested(self.q_stride) else tuple(self.q_stride))
        object.__setattr__(self, "depths", tuple(self.depths))
        object.__setattr__(self, "pooling", self.pooling or ("cls" if self.cls_token else "mean"))

    def _check_together(self) -> None:
        if self.embed_dim * 2 ** (len(self.depths) - 1) > WIDEST:
            raise ConfigError(
                f"depths={list(self.depths)}: the last of {len(self.depths)} stages would be "
                f"{self.embed_dim * 2 ** (len(self.depths) - 1):,} wide, at most {WIDEST:,}: use fewer stages or a smaller embed_dim"
            )
        if self.embed_dim % self.num_heads:
            raise ConfigError(f"embed_dim={self.embed_dim} is not a multiple of num_heads={self.num_heads}")
        if self.pool_kernel == "stride":
            self._check_steps("kv_stride", self.kv_stride, "the filters' windows of step + 1")
        elif any(int(length) % 2 == 0 for length in self.pool_kernel):
            raise ConfigError(
                f"pool_kernel={tuple(self.pool_kernel)}: expected odd lengths, so that a window has a middle"
            )
        for stride in self.q_strides:
            self._check_steps("q_stride", stride, "the shortcut's windows of step + 1")
        if self.pooling is not None:
            check_choice("pooling", self.pooling, ("cls", "mean", "mean_without_cls"))
        if self.pooling == "cls" and not self.cls_token:
            raise ConfigError("pooling='cls' needs a class token: set cls_token=True, or pooling to mean")
        if self.pool_kernel == "stride" and self.positions == "lepe":
            raise ConfigError(
                "positions='lepe' needs pool_kernel as three lengths: with 'stride' most filters are of one token"
            )
        if any(length < step for length, step in zip(self.size, self.patch_stride, strict=True)):
            raise ConfigError(
                f"num_frames and crop_size {self.size} are smaller than one patch step {tuple(self.patch_stride)}: "
                "make them larger"
            )

    def _check_steps(self, name: str, stride: Sequence[int], windows: str) -> None:
        if any(step % 2 and step > 1 for step in stride):
            raise ConfigError(f"{name}={tuple(stride)}: expected 1 or even steps, so that {windows} have a middle")

    @property
    def q_strides(self) -> tuple[Grid, ...]:
        """Stride of the queries at the start of each stage; the first has none."""
        starts: Any = self.q_stride if is_nested(self.q_stride) else [self.q_stride] * (len(self.depths) - 1)
        return ((1, 1, 1), *map(_grid, starts))

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width."""
        return (self.crop_size, self.crop_size) if isinstance(self.crop_size, int) else self.crop_size

    @property
    def size(self) -> Grid:
        """Frames, height and width that the position tables are made for."""
        return _grid((self.num_frames, *self.crop))

    @property
    def grid(self) -> Grid:
        """The token grid of that size."""
        return _divide(self.size, self.patch_stride)

    def block_style(self) -> BlockStyle:
        return BlockStyle(
            mlp_ratio=self.mlp_ratio,
            pool_kernel=None if self.pool_kernel == "stride" else _grid(map(int, self.pool_kernel)),
            num_cls=int(self.cls_token),
            relative_positions=self.positions != "absolute",
            filter_values=self.positions == "lepe",
            residual_pooling=self.residual_pooling,
            pool_all_queries=self.pool_all_queries,
            attention=self.attention,
        )

    def block_plans(self) -> list[BlockPlan]:
        """Width, heads, grid and strides of every block."""
        plans: list[BlockPlan] = []
        dim, grid, kv, total = self.embed_dim, self.grid, _grid(self.kv_stride), sum(self.depths)
        mixings = plan_mixing(self.token_mixing, self.depths)
        for stage, depth in enumerate(self.depths):
            for index in range(depth):
                ends = index == depth - 1 and stage < len(self.depths) - 1
                q = self.q_strides[stage] if index == 0 else (1, 1, 1)
                kv = _divide(kv, q)
                dim_attention = self.embed_dim * 2**stage if self.width_growth == "attention" else dim
                dim_out = 2 * dim if self.width_growth == "mlp" and ends else dim_attention
                drop_path = self.drop_path_rate * len(plans) / max(total - 1, 1)
                heads, last = self.num_heads * 2**stage, stage == len(self.depths) - 1
                mixing, keys = block_mixing(mixings[len(plans)], _divide(grid, q), q, kv, heads, last)
                plans.append(BlockPlan(dim, dim_attention, dim_out, heads, grid, q, keys, drop_path, mixing))
                dim, grid = dim_out, _divide(grid, q)
        return plans


class MViT(Pretrained, nn.Module):
    """Video MViTv2: clips (B, 3, T, H, W), RGB, normalised -> logits (B, num_classes); never a softmax.

    Its keyword arguments are the fields of `MViTArguments`.

    Source: arXiv 2112.01526 §4, arXiv 2104.11227 for MViTv1, and the public PySlowFast configurations.
    """

    arguments_class = MViTArguments

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        args = self.arguments_class(**arguments)
        self.num_frames, self.in_channels, self.num_classes = args.num_frames, args.in_channels, args.num_classes
        self.patch_stride, self.grid = _grid(args.patch_stride), args.grid
        self.activation_checkpointing, self.pooling = args.activation_checkpointing, args.pooling
        self.patch_embed = PatchEmbed(args.in_channels, args.embed_dim, _grid(args.patch_kernel), self.patch_stride)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, args.embed_dim)) if args.cls_token else None
        self._make_absolute_positions(args)
        plans, style = args.block_plans(), args.block_style()
        self.blocks = nn.ModuleList(Block(plan, style) for plan in plans)
        self.stage_ends = tuple(sum(args.depths[: stage + 1]) - 1 for stage in range(len(args.depths)))
        self.stage_dims = tuple(plans[end].dim_out for end in self.stage_ends)
        self.norm = nn.LayerNorm(self.stage_dims[-1], LAYER_NORM_EPS)
        self.head = Head(self.stage_dims[-1], args.num_classes, args.dropout_rate)
        self.init_weights(args.head_init_scale)

    def _make_absolute_positions(self, args: MViTArguments) -> None:
        absolute, dim, (t, h, w) = args.positions == "absolute", args.embed_dim, args.grid
        self.pos_embed_spatial = nn.Parameter(torch.zeros(1, h * w, dim)) if absolute else None
        self.pos_embed_temporal = nn.Parameter(torch.zeros(1, t, dim)) if absolute else None
        self.pos_embed_class = nn.Parameter(torch.zeros(1, 1, dim)) if absolute and args.cls_token else None

    def init_weights(self, head_scale: float = 1.0) -> None:
        """Weights, class token and position tables from a normal (σ .02), the head's scaled; biases and `lepe` 0; norms 1.

        PySlowFast cuts the normal at ±2, a hundred σ away, where older versions of PyTorch's `trunc_normal_` put single
        weights. Biases start at 0 as in torchvision; PySlowFast starts those of Linear and LayerNorm at .02.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and not name.endswith(VALUE_FILTER):
                init_normal(parameter)
            elif parameter.ndim == 1 and name.endswith("weight"):
                nn.init.ones_(parameter)
            else:
                nn.init.zeros_(parameter)
        with torch.no_grad():
            self.head.projection.weight.mul_(head_scale)

    def forward(self, clips: Tensor, with_feature: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Logits; with `with_feature` logits and `pooled` from one call, which wrappers such as DDP require."""
        feature = self.pooled(clips)
        return (self.head(feature), feature) if with_feature else self.head(feature)

    def pooled(self, clips: Tensor) -> Tensor:
        """The head's input (B, C), as the argument `pooling` says."""
        x, thw = self._embed(clips)
        for block in self.blocks:
            x, thw = self._run(block, x, thw)
        if self.pooling == "mean_without_cls":
            return self.norm(self._patches(x).mean(1))
        return self.norm(x[:, :1] if self.pooling == "cls" else x).mean(1)

    def forward_features(self, clips: Tensor) -> list[Tensor]:
        """The map after each stage, for use as a backbone: (B, C, T', H', W') with C as in `stage_dims`; no norm."""
        x, thw = self._embed(clips)
        maps = []
        for index, block in enumerate(self.blocks):
            x, thw = self._run(block, x, thw)
            if index in self.stage_ends:
                maps.append(self._patches(x).transpose(1, 2).unflatten(2, thw))
        return maps

    def _patches(self, x: Tensor) -> Tensor:
        """The tokens of patches, without the class token."""
        return x if self.cls_token is None else x[:, 1:]

    def _run(self, block: nn.Module, x: Tensor, thw: Grid) -> tuple[Tensor, Grid]:
        if self.activation_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, thw, use_reentrant=False)
        return block(x, thw)

    def _embed(self, clips: Tensor) -> tuple[Tensor, Grid]:
        if clips.ndim == 4 and self.num_frames == 1:
            clips = clips.unsqueeze(2)
        self._check_clips(clips)
        x, thw = self.patch_embed(clips)
        return self._with_cls_and_positions(x, thw), thw

    def _with_cls_and_positions(self, x: Tensor, thw: Grid) -> Tensor:
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        return x + self._absolute_positions(thw)

    def _absolute_positions(self, thw: Grid) -> Tensor | float:
        """Absolute positions, interpolated to the grid: (1, N, C), or 0."""
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
                f"clips have shape {tuple(clips.shape)}, expected (batch, {self.in_channels}, frames, height, width)"
            )
        if not clips.is_floating_point():
            raise InputError(f"clips are {clips.dtype}, expected floating point values, normalised by mean and std")
        if any(size < stride for size, stride in zip(clips.shape[2:], self.patch_stride, strict=True)):
            raise InputError(
                f"clips of {tuple(clips.shape[2:])} frames × height × width are smaller than one patch step "
                f"{self.patch_stride}: use more frames or larger images"
            )


def _depthwise(dim: int, kernel: Grid, stride: Grid) -> nn.Conv3d:
    return Conv3d(dim, dim, kernel, stride, _half(kernel), groups=dim, bias=False)


def _grid(values: Iterable[int]) -> Grid:
    t, h, w = values
    return (t, h, w)


def _half(kernel: Iterable[int]) -> Grid:
    return _grid(size // 2 for size in kernel)


def _divide(grid: Sequence[int], stride: Sequence[int]) -> Grid:
    """Floor division per axis, at least 1: how the published files size their position tables."""
    return _grid(max(size // step, 1) for size, step in zip(grid, stride, strict=True))
