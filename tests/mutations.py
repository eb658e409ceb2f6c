"""Six kinds of damage to a file, seeded, and what a decoder that stops at every error makes of it."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition


def flip(content: bytearray, rng: np.random.Generator) -> None:
    """A bit."""
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))


def overwrite(content: bytearray, rng: np.random.Generator) -> None:
    """Up to 64 bytes, by others."""
    at, count = _place(content, rng)
    content[at : at + count] = rng.bytes(count)


def blank(content: bytearray, rng: np.random.Generator) -> None:
    """Up to 64 bytes, by zeros."""
    at, count = _place(content, rng)
    content[at : at + count] = bytes(count)


def lose(content: bytearray, rng: np.random.Generator) -> None:
    """Up to 64 bytes, and what follows moves up."""
    at, count = _place(content, rng)
    del content[at : at + count]


def repeat(content: bytearray, rng: np.random.Generator) -> None:
    """Up to 64 bytes, once more behind themselves."""
    at, count = _place(content, rng)
    content[at:at] = content[at : at + count]


def cut(content: bytearray, rng: np.random.Generator) -> None:
    """Up to a third of the end."""
    del content[int(len(content) * rng.uniform(0.67, 1)) :]


KINDS: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (flip, overwrite, blank, lose, repeat, cut)


def mutated(content: bytes, kind: Callable, seed: int) -> bytes:
    changed = bytearray(content)
    kind(changed, np.random.default_rng(seed))
    return bytes(changed)


def _place(content: bytearray, rng: np.random.Generator) -> tuple[int, int]:
    return int(rng.integers(len(content) - 64)), int(rng.integers(1, 65))


def accepted(path: Path) -> tuple[list[np.ndarray], bool]:
    """The frames that FFmpeg gives when it is told to stop at errors (err_detect=explode), and whether it did not stop."""
    frames: list[np.ndarray] = []
    try:
        with av.open(str(path), options={"err_detect": "explode"}) as container:
            streams = [each for each in container.streams.video if not each.disposition & Disposition.attached_pic]
            stream = next((each for each in streams if each.disposition & Disposition.default), streams[0])
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"err_detect": "explode"}
            for frame in container.decode(stream):
                frames.append(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))
    except (av.FFmpegError, IndexError, ValueError, AttributeError, MemoryError):
        return frames, False
    return frames, True
