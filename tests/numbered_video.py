"""Videos whose frames carry their number as a row of black and white squares, so that decoded frames can be told."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS, SQUARE, HEIGHT = 9, 16, 48


def numbered_frame(number: int) -> np.ndarray:
    """uint8 (48, 144, 3): the number in bits in the middle third, a moving bar above and below."""
    frame = np.full((HEIGHT, BITS * SQUARE, 3), 60, np.uint8)
    frame[:, number * 7 % (BITS * SQUARE) :][:, :8] = (200, 80, 40)
    for bit in range(BITS):
        value = 255 if number >> bit & 1 else 0
        frame[SQUARE : 2 * SQUARE, bit * SQUARE : (bit + 1) * SQUARE] = value
    return frame


def read_number(frame: np.ndarray) -> int:
    squares = frame[SQUARE : 2 * SQUARE].reshape(SQUARE, BITS, SQUARE, 3)[4:12, :, 4:12].mean((0, 2, 3))
    return int(sum(1 << bit for bit in range(BITS) if squares[bit] > 128))


def write_numbered(
    path: Path,
    count: int,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    gaps: bool = False,
    sample_aspect: Fraction | None = None,
) -> Path:
    """`count` frames at 25 fps; with `gaps` every third frame is held twice as long (variable frame rate)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, BITS * SQUARE, "yuv420p"
        stream.options = options or {}
        stream.time_base = Fraction(1, 100)
        if sample_aspect:
            stream.codec_context.sample_aspect_ratio = sample_aspect
        time = 0
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 100)
            time += 8 if gaps and number % 3 == 0 else 4
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
