"""Masked feature prediction (MaskFeat, arXiv 2112.09133): the target, histograms of oriented gradients of what is hidden."""

# B clips, T frames, H/W pixels. A cell is 8×8 pixels; a token of stride s covers (s/8)² cells.

import math

import torch
import torch.nn.functional as F
from torch import Tensor

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
    line = (-0.5 * ((places - places.mean()) / (window // 2)).square()).exp()
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
