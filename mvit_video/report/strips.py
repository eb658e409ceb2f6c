"""Videos embedded in a page: a strip of frames, and an animation."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mvit_video.data.video.guard import open_reader
from mvit_video.data.video.reader import Reader

STRIP_FRAMES, STRIP_HEIGHT = 6, 96
MOVING_FRAMES, MOVING_HEIGHT, MOVING_FPS = 48, 160, 12.0
MAX_BYTES = 150_000  # of a moving picture
HELD_PIXELS = 20_000_000  # decoded at once, before they are made small


@dataclass(frozen=True)
class ClipStrip:
    """A strip of frames and an animation as data: URLs, with the video's name and facts (word, value)."""

    name: str
    facts: Sequence[tuple[str, str]]
    strip: str
    moving: str


def clip_strip(path: str, root: str, decoder: str, timeout: float, facts: Sequence[tuple[str, str]]) -> ClipStrip:
    """Make the strip of a video, animated at its own speed. Raises DecodeError, also on a timeout; see Guard."""
    with open_reader(path, root, decoder, timeout) as reader:
        seconds = len(reader) / reader.fps
        count = int(np.clip(round(seconds * MOVING_FPS), STRIP_FRAMES, MOVING_FRAMES))
        frames = read_small(reader, part_middles(len(reader), count), MOVING_HEIGHT)
    strip = hstack_frames([_scaled(frames[place], STRIP_HEIGHT) for place in part_middles(count, STRIP_FRAMES)])
    return ClipStrip(path, facts, _address(_webp([strip], 0, 75)), _address(moving_picture(frames, seconds)))


def part_middles(length: int, count: int) -> np.ndarray:
    """Middle frames of `count` equal parts of `length` frames: (count,) int64, rising; some repeat if count > length."""
    return ((np.arange(count) + 0.5) * length / count).astype(np.int64)


def read_small(reader: Reader, indices: np.ndarray, height: int) -> list[Image.Image]:
    """Read frames scaled to a height; only a few are in memory at full size."""
    first = reader.frames(indices[:1])
    part = max(HELD_PIXELS // (first.shape[1] * first.shape[2]), 1)
    return [
        _scaled(Image.fromarray(frame), height)
        for start in range(0, len(indices), part)
        for frame in reader.frames(indices[start : start + part])
    ]


def moving_picture(frames: Sequence[Image.Image], seconds: float, max_bytes: int = MAX_BYTES) -> bytes:
    """Encode an endless animated WebP of `seconds`; with lower quality, then fewer frames, until it is small enough."""
    while True:
        for quality in (60, 40, 20, 5):
            content = _webp(frames, round(1000 * seconds / len(frames)), quality)
            if len(content) <= max_bytes or (len(frames) == 1 and quality == 5):
                return content
        frames = frames[::2]


def hstack_frames(frames: Sequence[Image.Image], gap: int = 2) -> Image.Image:
    """Pictures of one size in a row."""
    width, height = frames[0].size
    row = Image.new("RGB", (len(frames) * (width + gap) - gap, height), "white")
    for place, frame in enumerate(frames):
        row.paste(frame, (place * (width + gap), 0))
    return row


def _scaled(picture: Image.Image, height: int) -> Image.Image:
    width = max(round(picture.width * height / picture.height), 1)
    return picture.resize((min(width, 4 * height), height), Image.Resampling.BILINEAR)


def _webp(frames: Sequence[Image.Image], milliseconds: int, quality: int) -> bytes:
    content = io.BytesIO()
    moving = {"save_all": True, "append_images": frames[1:], "duration": milliseconds, "loop": 0}
    frames[0].save(content, "webp", quality=quality, method=3, **(moving if len(frames) > 1 else {}))
    return content.getvalue()


def _address(content: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(content).decode('ascii')}"
