"""Frame folders: one image per frame, such as img_00001.jpg or 000001.png, as many datasets are distributed."""

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np

from mvit_video.data.video.limits import Unreadable, check_count, check_size, short_reason

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
FRAMES_FPS = 30.0  # assumed; segment sampling does not use it
MODES = ("RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "YCbCr")  # Pillow's names; all have 8 bits per channel


class FramesBackend:
    """See VideoReader. Frames are ordered by the last number in each name, which must increase by one from any start."""

    fps = FRAMES_FPS
    pixel_aspect = Fraction(1)
    note = ""

    def __init__(self, folder: Path, root: str | Path | None = None) -> None:
        if not folder.is_dir():
            raise Unreadable("is a file, but data.decoder=frames reads folders of images: use data.decoder=pyav")
        self._pictures = _in_order(folder)
        self.num_frames, self.num_decoded = len(self._pictures), 0

    @property
    def num_pixels(self) -> int:
        return _num_pixels(self._pictures[0])

    def times(self) -> list[Fraction]:
        return []

    def read(self, numbers: list[int]) -> Iterator[np.ndarray]:
        for number in numbers:
            self.num_decoded += 1
            yield _decode(self._pictures[number])

    def stream(self) -> Iterator[np.ndarray]:
        yield from self.read(list(range(self.num_frames)))

    def check(self) -> Iterator[None]:
        first = None
        for number, picture in enumerate(self.stream()):
            first = picture.shape if first is None else first
            if picture.shape != first:
                (height, width), (old_height, old_width) = picture.shape[:2], first[:2]
                raise Unreadable(
                    f"the frame size changes within the video, from {old_width}×{old_height} to {width}×{height} "
                    f"in {self._pictures[number].name}"
                )
            yield

    def close(self) -> None:
        self._pictures = []


def _in_order(folder: Path) -> list[Path]:
    """The images of a folder by number; Unreadable for a gap, a repeated number, or a name without one."""
    numbered: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in PICTURE_SUFFIXES or file.name.startswith("."):
            continue
        digits = re.findall(r"[0-9]+", file.stem)
        if not digits:
            raise Unreadable(f"the image {file.name} has no number in its name, expected names such as img_00001.jpg")
        number = int(digits[-1][:18])
        if number in numbered:
            raise Unreadable(f"the images {numbered[number].name} and {file.name} have the same number")
        numbered[number] = file
        check_count(len(numbered))
    if not numbered:
        raise Unreadable("the folder contains no images, expected names such as img_00001.jpg")
    order = sorted(numbered)
    for number, following in pairwise(order):
        if following != number + 1:
            raise Unreadable(
                f"image {number + 1} is missing: {numbered[following].name} follows {numbered[number].name}"
            )
    return [numbered[number] for number in order]


def _num_pixels(file: Path) -> int:
    """By the header of an image; 1 of a broken one, which decoding will refuse."""
    from PIL import Image

    try:
        with Image.open(file, formats=("JPEG", "PNG")) as picture:
            return max(math.prod(picture.size), 1)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        return 1


def _decode(file: Path) -> np.ndarray:
    """An image as uint8 (H, W, 3). The size in its header is checked before decoding."""
    from PIL import Image

    try:
        with Image.open(file, formats=("JPEG", "PNG")) as picture:
            check_size(*picture.size)
            if picture.mode not in MODES:
                raise Unreadable(f"the image {file.name} has the mode {picture.mode}, expected 8 bits a channel")
            return np.array(picture.convert("RGB"))
    except Unreadable as reason:
        raise Unreadable(f"{file.name}: {reason}" if "its frames" in str(reason) else str(reason)) from None
    except Image.DecompressionBombError:
        raise Unreadable(f"the image {file.name} has far more pixels than the limit") from None
    except (OSError, SyntaxError, ValueError, EOFError) as reason:
        raise Unreadable(f"the image {file.name} cannot be decoded ({_without_paths(reason)})") from None


def _without_paths(reason: BaseException) -> str:
    return "is not a JPEG or PNG file" if "cannot identify" in str(reason) else short_reason(reason)
