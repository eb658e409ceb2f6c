"""Which cells of a clip are hidden in masked pre-training: cubes, tubes or whole frames (MaskFeat, arXiv 2112.09133 §3).

A mask is drawn on a coarse grid of windows (frames, rows, columns), 8×7×7 for 16 frames of 224 pixels; 1 is hidden.
The order of random calls is PySlowFast's, so that a seed of Python's `random` gives its masks.
"""

import math
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mvit_video.config.schema import PretrainSettings
from mvit_video.data.draws import generator

Mask = NDArray[np.uint8]
Window = tuple[int, int, int]
DrawMask = Callable[[Random], Mask]

ASPECT = (math.log(0.3), math.log(1 / 0.3))
TRIES = 100
TUBE_TRIES = 10
DRAWS = 100  # of a mask that hides something


def cube_mask(random: Random, window: Window, ratio: float) -> Mask:
    """Cuboids at random until round(ratio · cells) cells are hidden, or 100 tries in a row hide nothing more."""
    frames, rows, columns = window
    most = rows * columns
    wanted, least = round(frames * rows * columns * ratio), most // 5
    mask = np.zeros(window, np.uint8)
    hidden = 0
    while hidden < wanted:
        added = _add_cuboid(random, mask, wanted - hidden, (least, most))
        if not added:
            break
        hidden += added
    return mask


def _add_cuboid(random: Random, mask: Mask, wanted: int, areas: tuple[int, int]) -> int:
    """Hides one cuboid that adds at most `wanted` cells; how many it added, 0 where no try did."""
    frames, rows, columns = mask.shape
    for _ in range(TRIES):
        height, width = _rectangle(random, *areas)
        length = random.randint(1, frames)
        if height >= rows or width >= columns:
            continue
        top, left, front = (
            random.randint(0, rows - height),
            random.randint(0, columns - width),
            random.randint(0, frames - length),
        )
        box = mask[front : front + length, top : top + height, left : left + width]
        added = int(box.size - box.sum())
        if 0 < added <= wanted:
            box[:] = 1
            return added
    return 0


def _rectangle(random: Random, least: float, most: float) -> tuple[int, int]:
    area = random.uniform(least, most)
    aspect = math.exp(random.uniform(*ASPECT))
    return round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))


def tube_mask(random: Random, window: Window, ratio: float) -> Mask:
    """Rectangles that are hidden in all frames alike, until round(ratio · rows · columns) cells of a frame are."""
    frames, rows, columns = window
    wanted = round(rows * columns * ratio)
    picture, hidden = np.zeros((rows, columns), np.uint8), 0
    while hidden < wanted:
        added = _add_rectangle(random, picture, wanted // 5, wanted - hidden)
        if not added:
            break
        hidden += added
    return np.repeat(picture[None], frames, 0)


def _add_rectangle(random: Random, picture: Mask, least: int, wanted: int) -> int:
    rows, columns = picture.shape
    for _ in range(TUBE_TRIES):
        height, width = _rectangle(random, least, wanted)
        if height >= rows or width >= columns:
            continue
        top, left = random.randint(0, rows - height), random.randint(0, columns - width)
        box = picture[top : top + height, left : left + width]
        added = int(box.size - box.sum())
        if 0 < added <= wanted:
            box[:] = 1
            return added
    return 0


def frame_mask(random: Random, window: Window, ratio: float) -> Mask:
    """round(ratio · frames) whole frames."""
    mask = np.zeros(window, np.uint8)
    mask[random.sample(range(window[0]), round(ratio * window[0]))] = 1
    return mask


MASKS = {"cube": cube_mask, "tube": tube_mask, "frames": frame_mask}


def mask_from(settings: PretrainSettings, window: Window) -> DrawMask:
    """The generator of the settings, for a grid of cells."""
    return partial(_drawn, settings.mask, window, settings.mask_ratio)


def _drawn(kind: str, window: Window, ratio: float, random: Random) -> Mask:
    """A mask that hides something. The public code's generators may give up before: then another mask is drawn."""
    mask = MASKS[kind](random, window, ratio)
    for _ in range(DRAWS):
        if mask.any():
            break
        mask = MASKS[kind](random, window, ratio)
    return mask


def hidden_part(settings: PretrainSettings, window: Window) -> Literal["nothing", "some", "all"]:
    """What masks of the settings hide of a grid of cells."""
    frames, rows, columns = window
    cells = {"cube": frames * rows * columns, "tube": rows * columns, "frames": frames}[settings.mask]
    if round(cells * settings.mask_ratio) == cells:
        return "all"
    return "some" if mask_from(settings, window)(Random(0)).any() else "nothing"


def mask_random(purpose: str, *key: int | str) -> Random:
    """Python's random numbers of one mask, which follow from the purpose and its key alone."""
    return Random(int(generator(purpose, *key).integers(1 << 63)))
