"""Multiscale vision transformer, version 2, for video (arXiv 2112.01526): the network, from small parts to large.

Parameter names are those of PySlowFast, so its published files load without a map.
"""

# B batch, T/H/W token grid (thw), c class tokens (0 or 1), N = c + T*H*W tokens (class token first),
# C channels, h heads, d = C // h, K/M sizes and number of the pooled keys. Tokens are (B, N, C) and travel with thw.

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvit_video.errors import ConfigError, InputError
from mvit_video.model.relative_position import axis_terms, table_rows

Grid = tuple[int, int, int]
Terms = tuple[Tensor | None, Tensor, Tensor]
LAYER_NORM_EPS = 1e-6


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): zeroes whole samples of a branch and scales the rest to keep the mean."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * keep.to(x.dtype) / (1.0 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class PatchEmbed(nn.Module):
    """Clips (B, 3, T, H, W) to tokens by one 3D convolution with overlap."""

    def __init__(self, in_channels: int, dim: int, kernel: Grid, stride: Grid) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_channels, dim, kernel, stride, padding=_half(kernel))

    def forward(self, clips: Tensor) -> tuple[Tensor, Grid]:
        grid = self.proj(clips)  # (B, C, T, H, W)
        return grid.flatten(2).transpose(1, 2), tuple(grid.shape[2:])


def reference_attention(q: Tensor, k: Tensor, v: Tensor, terms: Terms, scale: float, num_cls: int) -> Tensor:
    """The plain formula softmax(q·kᵀ·scale + E)·v, with the N×M matrix written out.

    q (B, h, N, d), k and v (B, h, M, d), terms per axis (B, h, T, H, W, K) -> (B, h, N, d).
    """
    term_t, term_h, term_w = terms
    bias = term_h[..., None, :, None] + term_w[..., None, None, :]
    if term_t is not None:
        bias = bias + term_t[..., :, None, None]  # (B, h, T, H, W, Kt, Kh, Kw)
    bias = bias.flatten(5).flatten(2, 4)
    scores = (q * scale) @ k.transpose(-2, -1) + F.pad(bias, (num_cls, 0, num_cls, 0))
    return scores.softmax(-1) @ v


def flash_attention(q: Tensor, k: Tensor, v: Tensor, terms: Terms, scale: float, num_cls: int) -> Tensor:
    """The same as `reference_attention`, exactly, without the N×M matrix and without a mask.

    Each term depends on one coordinate of the key only, so E is a product as well: the terms are appended to the
    scaled query, the key's coordinates, one-hot, to the key, and [q·scale, terms]·[k, one-hot]ᵀ = q·kᵀ·scale + E.
    The class token has no coordinates: zeros on both sides. The fused kernels want one channel count, so v is padded.
    """
    head_dim = q.shape[-1]
    coordinates = torch.cat([term.flatten(2, 4) for term in terms if term is not None], -1)
    channels = -(-(head_dim + coordinates.shape[-1]) // 8) * 8  # the GPU kernels want a multiple of 8
    padding = channels - head_dim - coordinates.shape[-1]
    q = torch.cat([q * scale, F.pad(coordinates, (0, padding, num_cls, 0))], -1)
    sizes = [term.shape[-1] for term in terms if term is not None]
    one_hot = F.pad(key_coordinates(sizes, k), (0, padding, num_cls, 0))
    k = torch.cat([k, one_hot.expand(*k.shape[:2], -1, -1)], -1)
    v = F.pad(v, (0, channels - head_dim))
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :head_dim]


def key_coordinates(sizes: Sequence[int], like: Tensor) -> Tensor:
    """One-hot coordinates of every cell of a grid, axis after axis: sizes (Kt, Kh, Kw) -> (Kt·Kh·Kw, Kt+Kh+Kw)."""
    eyes = [torch.eye(size, dtype=like.dtype, device=like.device) for size in sizes]
    spread = []
    for axis, eye in enumerate(eyes):
        shape = [1] * len(sizes) + [sizes[axis]]
        shape[axis] = sizes[axis]
        spread.append(eye.view(shape).expand(*sizes, -1))
    return torch.cat(spread, -1).flatten(0, len(sizes) - 1)


ATTENTION = {"flash": flash_attention, "reference": reference_attention}


class PooledAttention(nn.Module):
    """Attention over pooled queries, keys and values with relative positions and residual pooling (paper §4.1).

    `grid` is the token grid that the position tables are made for; any other works at run time by interpolation.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        num_heads: int,
        grid: Grid,
        *,
        q_stride: Grid,
        kv_stride: Grid,
        pool_kernel: Grid,
        num_cls: int,
        attention: str,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_cls, self.attention = num_heads, num_cls, attention
        self.q_stride, self.kv_stride = q_stride, kv_stride
        head_dim = dim_out // num_heads
        self.scale = head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim_out)
        self.proj = nn.Linear(dim_out, dim_out)
        for name, stride in (("q", q_stride), ("k", kv_stride), ("v", kv_stride)):
            pool = nn.Conv3d(head_dim, head_dim, pool_kernel, stride, _half(pool_kernel), groups=head_dim, bias=False)
            setattr(self, f"pool_{name}", pool)
            setattr(self, f"norm_{name}", nn.LayerNorm(head_dim, LAYER_NORM_EPS))
        q_grid, k_grid = _divide(grid, q_stride), _divide(grid, kv_stride)
        rows_t, rows_h, rows_w = (table_rows(q, k) for q, k in zip(q_grid, k_grid, strict=True))
        self.rel_pos_h = nn.Parameter(torch.zeros(rows_h, head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(rows_w, head_dim))
        self.rel_pos_t = nn.Parameter(torch.zeros(rows_t, head_dim))

    def forward(self, x: Tensor, thw: Grid) -> tuple[Tensor, Grid]:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, h, d)
        q, q_thw = self._pool(qkv[:, :, 0], thw, self.pool_q, self.norm_q)
        k, k_thw = self._pool(qkv[:, :, 1], thw, self.pool_k, self.norm_k)
        v, _ = self._pool(qkv[:, :, 2], thw, self.pool_v, self.norm_v)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, h, N, d)
        q_grid = q[:, :, self.num_cls :].unflatten(2, q_thw)
        terms = axis_terms(q_grid, (self.rel_pos_t, self.rel_pos_h, self.rel_pos_w), k_thw)
        out = ATTENTION[self.attention](q, k, v, terms, self.scale, self.num_cls)
        out = out + self._without_cls(q)
        return self.proj(out.transpose(1, 2).flatten(2)), q_thw

    def _pool(self, x: Tensor, thw: Grid, conv: nn.Module, norm: nn.Module) -> tuple[Tensor, Grid]:
        """Tokens (B, N, h, d) through the depth-wise filter that all heads share, then the norm; class token kept."""
        cls, grid = x[:, : self.num_cls], x[:, self.num_cls :]
        grid = grid.flatten(2).unflatten(1, thw).permute(0, 4, 1, 2, 3)  # (B, C, T, H, W), channels last in memory
        weight = conv.weight.repeat(self.num_heads, 1, 1, 1, 1)
        grid = F.conv3d(grid, weight, None, conv.stride, conv.padding, groups=weight.shape[0])
        tokens = grid.permute(0, 2, 3, 4, 1).flatten(1, 3).unflatten(-1, (self.num_heads, -1))
        return norm(torch.cat([cls, tokens], 1)), tuple(grid.shape[2:])

    def _without_cls(self, q: Tensor) -> Tensor:
        """Pooled queries with zeros for the class token: residual pooling leaves it out."""
        return F.pad(q[:, :, self.num_cls :], (0, 0, self.num_cls, 0)) if self.num_cls else q


class Block(nn.Module):
    """(x, thw) -> (x, thw). Where the width grows it grows in the attention, and the shortcut is Linear(norm1(x))."""

    def __init__(
        self,
        dim: int,
        dim_out: int,
        num_heads: int,
        grid: Grid,
        *,
        mlp_ratio: float,
        drop_path: float,
        **attention_args,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.attn = PooledAttention(dim, dim_out, num_heads, grid, **attention_args)
        self.norm2 = nn.LayerNorm(dim_out, LAYER_NORM_EPS)
        self.mlp = Mlp(dim_out, int(dim_out * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.proj = nn.Linear(dim, dim_out) if dim != dim_out else None

    def forward(self, x: Tensor, thw: Grid) -> tuple[Tensor, Grid]:
        normed = self.norm1(x)
        branch, thw_out = self.attn(normed, thw)
        shortcut = x if self.proj is None else self.proj(normed)
        x = self._pool_shortcut(shortcut, thw) + self.drop_path(branch)
        return x + self.drop_path(self.mlp(self.norm2(x))), thw_out

    def _pool_shortcut(self, x: Tensor, thw: Grid) -> Tensor:
        stride, num_cls = self.attn.q_stride, self.attn.num_cls
        if prod(stride) == 1:
            return x
        kernel = tuple(s + 1 if s > 1 else 1 for s in stride)
        grid = x[:, num_cls:].unflatten(1, thw).permute(0, 4, 1, 2, 3)
        grid = F.max_pool3d(grid, kernel, stride, _half(kernel))
        return torch.cat([x[:, :num_cls], grid.flatten(2).transpose(1, 2)], 1)


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
            work at run time: the tables are interpolated.
        num_classes: rows of the head.
        depths: blocks per stage; the first block of each later stage doubles width and heads and strides the queries.
        embed_dim, num_heads: width and heads of the first stage.
        kv_stride: stride (t, h, w) of keys and values in the first stage; divided by `q_stride` at each stage start.
        q_stride: stride (t, h, w) of the queries at each stage start.
        patch_kernel, patch_stride, pool_kernel: of the 3D convolutions that make patches and pool q, k, v.
        mlp_ratio: hidden width of the MLP over its width.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
        dropout_rate: in front of the head.
        cls_token: classify from a class token; without it from the mean of the last tokens.
        attention: "flash" (fast, no N×M matrix) or "reference" (the plain formula); equal to rounding.

    Source: the paper's §4 and the public PySlowFast configurations.
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
        patch_kernel: Grid = (3, 7, 7),
        patch_stride: Grid = (2, 4, 4),
        pool_kernel: Grid = (3, 3, 3),
        q_stride: Grid = (1, 2, 2),
        kv_stride: Grid = (1, 8, 8),
        drop_path_rate: float = 0.0,
        dropout_rate: float = 0.5,
        cls_token: bool = True,
        attention: str = "flash",
    ) -> None:
        super().__init__()
        crop = (crop_size, crop_size) if isinstance(crop_size, int) else tuple(crop_size)
        _check_arguments(depths, embed_dim, num_heads, attention, (num_frames, *crop), patch_stride)
        self.in_channels, self.num_classes, self.patch_stride = in_channels, num_classes, tuple(patch_stride)
        self.patch_embed = PatchEmbed(in_channels, embed_dim, tuple(patch_kernel), tuple(patch_stride))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if cls_token else None
        self.blocks = nn.ModuleList()
        grid = _divide((num_frames, *crop), patch_stride)
        dim, kv = embed_dim, tuple(kv_stride)
        drop_path = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        for stage, depth in enumerate(depths):
            for block in range(depth):
                starts_stage = stage > 0 and block == 0
                q = tuple(q_stride) if starts_stage else (1, 1, 1)
                if starts_stage:
                    kv = _divide(kv, q)
                dim_out = embed_dim * 2**stage
                self.blocks.append(
                    Block(
                        dim,
                        dim_out,
                        num_heads * 2**stage,
                        grid,
                        mlp_ratio=mlp_ratio,
                        drop_path=drop_path[len(self.blocks)],
                        q_stride=q,
                        kv_stride=kv,
                        pool_kernel=tuple(pool_kernel),
                        num_cls=int(cls_token),
                        attention=attention,
                    )
                )
                dim, grid = dim_out, _divide(grid, q)
        self.norm = nn.LayerNorm(dim, LAYER_NORM_EPS)
        self.head = Head(dim, num_classes, dropout_rate)
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

    def forward(self, clips: Tensor) -> Tensor:
        x, thw = self._embed(clips)
        for block in self.blocks:
            x, thw = block(x, thw)
        x = x[:, :1] if self.cls_token is not None else x
        return self.head(self.norm(x).mean(1))

    def _embed(self, clips: Tensor) -> tuple[Tensor, Grid]:
        self._check_clips(clips)
        x, thw = self.patch_embed(clips)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        return x, thw

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


def _half(kernel: Sequence[int]) -> Grid:
    return tuple(size // 2 for size in kernel)


def _divide(grid: Sequence[int], stride: Sequence[int]) -> Grid:
    """Floor division axis by axis, at least 1: how the published files size their position tables."""
    return tuple(max(size // step, 1) for size, step in zip(grid, stride, strict=True))


def _check_arguments(depths, embed_dim, num_heads, attention, size, patch_stride) -> None:
    if not depths or min(depths) < 1:
        raise ConfigError(f"depths={tuple(depths)}: every stage needs at least one block")
    if embed_dim % num_heads:
        raise ConfigError(f"embed_dim={embed_dim} is not a multiple of num_heads={num_heads}")
    if attention not in ATTENTION:
        raise ConfigError(f"attention='{attention}': allowed are {', '.join(ATTENTION)}")
    if any(length < step for length, step in zip(size, patch_stride, strict=True)):
        raise ConfigError(
            f"num_frames and crop_size {tuple(size)} are smaller than one patch step {tuple(patch_stride)}"
        )
