"""Masked feature prediction (MaskFeat, arXiv 2112.09133): the network that predicts what is hidden, and its targets.

A target is a histogram of oriented gradients (HOG), or the pixels themselves.
"""

# B clips, T frames, H/W pixels, T'/H'/W' a grid of tokens, D numbers of a token's target, t/h/w the grid of the mask. A cell of
# a histogram is 8×8 pixels; a token of stride s covers (s/8)² cells.

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvit_video.errors import ConfigError, InputError
from mvit_video.model.layers import init_normal
from mvit_video.model.mvit import LAYER_NORM_EPS, MViT

CELL, BINS = 8, 9


def hog(frames: Tensor, gaussian_window: int = 0) -> Tensor:
    """Histograms of oriented gradients of images (B, 3, H, W): (B, 3, 9, H/8, W/8), float32, without a gradient.

    For each colour: Sobel gradients with a reflected border; the magnitude of each pixel counts for one of nine unsigned
    orientations; sums over cells of 8×8 pixels, each cell's histogram scaled to length 1. `gaussian_window` (a divisor of H
    and W; 16 in MMSelfSup, 0 for none in PySlowFast) weighs magnitudes by a tiled Gaussian.

    Each side of a filter is summed before they are subtracted: in the outermost columns both sides are equal, their exact 0
    decides the orientation, and another order of the sums would leave ±1e-7 there.
    """
    with torch.no_grad(), torch.autocast(frames.device.type, enabled=False):
        x = F.pad(frames.float(), (1, 1, 1, 1), mode="reflect")
        columns = x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]
        rows = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]
        gx = columns[..., :-2] - columns[..., 2:]
        gy = rows[..., :-2, :] - rows[..., 2:, :]
        magnitude = (gx.square() + gy.square()).sqrt()
        if gaussian_window:
            magnitude = magnitude * _tiled_gaussian(gaussian_window, magnitude)
        orientation = (torch.atan2(gx, gy) / math.pi * BINS).floor().long() % BINS
        votes = magnitude.new_zeros(*magnitude.shape[:2], BINS, *magnitude.shape[2:])
        votes.scatter_(2, orientation.unsqueeze(2), magnitude.unsqueeze(2))
        cells = votes.unflatten(-1, (-1, CELL)).unflatten(-3, (-1, CELL)).sum((-1, -3))
        return F.normalize(cells, dim=2)


def _tiled_gaussian(window: int, like: Tensor) -> Tensor:
    """A window×window Gaussian of sum 1 with a deviation of half its length, repeated over an image (H, W)."""
    places = torch.arange(window, dtype=torch.float32, device=like.device)
    line = (-0.5 * ((places - places.mean()) / (window / 2)).square()).exp()
    kernel = line[:, None] * line[None, :]
    return (kernel / kernel.sum()).repeat(like.shape[-2] // window, like.shape[-1] // window)


def hog_target(clips: Tensor, frame_stride: int, stride: int, gaussian_window: int = 0) -> Tensor:
    """What each token is to predict: clips (B, 3, T, H, W) -> (B, T', H', W', 27·cells), colour outermost, then bin, then cells.

    Frames are those that patches are centred on (0, frame_stride, …); `stride` is that of the tokens in pixels, from 8.
    """
    pictures = clips[:, :, ::frame_stride].transpose(1, 2)  # (B, T', 3, H, W)
    found = hog(pictures.flatten(0, 1), gaussian_window)
    cells = stride // CELL
    found = found.unflatten(-1, (-1, cells)).unflatten(-3, (-1, cells))  # (B·T', 3, 9, H', c, W', c)
    found = found.permute(0, 3, 5, 1, 2, 4, 6).flatten(3)
    return found.unflatten(0, pictures.shape[:2])


def pixel_target(clips: Tensor, frame_stride: int, stride: int) -> Tensor:
    """The pixels of each token's patch (B, T', H', W', 3·stride²) in the order row, column, colour, normalised by patch."""
    pictures = clips[:, :, ::frame_stride].float()
    patches = pictures.unflatten(-1, (-1, stride)).unflatten(-3, (-1, stride))  # (B, 3, T', H', s, W', s)
    patches = patches.permute(0, 2, 3, 5, 4, 6, 1).flatten(4)
    mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def masked_targets(
    clips: Tensor, target: str, frame_stride: int, strides: Sequence[int], gaussian_window: int = 0
) -> list[Tensor]:
    """What tokens of each stride are to predict, "hog" or "pixels" of clips (B, 3, T, H, W): (B, T', H', W', D) each."""
    if target == "pixels":
        return [pixel_target(clips, frame_stride, stride) for stride in strides]
    return [hog_target(clips, frame_stride, stride, gaussian_window) for stride in strides]


def target_size(target: str, stride: int) -> int:
    """D of a token of this stride."""
    return 3 * stride**2 if target == "pixels" else 3 * BINS * (stride // CELL) ** 2


class PredictionHead(nn.Module):
    """A norm and a linear layer for each predicting block: tokens (B, N, C) of each -> (B, N, D)."""

    def __init__(self, dims: Sequence[int], sizes: Sequence[int]) -> None:
        super().__init__()
        self.transforms = nn.ModuleList(nn.Sequential(nn.LayerNorm(dim, LAYER_NORM_EPS)) for dim in dims)
        linear = [nn.Linear(dim, size) for dim, size in zip(dims, sizes, strict=True)]
        self.projections = nn.ModuleList(linear)
        for projection in linear:
            init_normal(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        heads = zip(self.transforms, self.projections, tokens, strict=True)
        return [projection(transform(each)) for transform, projection, each in heads]


class MaskedMViT(MViT):
    """MViT's pre-training form: (clips (B, 3, T, H, W), mask (B, t, h, w)) -> predictions (B, T', H', W', D) of all tokens.

    A mask token stands for the patches of hidden cells, behind the patch embedding. There is no norm and head behind the
    blocks; a head of its own predicts from each block of `predict_from`.

    Args:
        predict_from: blocks that are predicted from, counted from 0, the last one among them; none: that one alone.
        target: "hog" or "pixels", which the width of the predictions follows from.
        arguments: the fields of `MViTArguments`; as published, the last stage keeps its grid (`q_stride` (1, 1, 1)).
    """

    def __init__(self, predict_from: Sequence[int] = (), target: str = "hog", **arguments: Any) -> None:
        super().__init__(**arguments)
        del self.norm, self.head
        plans = self.arguments_class(**arguments).block_plans()
        self.target, self.predict_from = target, tuple(predict_from) or (len(plans) - 1,)
        if sorted({*self.predict_from}) != [*self.predict_from] or self.predict_from[-1] != len(plans) - 1:
            raise ConfigError(
                f"pretrain.predict_from = {list(self.predict_from)}: expected blocks in rising order up to the last one, which is "
                f"{len(plans) - 1}, or none for that one alone"
            )
        self.token_strides = self._token_strides([plan.q_stride for plan in plans])
        self.mask_token = nn.Parameter(torch.zeros(1, 1, plans[0].dim))
        dims = [plans[block].dim_out for block in self.predict_from]
        self.pred_head = PredictionHead(dims, [target_size(target, stride) for stride in self.token_strides])
        init_normal(self.mask_token)

    def _token_strides(self, q_strides: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """Pixels from token to token behind each predicting block. Raises ConfigError for grids that no target has."""
        steps = [self.patch_stride[1:], *(stride[1:] for stride in q_strides)]
        found = []
        for block in self.predict_from:
            height, width = (math.prod(side) for side in zip(*steps[: block + 2], strict=True))
            if height != width or any(stride[0] > 1 for stride in q_strides[: block + 1]):
                raise ConfigError(
                    f"q_stride {list(map(list, q_strides))}: targets are square and of one time of patches, so let strides be "
                    "(1, s, s)"
                )
            if self.target == "hog" and height % CELL:
                raise ConfigError(
                    f"pretrain.predict_from = {list(self.predict_from)}: tokens behind block {block} are {height} pixels wide, but "
                    f"a histogram needs {CELL}: take a later block, or pretrain.target=pixels"
                )
            found.append(height)
        return tuple(found)

    def check_mask(self, window: Sequence[int], clip: Sequence[int]) -> None:
        """InputError unless a mask of `window` (t, h, w) fits clips of (T, H, W): whole tokens are hidden, of one time each."""
        frames = -(-clip[0] // self.patch_stride[0])
        sides = [max(self.token_strides) * cells for cells in window[1:]]
        if window[0] != frames or any(side % least for side, least in zip(clip[1:], sides, strict=True)):
            raise InputError(
                f"a mask of {'×'.join(map(str, window))} cells (times×rows×columns) does not fit clips of "
                f"{'×'.join(map(str, clip))} (frames×height×width): expected {frames} times, and cells of a multiple of "
                f"{max(self.token_strides)} pixels"
            )

    def forward(self, clips: Tensor, mask: Tensor) -> list[Tensor]:  # type: ignore[override]
        self._check_clips(clips)
        self.check_mask(mask.shape[1:], clips.shape[2:])
        x, thw = self.patch_embed(clips)
        hidden = enlarged(mask, thw[1:]).flatten(1)[..., None]  # (B, N, 1)
        x = self._with_cls_and_positions(torch.where(hidden, self.mask_token.to(x.dtype), x), thw)
        tokens, grids = [], []
        for index, block in enumerate(self.blocks):
            x, thw = self._run(block, x, thw)
            if index in self.predict_from:
                tokens.append(self._patches(x))
                grids.append(thw)
        predictions = zip(self.pred_head(tokens), grids, strict=True)
        return [each.unflatten(1, grid).clone() for each, grid in predictions]  # FSDP2 warns of outputs that are views


def enlarged(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask (B, t, h, w) on a grid of more rows and columns, by nearest neighbour: (B, t, H', W'), bool."""
    rows, columns = (side // cells for side, cells in zip(size, mask.shape[2:], strict=True))
    return mask.bool().repeat_interleave(rows, 2).repeat_interleave(columns, 3)


def errors_of_cells(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error (B, t, h, w) of each cell of a mask, from predictions and targets (B, T', H', W', D)."""
    errors = (prediction - target).square().mean(-1)
    rows, columns = mask.shape[2:]
    return errors.unflatten(-1, (columns, -1)).unflatten(-3, (rows, -1)).mean((-1, -3))
