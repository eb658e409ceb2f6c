"""Pixels: what travels from where videos are decoded to the device, and the one place where they become clips.

Pixels are uint8 as decoded, channels last in memory: a quarter of a clip's bytes. Where whole grey levels would change
what a network was published with, or a plugin's transform wants to compute, they are float32 from 0 to 1. Both have a clip's shape.
"""

# B clips, C=3 channels RGB, T frames, H/W pixels. Clips are float32 (B, C, T, H, W), normalised.

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

Box = tuple[int, int, int, int]  # top, left, height, width


def clip_memory(*shape: int, device: torch.device | None = None) -> Tensor:
    """Room for clips, float32. On a CPU numpy gets it in large pages: a first write to torch's small ones takes six times as long."""
    if device is not None and device.type != "cpu":
        return torch.empty(shape, device=device)
    return torch.from_numpy(np.empty(shape, np.float32))


def from_zero_to_one(pixels: Tensor) -> Tensor:
    """Pixels as float32 from 0 to 1: those that are so already as they are."""
    return _divided(pixels, clip_memory(*pixels.shape)) if pixels.dtype == torch.uint8 else pixels


def _divided(pixels: Tensor, out: Tensor) -> Tensor:
    """Bytes are reordered before they become floats, which takes half of the time of both at once. The divisor is a
    tensor since CUDA multiplies by the inverse of a plain number, which has other last bits."""
    return torch.div(pixels.contiguous(), _on_device((255.0,), out.device).view(()), out=out)


def stacked(pixels: Sequence[Tensor]) -> Tensor:
    """Pixels (C, T, H, W) of one batch, (B, C, T, H, W), in the order that their bytes are in.

    In a worker default_collate stacks in shared memory, with one copy less.
    """
    if pixels[0].dtype != torch.uint8 or pixels[0].ndim != 4:
        return default_collate(list(pixels))
    return default_collate([one.permute(1, 2, 3, 0) for one in pixels]).permute(0, 4, 1, 2, 3)


def pinned(pixels: Tensor, device: torch.device) -> Tensor:
    """A copy that a GPU can fetch while the processor goes on; for other devices the pixels themselves."""
    return pixels.pin_memory() if device.type == "cuda" else pixels


@dataclass(frozen=True)
class Normalise:
    """Makes clips of pixels on the device: (pixels from 0 to 1 − mean) / std per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor, out: Tensor | None = None) -> Tensor:
        """Pixels (B, C, T, H, W) -> clips, in `out`, which may lie on another device. Pinned pixels are fetched asynchronously."""
        out = clip_memory(*pixels.shape, device=pixels.device) if out is None else out
        pixels = pixels.to(out.device, non_blocking=True)
        mean, std = (_on_device(values, out.device).view(-1, 1, 1, 1) for values in (self.mean, self.std))
        if pixels.dtype == torch.uint8:
            return _divided(pixels, out).sub_(mean).div_(std)
        return torch.sub(pixels, mean, out=out).div_(std)

    def joined(self, parts: Sequence[Tensor], device: torch.device | None) -> Tensor:
        """The clips of several parts in one tensor on the device: there alone are they put together."""
        lengths = [len(part) for part in parts]
        clips = clip_memory(sum(lengths), *parts[0].shape[1:], device=device)
        for place, part in zip(clips.split(lengths), parts, strict=True):
            self(part, place)
        return clips

    def batches(self, parts: Iterable[Tensor], size: int, device: torch.device) -> Iterator[Tensor]:
        """The clips of all parts in their order, `size` at once, as many as are left in the last batch."""
        waiting: list[Tensor] = []
        room = size
        for part in parts:
            while len(part):
                waiting.append(part[:room])
                part, room = part[room:], room - len(waiting[-1])
                if not room:
                    yield self.joined(waiting, device)
                    waiting, room = [], size
        if waiting:
            yield self.joined(waiting, device)


@cache
def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Kept, so that a batch waits for no copy of them."""
    return torch.tensor(values, device=device)


@dataclass(frozen=True)
class Erasing:
    """A box of a clip that standard normal noise fills once the clip is normalised: the same box in all frames, new noise in each.

    What travels is the `state` of the sample's generator, of numpy's PCG64, from which the noise is drawn where it is needed;
    for a GPU ahead of that, in the thread of the loader that pins its batches.
    """

    box: Box
    state: Any
    frames: int
    noise: Tensor | None = None

    def drawn(self) -> Tensor:
        """The noise, (C, T, box height, box width); always the same."""
        if self.noise is not None:
            return self.noise
        bits = np.random.PCG64()
        bits.state = self.state
        shape = 3, self.frames, *self.box[2:]
        return torch.from_numpy(np.random.Generator(bits).standard_normal(shape, dtype=np.float32))

    def fill(self, clip: Tensor) -> None:
        """Put the noise into a clip (C, T, H, W)."""
        top, left, height, width = self.box
        clip[..., top : top + height, left : left + width].copy_(self.drawn(), non_blocking=True)

    def pin_memory(self) -> "Erasing":
        """Called by DataLoader for each item of a batch."""
        return replace(self, noise=self.drawn().pin_memory())
