"""decord, for comparisons. It is exact when it decodes from the start, and wrong in many files after a seek.

It numbers the frames after a key frame as if no frame shown earlier followed it in the file, and loses the last frames
after a seek to a key frame that is not a full refresh (IDR). In AVI and transport streams it is off. Of several video
streams it takes the largest, and it fails on rotated video. PyAV's scan detects such files, which are refused.
"""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from mvit_video.data.video.limits import Unreadable, short_reason
from mvit_video.data.video.pyav import PyAvBackend

CODECS = ("h264", "mpeg4", "vp8", "vp9")
CONTAINERS = ("mov", "matroska")
PIXELS = ("yuv420p", "yuvj420p", "yuv444p")
BATCH = 32


class DecordBackend:
    """See VideoReader. decord's retries at the end of a file silently repeat frames, so they are disabled."""

    def __init__(self, file: Path, root: str | Path | None = None) -> None:
        try:
            import decord
        except ImportError as reason:
            raise Unreadable(f"decord is not installed ({reason}): use data.decoder=pyav") from None
        if file.is_dir():
            raise Unreadable("is a folder, but decord reads files: use data.decoder=frames")
        by_pyav = PyAvBackend(file)
        try:
            _check_fit(by_pyav)
            self._reader = decord.VideoReader(str(file), num_threads=1, fault_tol=0)
            self.num_frames, self.fps, self.num_decoded = by_pyav.num_frames, by_pyav.fps, 0
            self.num_pixels = by_pyav.num_pixels
            self.pixel_aspect, self._times, self.note = by_pyav.pixel_aspect, by_pyav.times(), by_pyav.note
            if len(self._reader) != self.num_frames:
                raise _unfit(f"decord counts {len(self._reader)} frames in it, PyAV {self.num_frames}")
        except Unreadable:
            raise
        except Exception as reason:  # decord's own error type is private and derives from Exception
            raise Unreadable(f"cannot be opened by decord ({short_reason(reason)})") from None
        finally:
            by_pyav.close()

    def times(self) -> list[Fraction]:
        return self._times

    def read(self, numbers: list[int]) -> Iterator[np.ndarray]:
        for start in range(0, len(numbers), BATCH):
            yield from self._batch(numbers[start : start + BATCH])

    def stream(self) -> Iterator[np.ndarray]:
        yield from self.read(list(range(self.num_frames)))

    def check(self) -> Iterator[None]:
        for _ in self.stream():
            yield

    def close(self) -> None:
        del self._reader

    def _batch(self, numbers: list[int]) -> np.ndarray:
        self.num_decoded += len(numbers)
        try:
            return self._reader.get_batch(numbers).asnumpy()
        except Exception as reason:
            raise Unreadable(f"cannot be decoded by decord ({short_reason(reason)})") from None


def _check_fit(video: PyAvBackend) -> None:
    """Raise Unreadable if decord is known to return other frames than PyAV."""
    container, codec = video.container_name, video.codec_name
    if container not in CONTAINERS:
        raise _unfit(f"it is in the container {container}, decord is only reliable for {', '.join(CONTAINERS)}")
    if codec not in CODECS:
        raise _unfit(f"its codec is {codec}, decord is only reliable for {', '.join(CODECS)}")
    if video.pixel_format not in PIXELS:
        raise _unfit(f"its pixels are {video.pixel_format}, decord converts only {', '.join(PIXELS)} as PyAV does")
    if video.num_video_streams > 1:
        raise _unfit(f"it has {video.num_video_streams} video streams, and decord picks another one")
    if not video.packets.timed or video.packets.hidden:
        raise _unfit("it has frames without times or hidden frames")
    if not video.packets.closed or (codec == "h264" and not all(map(_is_idr, video.key_packets()))):
        raise _unfit("it has open groups of pictures, in which decord seeks wrongly")
    if video.is_rotated():
        raise _unfit("its frames are rotated, which decord does not support")


def _is_idr(packet) -> bool:
    """Whether an H.264 key frame is a full refresh: contains a unit of type 5, in either framing."""
    content, at = bytes(packet), 0
    if content[:3] == b"\0\0\1" or content[:4] == b"\0\0\0\1":
        return any(unit[:1] and unit[0] & 31 == 5 for unit in content.split(b"\0\0\1")[1:])
    while at + 4 < len(content):
        if content[at + 4] & 31 == 5:
            return True
        at += 4 + int.from_bytes(content[at : at + 4], "big")
    return False


def _unfit(reason: str) -> Unreadable:
    return Unreadable(f"{reason}: use data.decoder=pyav")
