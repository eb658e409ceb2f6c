"""Where videos are opened: by the names that lists have for them, as files under a root or as whatever else a program has."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Protocol

import numpy as np

from mvit_video.config.schema import DecodingSettings
from mvit_video.data.video.guard import TIMEOUT, open_reader


class Reader(Protocol):
    """The frames of one open video: `VideoReader`, `GuardedReader`, or an object of a program's own.

    Methods raise DecodeError with the video and the reason.
    """

    @property
    def fps(self) -> float:
        """The mean rate in frames per second."""
        ...

    def __len__(self) -> int:
        """The number of frames."""
        ...

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Frames by number, in any order, repeats allowed: uint8 (T, H, W, 3), RGB."""
        ...

    def stream(self) -> Iterator[np.ndarray]:
        """Every frame in order, uint8 (H, W, 3)."""
        ...

    def times(self) -> list[Fraction]:
        """When each frame is shown, in seconds."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> "Reader": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class VideoSource(Protocol):
    """What a dataset asks for its videos."""

    def open(self, path: str) -> Reader:
        """The video that a list calls `path`. Raises DecodeError where it cannot be opened."""
        ...


@dataclass(frozen=True)
class VideoFiles:
    """Videos and frame folders under a root, each decoded in a process of its own that may hang or crash.

    Args:
        decoder: pyav, decord or frames: see VideoReader.
        timeout: seconds for a call; with 0 the calling process decodes, unguarded.
    """

    root: str = "."
    decoder: str = "pyav"
    timeout: float = TIMEOUT

    def open(self, path: str) -> Reader:
        return open_reader(path, self.root, self.decoder, self.timeout)


def video_files_from(root: str, settings: DecodingSettings) -> VideoFiles:
    return VideoFiles(root, settings.decoder, settings.decode_timeout)
