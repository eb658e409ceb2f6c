"""From decoded frames to clips. One draw holds for all frames of a clip; every draw comes from the generator given."""

# T frames, H/W pixels, C=3 channels RGB. Decoded frames are uint8 (T, H, W, C); clips are float32 (C, T, H, W), and pixels what
# becomes one of them: see `pixels`.

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mvit_video.config.schema import AugmentationSettings, InputSettings
from mvit_video.data.pixels import Box, Erasing, Normalise, clip_memory, from_zero_to_one
from mvit_video.data.randaugment import RandAugment, augment, draw_color_jitter
from mvit_video.data.transform_registry import AddedTransforms
from mvit_video.data.video.limits import MAX_PIXELS
from mvit_video.errors import DecodeError

SCALING = "uint8"  # what training clips are scaled in; states record it
CROPS = ("left or top", "centre", "right or bottom")


def as_pixels(frames: np.ndarray) -> Tensor:
    """uint8 (..., T, H, W, C) -> (..., C, T, H, W), the same bytes."""
    return torch.from_numpy(frames).movedim(-1, -4)


def to_clip(frames: np.ndarray) -> Tensor:
    """uint8 (T, H, W, C) -> float32 (C, T, H, W) from 0 to 1."""
    return from_zero_to_one(as_pixels(frames))


def resize(clip: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, without anti-aliasing, as in PySlowFast; each frame alone."""
    if clip.shape[-2:] == (height, width):
        return clip
    # C·T images of one channel: a third of the time of T images of three, whose last bits depend on torch's threads.
    planes = clip.reshape(-1, 1, *clip.shape[-2:])
    planes = F.interpolate(planes, size=(height, width), mode="bilinear", align_corners=False)
    return planes.view(*clip.shape[:2], height, width)


def resize_levels(pixels: Tensor, height: int, width: int) -> Tensor:
    """What `resize` does, on uint8 (C, T, H, W) in an eighth of the time, rounded along each side: within one grey level of it."""
    if pixels.shape[-2:] == (height, width):
        return pixels
    images = pixels.transpose(0, 1).contiguous(memory_format=torch.channels_last)
    return F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False).transpose(0, 1)


def scaled_size(height: int, width: int, short_side: int, crop: tuple[int, int]) -> tuple[int, int]:
    """Height and width after scaling: the shorter side becomes `short_side`, the longer one is rounded down.

    Where a crop (height, width) that is no square would stick out of that, the image is scaled until the crop just
    fits, so that no crop ever needs padding: 4:3 at a short side of 64 is 64×85, and for a crop of 64×112 it is 84×112.
    Raises DecodeError, without the video's name, for an image so long and thin that this takes memory without bounds.
    """
    tall = max(math.floor(height / width * short_side), short_side)
    wide = max(math.floor(width / height * short_side), short_side)
    if tall < crop[0] or wide < crop[1]:
        if width * crop[0] > height * crop[1]:
            tall, wide = crop[0], max(math.floor(width / height * crop[0]), crop[1])
        else:
            tall, wide = max(math.floor(height / width * crop[1]), crop[0]), crop[1]
    if tall * wide > MAX_PIXELS:
        raise DecodeError(
            f"its images of {width}×{height} pixels would be scaled to {wide}×{tall} for a crop of {crop[1]}×{crop[0]}, "
            f"above the limit of {MAX_PIXELS:,} pixels: cut them to a shape nearer to the crop's"
        )
    return tall, wide


def scale_for_crop(clip: Tensor, short_side: int, crop: tuple[int, int]) -> Tensor:
    """See `scaled_size`."""
    return resize(clip, *scaled_size(clip.shape[-2], clip.shape[-1], short_side, crop))


def crop_box(height: int, width: int, size: tuple[int, int], position: int) -> Box:
    """Where a crop of `size` (height, width) lies: position 0, 1 or 2 of CROPS along the side with more room around it (the
    longer one, for a square), centred on the other."""
    spare_height, spare_width = height - size[0], width - size[1]
    assert spare_height >= 0 and spare_width >= 0, f"a crop of {size} sticks out of {height}×{width} pixels"
    top, left = math.ceil(spare_height / 2), math.ceil(spare_width / 2)
    if position != 1:
        if spare_height > spare_width:
            top = 0 if position == 0 else spare_height
        else:
            left = 0 if position == 0 else spare_width
    return top, left, *size


def cut(clip: Tensor, box: Box) -> Tensor:
    """The box of each image, as a view."""
    top, left, height, width = box
    return clip[..., top : top + height, left : left + width]


def crop_at(clip: Tensor, size: tuple[int, int], position: int) -> Tensor:
    """See `crop_box`."""
    return cut(clip, crop_box(clip.shape[-2], clip.shape[-1], size, position))


def crop_positions(num_crops: int) -> list[int]:
    """Positions for `crop_at`: one crop is the centre; two are the ends; three are all."""
    return {1: [1], 2: [0, 2], 3: [0, 1, 2]}[num_crops]


def draw_crop_box(
    rng: np.random.Generator, height: int, width: int, area: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """A box whose share of the image and whose width/height (log-uniform) are drawn; after ten misfits the centre."""
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_h, box_w = round(math.sqrt(target / aspect)), round(math.sqrt(target * aspect))
        if 0 < box_h <= height and 0 < box_w <= width:
            return int(rng.integers(height - box_h + 1)), int(rng.integers(width - box_w + 1)), box_h, box_w
    box_w = max(min(width, round(height * ratio[1])), 1)
    box_h = max(min(height, round(box_w / min(max(box_w / height, ratio[0]), ratio[1]))), 1)
    return (height - box_h) // 2, (width - box_w) // 2, box_h, box_w


@dataclass(frozen=True)
class Placement:
    """Where a clip comes from: scale the image, or a box of it, to `scaled` (height, width) and cut `target` out.

    `source` is all that the target shows of the image. It lies in `scaled_box`, the part that is scaled.
    """

    source: Box
    scaled_box: Box
    scaled: tuple[int, int]
    target: Box

    @property
    def margins(self) -> tuple[int, int, int, int]:
        """What `scaled_box` has around `source`, as F.pad wants it: left, right, top, bottom."""
        (top, left, height, width), (box_top, box_left, box_height, box_width) = self.source, self.scaled_box
        top, left = top - box_top, left - box_left
        return left, box_width - width - left, top, box_height - height - top


class Crop(Protocol):
    def draw(self, rng: np.random.Generator, height: int, width: int, size: tuple[int, int]) -> Placement: ...


@dataclass(frozen=True)
class ResizedCrop:
    """A box of random area and shape, scaled to the clip's size.

    `ratio` is its width over height as shares of the clip's: a clip that is no square is stretched no more than a square.
    """

    area: tuple[float, float]
    ratio: tuple[float, float]

    def draw(self, rng: np.random.Generator, height: int, width: int, size: tuple[int, int]) -> Placement:
        shape = size[1] / size[0]
        box = draw_crop_box(rng, height, width, self.area, (self.ratio[0] * shape, self.ratio[1] * shape))
        return Placement(box, box, size, (0, 0, *size))


@dataclass(frozen=True)
class JitterCrop:
    """A short side between two lengths, its inverse uniform (or more, see `scaled_size`); then a box of the clip's size."""

    scales: tuple[int, int]

    def draw(self, rng: np.random.Generator, height: int, width: int, size: tuple[int, int]) -> Placement:
        short_side = round(1 / rng.uniform(1 / self.scales[1], 1 / self.scales[0]))
        scaled = scaled_size(height, width, short_side, size)
        top, left = (int(rng.integers(whole - part + 1)) for whole, part in zip(scaled, size, strict=True))
        target = (top, left, *size)
        return Placement(_box_read((height, width), scaled, target), (0, 0, height, width), scaled, target)


def _box_read(whole: tuple[int, int], scaled: tuple[int, int], target: Box) -> Box:
    """The part of an image of size `whole` that a box of it, scaled to size `scaled`, is interpolated from."""
    top, height = _pixels_read(whole[0], scaled[0], target[0], target[2])
    left, width = _pixels_read(whole[1], scaled[1], target[1], target[3])
    return top, left, height, width


def _pixels_read(length: int, scaled: int, start: int, count: int) -> tuple[int, int]:
    """First pixel and number of pixels that `count` scaled ones from `start` on are interpolated from, one more each side."""
    first = math.floor((start + 0.5) * length / scaled - 0.5) - 1
    last = math.floor((start + count - 0.5) * length / scaled - 0.5) + 2
    first, last = max(first, 0), min(last, length - 1)
    return first, last - first + 1


def draw_erasing_box(rng: np.random.Generator, height: int, width: int) -> Box | None:
    """A box of 2 % to a third of the image, height over width from 0.3 to 1 / 0.3, log-uniform; None after 100 misfits."""
    for _ in range(100):
        area = height * width * rng.uniform(0.02, 1 / 3)
        ratio = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        box_h, box_w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if box_h < height and box_w < width:
            return int(rng.integers(height - box_h + 1)), int(rng.integers(width - box_w + 1)), box_h, box_w
    return None


@dataclass(frozen=True)
class TrainTransform:
    """Training's frames uint8 (T, H, W, C) -> clip (C, T, *size), in PySlowFast's order.

    RandAugment and colour jitter on images of the decoded size, crop, flip, those that plugins add, normalise, erase. All
    before the plugins' works on uint8. `pixels` does what belongs to a sample alone; normalising and erasing are left.
    A part that is switched off changes no draw of the parts before it in the order: crop, flip, RandAugment, colour
    jitter, erasing.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop: Crop
    flip: bool = False
    randaugment: RandAugment | None = None
    color_jitter: float = 0.0
    erasing: float = 0.0
    added: AddedTransforms | None = None

    def __call__(self, frames: np.ndarray, rng: np.random.Generator) -> Tensor:
        pixels, erasing = self.pixels(frames, rng)
        clip = Normalise(self.mean, self.std)(pixels[None])[0]
        if erasing is not None:
            erasing.fill(clip)
        return clip

    def pixels(self, frames: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Erasing | None]:
        """The clip's pixels (C, T, *size), and what erases a box of it where one is drawn."""
        place = self.crop.draw(rng, frames.shape[1], frames.shape[2], self.size)
        mirror = rng.random() < 0.5
        steps = self.randaugment.draw(rng) if self.randaugment else []
        steps += draw_color_jitter(self.color_jitter, rng) if self.color_jitter else []
        pixels = _shown(as_pixels(augment(frames, steps, place.source)), place)
        pixels = pixels.flip(-1) if self.flip and mirror else pixels
        if self.added is not None:
            pixels = self.added(from_zero_to_one(pixels), rng)
        return pixels, self._erasing(rng, len(frames))

    def _erasing(self, rng: np.random.Generator, num_frames: int) -> Erasing | None:
        if not self.erasing or rng.random() >= self.erasing:
            return None
        box = draw_erasing_box(rng, *self.size)
        return None if box is None else Erasing(box, rng.bit_generator.state, num_frames)


def _shown(source: Tensor, place: Placement) -> Tensor:
    """What is shown of the source (C, T, H, W), scaled and cut: (C, T, *size)."""
    if any(place.margins):
        source = F.pad(source, place.margins)  # nothing that is shown comes from there
    return cut(resize_levels(source, *place.scaled), place.target)


def train_transform_from(input: InputSettings, augmentation: AugmentationSettings) -> TrainTransform:
    crop: Crop = JitterCrop(augmentation.jitter_scales)
    if augmentation.crop == "resized":
        crop = ResizedCrop(augmentation.crop_area, augmentation.crop_ratio)
    randaugment = RandAugment.parse(augmentation.randaugment) if augmentation.randaugment else None
    added = AddedTransforms(augmentation.transforms) if augmentation.transforms else None
    parts = (randaugment, augmentation.color_jitter, augmentation.erasing, added)
    return TrainTransform(input.crop_hw, input.mean, input.std, crop, augmentation.flip, *parts)


@dataclass(frozen=True)
class ViewTransform:
    """Short side, crops, normalise: frames uint8 (T, H, W, C) -> one clip per crop, (crops, C, T, *size).

    With `clips`, numbers of frames (clips, T), these clips of the frames: (clips · crops, C, T, *size), clip after clip.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    short_side: int
    num_crops: int

    def __call__(self, frames: np.ndarray, clips: np.ndarray | None = None) -> Tensor:
        return Normalise(self.mean, self.std)(self.pixels(frames, clips))

    def pixels(self, frames: np.ndarray, clips: np.ndarray | None = None, views: Tensor | None = None) -> Tensor:
        """The views before they are normalised: uint8 of frames that have the right size, float32 of those that must be scaled.

        Each frame is scaled once, alone, and what no crop shows is not converted: no more than one image is in memory
        beside the views. Of a video in parts, `views` are those of the parts before, to be continued, and `clips` counts
        from this part's first frame.
        """
        clips = np.arange(len(frames))[None] if clips is None else clips
        whole = (frames.shape[1], frames.shape[2])
        scaled = scaled_size(*whole, self.short_side, self.size)
        boxes = [crop_box(*scaled, self.size, position) for position in crop_positions(self.num_crops)]
        if views is None:
            views = self._allocate(len(clips) * len(boxes), clips.shape[1], as_bytes=scaled == whole)
        if scaled == whole:
            _cut_out(frames, clips, boxes, views)
        else:
            _scaled(frames, clips, boxes, scaled, views)
        return views

    def _allocate(self, count: int, num_frames: int, as_bytes: bool) -> Tensor:
        if as_bytes:
            return as_pixels(np.empty((count, num_frames, *self.size, 3), np.uint8))
        return clip_memory(count, 3, num_frames, *self.size)


def _cut_out(frames: np.ndarray, clips: np.ndarray, boxes: Sequence[Box], views: Tensor) -> None:
    out = views.movedim(1, -1).numpy().reshape(len(clips), len(boxes), clips.shape[1], *boxes[0][2:], 3)
    for number, frame in enumerate(frames):
        for clip, place in np.argwhere(clips == number):
            for crop, (top, left, height, width) in enumerate(boxes):
                out[clip, crop, place] = frame[top : top + height, left : left + width]


def _scaled(
    frames: np.ndarray, clips: np.ndarray, boxes: Sequence[Box], scaled: tuple[int, int], views: Tensor
) -> None:
    whole = (frames.shape[1], frames.shape[2])
    source = top, left, height, width = _box_read(whole, scaled, _box_around(boxes))
    canvas = torch.zeros(3, 1, *whole)  # outside of `source` nothing is read that is shown
    out = views.unflatten(0, (len(clips), len(boxes)))
    for number, frame in enumerate(frames):
        cut(canvas, source).copy_(to_clip(frame[None, top : top + height, left : left + width]))
        picture = resize(canvas, *scaled)
        for clip, place in np.argwhere(clips == number):
            for crop, box in enumerate(boxes):
                out[clip, crop, :, place] = cut(picture, box)[:, 0]


def _box_around(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds all of these."""
    top, left = min(box[0] for box in boxes), min(box[1] for box in boxes)
    bottom, right = max(box[0] + box[2] for box in boxes), max(box[1] + box[3] for box in boxes)
    return top, left, bottom - top, right - left
