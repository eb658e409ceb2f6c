"""RandAugment on clips: fifteen operations on images, a few drawn for each clip, the same for all of its frames.

The recipe is timm's, as PySlowFast uses it for video (slowfast/datasets/rand_augment.py with configs/Kinetics/MVITv2_S_16x4.yaml):
operations on uint8 images of the decoded size, before the crop; each one applied with probability one half; bicubic
interpolation; grey (128) where an image is moved away. Pillow does the pixels, or `shifts` as
Pillow would, so they are timm's.

What is new is the order of work. A training crop shows half of the image on average, so each operation is done only
where the ones after it, and in the end the crop, look: the crop itself for an operation on single pixels, a margin more
for one that looks at neighbours, the mapped outline for one that moves pixels, everything for one that counts them. The result
is the crop of timm's result: to the last bit, but for moves by round numbers (a tenth of a pixel, say), where Pillow's
truncation of values that should be whole can take one level off some pixels.
"""

# T frames, H/W pixels, C=3 channels RGB; frames are uint8 (T, H, W, C)

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mvit_video.data.pixels import Box
from mvit_video.data.shifts import Matrix, Shift, moves_along_one_axis
from mvit_video.errors import ConfigError

GREY = 128
PROBABILITY = 0.5
MAX_MAGNITUDE = 10.0
SPECIFICATION = re.compile(r"rand-m(\d+)-n(\d+)-mstd(\d+(?:\.\d+)?)-inc1")


class Step(NamedTuple):
    """One operation with its argument: degrees, shear, share of the side, factor, bits or threshold."""

    name: str
    argument: float = 0.0


@dataclass(frozen=True)
class Operation:
    """One kind of step.

    Args:
        looks_at: what decides a pixel of the result: the same "pixel", its "neighbours", or the whole "image".
        argument: from a level of 0 to 1 and a sign of −1 or 1.
        pixels: (image, argument) -> image.
    """

    looks_at: Literal["pixel", "neighbours", "image"]
    argument: Callable[[float, int], float]
    pixels: Callable[[Image.Image, float], Image.Image]


@dataclass(frozen=True)
class Move:
    """A step that moves pixels: its `matrix` from argument, width and height; `argument` as in Operation."""

    argument: Callable[[float, int], float]
    matrix: Callable[[float, int, int], Matrix]


def _nothing(level: float, sign: int) -> float:
    return 0.0


def _factor(level: float, sign: int) -> float:
    """1 changes nothing; from there towards 0.1 or 1.9."""
    return max(0.1, 1.0 + sign * 0.9 * level)


def _enhanced(kind: type) -> Callable[[Image.Image, float], Image.Image]:
    return lambda picture, factor: kind(picture).enhance(factor)


def _posterize(picture: Image.Image, bits: float) -> Image.Image:
    """Keep the highest `bits` of 8; none leave black, which Pillow's own function refuses."""
    return picture.point([value >> 8 - int(bits) << 8 - int(bits) for value in range(256)] * 3)


def _solarize_add(picture: Image.Image, add: float) -> Image.Image:
    return picture.point([min(255, value + int(add)) if value < 128 else value for value in range(256)] * 3)


def _rotation(degrees: float, width: int, height: int) -> Matrix:
    """Counter-clockwise about the centre, with Pillow's rounding."""
    angle = -math.radians(degrees % 360.0)
    a, b = round(math.cos(angle), 15), round(math.sin(angle), 15)
    d, e = round(-math.sin(angle), 15), round(math.cos(angle), 15)
    x, y = width / 2, height / 2
    return a, b, a * -x + b * -y + x, d, e, d * -x + e * -y + y


OPERATIONS: dict[str, Operation | Move] = {
    "auto_contrast": Operation("image", _nothing, lambda picture, _: ImageOps.autocontrast(picture)),
    "equalize": Operation("image", _nothing, lambda picture, _: ImageOps.equalize(picture)),
    "invert": Operation("pixel", _nothing, lambda picture, _: ImageOps.invert(picture)),
    "rotate": Move(lambda level, sign: sign * 30.0 * level, _rotation),
    "posterize": Operation("pixel", lambda level, _: 4 - int(level * 4), _posterize),
    "solarize": Operation(
        "pixel", lambda level, _: 256 - int(level * 256), lambda picture, above: ImageOps.solarize(picture, int(above))
    ),
    "solarize_add": Operation("pixel", lambda level, _: int(level * 110), _solarize_add),
    "color": Operation("pixel", _factor, _enhanced(ImageEnhance.Color)),
    "contrast": Operation("image", _factor, _enhanced(ImageEnhance.Contrast)),
    "brightness": Operation("pixel", _factor, _enhanced(ImageEnhance.Brightness)),
    "sharpness": Operation("neighbours", _factor, _enhanced(ImageEnhance.Sharpness)),
    "shear_x": Move(lambda level, sign: sign * 0.3 * level, lambda shear, *_: (1, shear, 0, 0, 1, 0)),
    "shear_y": Move(lambda level, sign: sign * 0.3 * level, lambda shear, *_: (1, 0, 0, shear, 1, 0)),
    "translate_x": Move(
        lambda level, sign: sign * 0.45 * level, lambda share, width, _: (1, 0, share * width, 0, 1, 0)
    ),
    "translate_y": Move(
        lambda level, sign: sign * 0.45 * level, lambda share, _, height: (1, 0, 0, 0, 1, share * height)
    ),
}


@dataclass(frozen=True)
class RandAugment:
    """`num_steps` operations per clip, drawn with replacement; levels are normal about `magnitude`, in tenths."""

    magnitude: int
    num_steps: int
    magnitude_std: float

    @classmethod
    def parse(cls, text: str) -> "RandAugment":
        """`rand-m7-n4-mstd0.5-inc1` -> magnitude 7, 4 steps, spread 0.5. Raises ConfigError for anything else."""
        found = SPECIFICATION.fullmatch(text)
        if found is None:
            raise ConfigError(
                f"data.randaugment '{text}' is not rand-mM-nN-mstdS-inc1: write rand-m7-n4-mstd0.5-inc1, for example"
            )
        return cls(int(found[1]), int(found[2]), float(found[3]))

    def draw(self, rng: np.random.Generator) -> list[Step]:
        """The steps for one clip; each of the operations drawn is left out half of the time."""
        steps = []
        for name in rng.choice(list(OPERATIONS), self.num_steps):
            applied, positive = rng.random(2) < PROBABILITY
            magnitude = min(max(rng.normal(self.magnitude, self.magnitude_std), 0.0), MAX_MAGNITUDE)
            if applied:
                argument = OPERATIONS[name].argument(magnitude / MAX_MAGNITUDE, 1 if positive else -1)
                steps.append(Step(str(name), argument))
        return steps


def draw_color_jitter(strength: float, rng: np.random.Generator) -> list[Step]:
    """Brightness, contrast and saturation in random order, each by a factor of 1 − strength to 1 + strength."""
    names = rng.permutation(["brightness", "contrast", "color"])
    return [Step(str(name), rng.uniform(1 - strength, 1 + strength)) for name in names]


def augment(frames: np.ndarray, steps: Sequence[Step], box: Box) -> np.ndarray:
    """What `box` shows after the steps on all frames: uint8 (T, H, W, C) -> (T, box height, box width, C)."""
    height, width = frames.shape[1:3]
    regions = [box]  # what must be known before each step, from the last one back to the first
    for step in reversed(steps):
        regions.insert(0, _needed(step, regions[0], height, width))
    top, left, rows, columns = regions[0]
    frames = frames[:, top : top + rows, left : left + columns]
    if not steps:
        return frames
    out = np.empty((len(frames), box[2], box[3], 3), np.uint8)
    applied = [
        _applied(step, source, target, (width, height))
        for step, source, target in zip(steps, regions, regions[1:], strict=False)
    ]
    for place, frame in enumerate(frames):
        picture = Image.fromarray(frame)
        for apply in applied:
            picture = apply(picture)
        out[place] = np.asarray(picture)
    return out


def _needed(step: Step, box: Box, height: int, width: int) -> Box:
    """The part of the image that decides what `box` shows after the step."""
    operation = OPERATIONS[step.name]
    if isinstance(operation, Move):
        return _outline(operation.matrix(step.argument, width, height), box, height, width)
    if operation.looks_at == "pixel":
        return box
    if operation.looks_at == "image":
        return 0, 0, height, width
    top, left, rows, columns = box
    return _inside(top - 1, left - 1, top + rows + 1, left + columns + 1, height, width)


def _outline(matrix: Matrix, box: Box, height: int, width: int) -> Box:
    """Around the places that the corners of `box` are taken from, with a margin for the interpolation."""
    if box == (0, 0, height, width):
        return box
    a, b, c, d, e, f = matrix
    top, left, rows, columns = box
    corners = [(x, y) for x in (left, left + columns) for y in (top, top + rows)]
    xs, ys = [a * x + b * y + c for x, y in corners], [d * x + e * y + f for x, y in corners]
    margin = 3
    return _inside(
        math.floor(min(ys)) - margin,
        math.floor(min(xs)) - margin,
        math.ceil(max(ys)) + margin,
        math.ceil(max(xs)) + margin,
        height,
        width,
    )


def _inside(top: int, left: int, bottom: int, right: int, height: int, width: int) -> Box:
    """The part within the image; a pixel of its edge where there is none."""
    top, left = min(max(top, 0), height - 1), min(max(left, 0), width - 1)
    return top, left, max(min(bottom, height) - top, 1), max(min(right, width) - left, 1)


def _applied(step: Step, source: Box, target: Box, whole: tuple[int, int]) -> Callable[[Image.Image], Image.Image]:
    """The part `target` of the result, from the part `source` of an image whose full size is `whole`."""
    operation = OPERATIONS[step.name]
    down, right = target[0] - source[0], target[1] - source[1]
    if isinstance(operation, Move):
        a, b, c, d, e, f = operation.matrix(step.argument, *whole)
        c += a * target[1] + b * target[0] - source[1]
        f += d * target[1] + e * target[0] - source[0]
        return _moved((a, b, c, d, e, f), source[2:], target[2:])

    def changed(picture: Image.Image) -> Image.Image:
        picture = operation.pixels(picture, step.argument)
        return picture if source == target else picture.crop((right, down, right + target[3], down + target[2]))

    return changed


def _moved(matrix: Matrix, source: tuple[int, int], target: tuple[int, int]) -> Callable[[Image.Image], Image.Image]:
    """Images of the size `source` (height, width), moved: of the size `target`."""
    if moves_along_one_axis(matrix):
        shift = Shift(matrix, source, target, GREY)
        return lambda picture: Image.fromarray(shift(np.asarray(picture)))
    affine, bicubic = Image.Transform.AFFINE, Image.Resampling.BICUBIC
    return lambda picture: picture.transform(
        target[::-1], affine, matrix, resample=bicubic, fillcolor=(GREY, GREY, GREY)
    )
