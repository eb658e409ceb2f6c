"""Videos whose frames are scaled as they are decoded, so that what follows works on small ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from mvit_video.data.transforms import as_pixels, resize_levels
from mvit_video.data.video.reader import FrameReader, size_changed
from mvit_video.data.video.source import VideoFiles

PART_BYTES = 1 << 26  # of decoded frames at once


@dataclass(frozen=True)
class ScaledVideos:
    """A source of videos whose frames are scaled until their shorter side has `side` pixels; smaller ones stay as they are."""

    files: VideoFiles
    side: int | None

    def open(self, path: str) -> FrameReader:
        reader = self.files.open(path)
        return reader if self.side is None else ScaledReader(reader, self.side)


class ScaledReader:
    """A reader whose frames are scaled in uint8, bilinear as training clips are, in parts of PART_BYTES."""

    def __init__(self, reader: FrameReader, side: int) -> None:
        self._reader, self._side = reader, side
        self.path, self.fps = reader.path, reader.fps
        self._size: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self._reader)

    @property
    def num_pixels(self) -> int:
        """At most."""
        return self._reader.num_pixels

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        count = max(PART_BYTES // (3 * self.num_pixels), 1)
        starts = range(0, max(len(indices), 1), count)
        return np.concatenate([self._part(indices[first : first + count]) for first in starts])

    def _part(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        frames = self._reader.frames(indices)
        self._size = self._size or frames.shape[1:3]
        if frames.shape[1:3] != self._size:
            raise size_changed(self.path, self._size, frames.shape[1:3])
        return shrunk(frames, self._side)

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> "ScaledReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def shrunk(frames: np.ndarray, side: int) -> np.ndarray:
    """uint8 (T, H, W, 3) scaled until the shorter side has `side` pixels, the longer one rounded; smaller frames as they are."""
    height, width = frames.shape[1:3]
    shorter = min(height, width)
    if shorter <= side:
        return frames
    scaled = resize_levels(as_pixels(frames), round(height * side / shorter), round(width * side / shorter))
    return np.ascontiguousarray(scaled.movedim(-4, -1).numpy())
