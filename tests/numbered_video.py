"""Videos whose frames carry their number as a row of black and white squares, so that decoded frames can be told."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS, SQUARE, HEIGHT = 9, 16, 48


def numbered_frame(number: int, padding: int = 0) -> np.ndarray:
    """uint8 (48, 144, 3): the number in bits in the middle third, a moving bar above and below.

    `padding` adds grey rows below and columns to the right.
    """
    frame = np.full((HEIGHT + padding, BITS * SQUARE + padding, 3), 60, np.uint8)
    frame[:, number * 7 % (BITS * SQUARE) :][:, :8] = (200, 80, 40)
    for bit in range(BITS):
        value = 255 if number >> bit & 1 else 0
        frame[SQUARE : 2 * SQUARE, bit * SQUARE : (bit + 1) * SQUARE] = value
    return frame


def read_number(frame: np.ndarray) -> int:
    frame = frame[:HEIGHT, : BITS * SQUARE]
    squares = frame[SQUARE : 2 * SQUARE].reshape(SQUARE, BITS, SQUARE, 3)[4:12, :, 4:12].mean((0, 2, 3))
    return int(sum(1 << bit for bit in range(BITS) if squares[bit] > 128))


def write_numbered(
    path,
    count: int,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    gaps: bool = False,
    padding: int = 0,
    pixels: str = "yuv420p",
    container: dict[str, str] | None = None,
    form: str | None = None,
    sample_aspect: Fraction | None = None,
):
    """`count` frames at 25 fps; with `gaps` every third frame is held twice as long (variable frame rate).

    `path` may be a file object. `container` are options of the container, `form` is its name where the path has none.
    """
    with av.open(path if hasattr(path, "write") else str(path), "w", format=form, options=container or {}) as output:
        stream = output.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT + padding, BITS * SQUARE + padding, pixels
        stream.options = options or {}
        stream.time_base = Fraction(1, 100)
        if sample_aspect:
            stream.codec_context.sample_aspect_ratio = sample_aspect
        time = 0
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, padding), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 100)
            time += 8 if gaps and number % 3 == 0 else 4
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def remux(
    source: Path, target: Path, change: Callable[[av.Packet], None], options: dict[str, str] | None = None
) -> Path:
    """The packets of a file in another, each changed by a function first."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options or {}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                change(packet)
                packet.stream = stream
                new.mux(packet)
    return target
