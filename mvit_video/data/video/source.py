"""Where a dataset opens its videos by the paths in its lists: as files under a root, or from a program's own source."""

from dataclasses import dataclass
from typing import Protocol

from mvit_video.config.schema import DecodingSettings
from mvit_video.data.video.guard import TIMEOUT, open_reader
from mvit_video.data.video.reader import FrameReader, Reader


class VideoSource(Protocol):
    """Where a dataset opens its videos."""

    def open(self, path: str) -> FrameReader:
        """Open the video that a list calls `path`. Raises DecodeError if it cannot be opened."""
        ...


@dataclass(frozen=True)
class VideoFiles:
    """Videos and frame folders under a root, each decoded in a guarded process.

    Args:
        decoder: pyav, decord or frames: see VideoReader.
        timeout: seconds per call; 0 decodes in the calling process, unguarded.
    """

    root: str = "."
    decoder: str = "pyav"
    timeout: float = TIMEOUT

    def open(self, path: str) -> Reader:
        return open_reader(path, self.root, self.decoder, self.timeout)


def video_files_from(root: str, settings: DecodingSettings) -> VideoFiles:
    return VideoFiles(root, settings.decoder, settings.decode_timeout)
