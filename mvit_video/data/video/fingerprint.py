"""What a look at a few frames of a video tells: its length, size and rate, and a fingerprint that outlives re-encoding.

Runs in decoding processes, so it imports no torch.
"""

from collections.abc import Generator

import numpy as np
from PIL import Image

from mvit_video.data.video.reader import VideoReader

MOMENTS, SIDE = 8, 8  # T frames of SIDE × SIDE cells in a fingerprint


def look_at_video(path: str, root: str, backend: str) -> Generator[None, None, dict]:
    """A job that reads the middle frames of MOMENTS equal parts. Raises DecodeError for what cannot be opened or read.

    Returns num_frames, fps, width, height, note and the fingerprint's bytes as a list.
    """
    with VideoReader(path, root, backend) as reader:
        yield
        middles = ((np.arange(MOMENTS) + 0.5) * len(reader) / MOMENTS).astype(np.int64)
        frames = reader.frames(middles)
        yield
        return {
            "num_frames": len(reader),
            "fps": float(reader.fps),
            "width": frames.shape[2],
            "height": frames.shape[1],
            "note": reader.note,
            "fingerprint": fingerprint(frames).ravel().tolist(),
        }


def fingerprint(frames: np.ndarray) -> np.ndarray:
    """The mean brightness of each cell of frames, uint8 (T, H, W, 3) -> uint8 (T, SIDE, SIDE).

    The whole frame is divided, so that the size, and even a squeezed one, leaves it as it is; means of cells know little of
    what an encoder does to pixels.
    """
    cells = [Image.fromarray(frame).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX) for frame in frames]
    return np.stack([np.asarray(picture) for picture in cells])
