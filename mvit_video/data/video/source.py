"""Where videos are opened: by the names that lists have for them, as files under a root or as whatever else a program has."""

from dataclasses import dataclass
from typing import Protocol

from mvit_video.config.schema import DecodingSettings
from mvit_video.data.video.guard import TIMEOUT, open_reader
from mvit_video.data.video.reader import Reader


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
