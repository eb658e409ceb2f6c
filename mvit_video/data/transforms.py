"""From decoded frames to clips. One draw holds for all frames of a clip; every draw comes from the generator given."""

# T frames, H/W pixels, C=3 channels RGB. Decoded frames are uint8 (T, H, W, C); clips are float32 (C, T, H, W).

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Box = tuple[int, int, int, int]  # top, left, height, width
CROPS = ("left or top", "centre", "right or bottom")


def to_clip(frames: np.ndarray) -> Tensor:
    """uint8 (T, H, W, C) -> float32 (C, T, H, W) from 0 to 1."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2).to(torch.float32) / 255


def normalize(clip: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(clip − mean) / std per channel."""
    shape = (-1, 1, 1, 1)
    return (clip - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def resize(clip: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, without anti-aliasing, as in PySlowFast; each frame alone."""
    if clip.shape[-2:] == (height, width):
        return clip
    frames = F.interpolate(clip.transpose(0, 1), size=(height, width), mode="bilinear", align_corners=False)
    return frames.transpose(0, 1)


def scale_short_side(clip: Tensor, size: int) -> Tensor:
    """The shorter side becomes `size`, the longer one is rounded down."""
    return resize(clip, *short_side_size(clip.shape[-2], clip.shape[-1], size))


def short_side_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width with the shorter side at `size`, the longer one rounded down."""
    if width < height:
        return math.floor(height / width * size), size
    return size, math.floor(width / height * size)


def resized_and_normalized(
    frames: np.ndarray, size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]
) -> Iterator[Tensor]:
    """Each frame of uint8 (T, H, W, C) as `to_clip`, `resize` and `normalize` make it, up to rounding: (C, *size).

    One frame at a time, in the memory order it is decoded in, stays in the processor's cache: two to nine times as
    fast as the same on a whole clip. The scale from 255 to 1 and the normalising are one multiplication.
    """
    deviation = torch.tensor(std).view(1, -1, 1, 1)
    factor, offset = 1 / (255 * deviation), -torch.tensor(mean).view(1, -1, 1, 1) / deviation
    for frame in frames:
        picture = torch.from_numpy(frame).permute(2, 0, 1)[None]
        picture = picture.to(torch.float32, memory_format=torch.channels_last)
        if picture.shape[-2:] != size:
            picture = F.interpolate(picture, size=size, mode="bilinear", align_corners=False)
        yield torch.addcmul(offset, picture, factor)[0]


def crop_at(clip: Tensor, size: tuple[int, int], position: int) -> Tensor:
    """A crop of `size` (height, width) at position 0, 1 or 2 of CROPS along the longer side, centred on the other."""
    height, width = clip.shape[-2:]
    top, left = math.ceil((height - size[0]) / 2), math.ceil((width - size[1]) / 2)
    if position != 1:
        if height > width:
            top = 0 if position == 0 else height - size[0]
        else:
            left = 0 if position == 0 else width - size[1]
    return clip[..., top : top + size[0], left : left + size[1]]


def crop_positions(num_crops: int) -> list[int]:
    """Positions for `crop_at`: one crop is the centre; two are the ends; three are all."""
    return {1: [1], 2: [0, 2], 3: [0, 1, 2]}[num_crops]


def draw_crop_box(
    rng: np.random.Generator, height: int, width: int, area: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """A box whose share of the picture and whose width/height (log-uniform) are drawn; after ten misfits the centre."""
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_h, box_w = round(math.sqrt(target / aspect)), round(math.sqrt(target * aspect))
        if 0 < box_h <= height and 0 < box_w <= width:
            return int(rng.integers(height - box_h + 1)), int(rng.integers(width - box_w + 1)), box_h, box_w
    box_w = min(width, round(height * ratio[1]))
    box_h = min(height, round(box_w / min(max(box_w / height, ratio[0]), ratio[1])))
    return (height - box_h) // 2, (width - box_w) // 2, box_h, box_w


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop, flip where it is allowed, normalise: frames uint8 (T, H, W, C) -> clip (C, T, *size)."""

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_area: tuple[float, float]
    crop_ratio: tuple[float, float]
    flip: bool

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> Tensor:
        top, left, height, width = draw_crop_box(rng, frames.shape[1], frames.shape[2], self.crop_area, self.crop_ratio)
        mirror = rng.random() < 0.5
        clip = torch.empty(frames.shape[-1], len(frames), *self.size)
        crop = frames[:, top : top + height, left : left + width]
        for place, picture in enumerate(resized_and_normalized(crop, self.size, self.mean, self.std)):
            clip[:, place] = picture.flip(-1) if self.flip and mirror else picture
        return clip


@dataclass(frozen=True)
class ViewTransform:
    """Short side, crops, normalise: frames uint8 (T, H, W, C) -> one clip per crop, (crops, C, T, *size).

    With `clips`, numbers of frames (clips, T), these clips of the frames, each frame scaled once:
    (clips · crops, C, T, *size), clip after clip.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    short_side: int
    num_crops: int

    def __call__(self, frames: np.ndarray, clips: np.ndarray | None = None) -> Tensor:
        clips = np.arange(len(frames))[None] if clips is None else clips
        views = torch.empty(len(clips), self.num_crops, frames.shape[-1], clips.shape[1], *self.size)
        size = short_side_size(frames.shape[1], frames.shape[2], self.short_side)
        for number, picture in enumerate(resized_and_normalized(frames, size, self.mean, self.std)):
            for crop, position in enumerate(crop_positions(self.num_crops)):
                pixels = crop_at(picture, self.size, position)
                for clip, place in np.argwhere(clips == number):
                    views[clip, crop, :, place] = pixels
        return views.flatten(0, 1)
