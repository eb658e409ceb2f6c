"""Frames out of video files, behind one reader. A file gives the frames that were asked for, or a DecodeError.

PyAV is the default. It is opened for local files of known containers only, with one thread (loaders have a process per
core), and what it hands out is checked: FFmpeg returns damaged frames without an error.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from mvit_video.errors import DecodeError

CONTAINERS = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,hevc,flv,ogg,3gp"
MAX_PIXELS = 36_000_000  # a frame of 8K video has 33 million


class VideoReader:
    """The frames of one video.

    Args:
        path: a local file. With `root`, relative to it, and refused where it leads out of it (by `..` or a link).
        backend: "pyav" or "decord". decord carries an old FFmpeg: for files of your own only.

    `len(reader)` is the number of frames, `reader.fps` the mean rate in frames per second.
    Raises DecodeError with the file and the reason, here or in `frames`.
    """

    def __init__(self, path: str | Path, root: str | Path | None = None, backend: str = "pyav") -> None:
        self.path = str(path)
        try:
            file = _existing_file(self.path, root)
            self._backend = BACKENDS[backend](file)
        except _Unreadable as reason:
            raise DecodeError(f"{self.path}: {reason}") from None
        self.fps: float = self._backend.fps

    def __len__(self) -> int:
        return self._backend.num_frames

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self._backend.close()

    def times(self) -> list[Fraction]:
        """When each frame is shown, in seconds; evenly spaced where the file does not say."""
        return self._backend.times() or [number / Fraction(self.fps) for number in range(len(self))]

    @property
    def pixel_aspect(self) -> Fraction:
        """Width over height of a pixel, as the picture is handed out; 1 where the file does not say."""
        return self._backend.pixel_aspect

    def frames(self, indices) -> np.ndarray:
        """Frames by number, in any order, repeats allowed: uint8 (T, H, W, 3), RGB."""
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size == 0 or wanted.min() < 0 or wanted.max() >= len(self):
            raise DecodeError(f"{self.path}: frames {wanted.tolist()} are wanted, it has 0 to {len(self) - 1}")
        distinct, places = np.unique(wanted, return_inverse=True)
        try:
            frames = self._backend.read(distinct)
            return frames if np.array_equal(distinct, wanted) else frames[places]
        except _Unreadable as reason:
            raise DecodeError(f"{self.path}: {reason}") from None

    def stream(self) -> Iterator[np.ndarray]:
        """Every frame in order, one at a time, uint8 (H, W, 3): memory does not grow with the video."""
        try:
            for index in range(len(self)):
                yield self._backend.read_next(index)
        except _Unreadable as reason:
            raise DecodeError(f"{self.path}: {reason}") from None


class _Unreadable(Exception):
    """A reason without the file's name, which the reader puts in front."""


def _existing_file(path: str, root: str | Path | None) -> Path:
    file = Path(path) if root is None else Path(root) / path
    if root is not None:
        inside = Path(root).resolve()
        if Path(path).is_absolute() or not file.resolve().is_relative_to(inside):
            raise _Unreadable(f"leads out of the data root '{root}': paths in lists are relative to it")
    if not file.exists():
        raise _Unreadable("no such file")
    if not file.is_file():
        raise _Unreadable("is not a file")
    if file.stat().st_size == 0:
        raise _Unreadable("the file is empty (0 bytes)")
    return file


class _Backend(Protocol):
    """What the reader needs: frames by rising, distinct numbers, or one after the other."""

    num_frames: int
    fps: float
    pixel_aspect: Fraction

    def times(self) -> list[Fraction]: ...

    def read(self, wanted: np.ndarray) -> np.ndarray: ...

    def read_next(self, number: int) -> np.ndarray: ...

    def close(self) -> None: ...


class _PyAvBackend:
    """Numbers the frames by a scan over the packets (no decoding), seeks to key frames, converts only what is wanted."""

    num_frames: int
    fps: float
    _at: int  # the number of the frame that was decoded last
    _needed: set[int] | None  # times of frames that must be decoded even if no other refers to them; None: all

    def __init__(self, file: Path) -> None:
        whitelist = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
        try:
            self._container = av.open(str(file), options=whitelist)
        except (av.FFmpegError, ValueError) as reason:
            raise _Unreadable(f"cannot be opened as a video ({_short(reason)})") from None
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        if not self._container.streams.video:
            raise _Unreadable("no video stream")
        self._stream = self._container.streams.video[0]
        # One converter per video, without threads of its own: a loader's fork would leave them behind and wait for ever.
        self._converter = VideoReformatter()
        codec = self._stream.codec_context
        if codec is None:
            raise _Unreadable("no decoder for its video stream")
        codec.thread_count = 1
        _check_size(codec.width, codec.height)
        self._scan()
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.fps = float(rate) if rate else 30.0
        self._rewind()

    def _scan(self) -> None:
        """Frame numbers by presentation time, and which packets start without their predecessors."""
        try:
            packets = [
                packet for packet in self._container.demux(self._stream) if packet.size and not packet.is_discard
            ]
        except av.FFmpegError as reason:
            raise _Unreadable(f"its packets cannot be read ({_short(reason)})") from None
        if not packets:
            raise _Unreadable("no frames")
        self.num_frames = len(packets)
        times = [packet.pts for packet in packets if packet.pts is not None]
        self._timed = len(set(times)) == self.num_frames
        self._times = sorted(times) if self._timed else []
        self._number = {time: number for number, time in enumerate(self._times)}
        keys = [packet.pts for packet in packets if packet.is_keyframe and packet.pts is not None]
        self._keys = sorted(keys) if self._timed else []
        self.pixel_aspect = self._stream.sample_aspect_ratio or Fraction(1)

    def times(self) -> list[Fraction]:
        return [time * (self._stream.time_base or Fraction(1)) for time in self._times]

    def read(self, wanted: np.ndarray) -> np.ndarray:
        """Frames by rising, distinct numbers: (T, H, W, 3). Where a seek leads astray, once more from the start."""
        numbers = [int(number) for number in wanted]
        try:
            shortened = self._seek(numbers[0]) | self._skip_unless(numbers)
            pictures = [self.read_next(number) for number in numbers]
        except _Unreadable:
            if not shortened:
                raise
            self._rewind()
            pictures = [self.read_next(number) for number in numbers]
        if any(picture.shape != pictures[0].shape for picture in pictures):
            raise _Unreadable("the picture size changes within the video")
        return np.stack(pictures)

    def read_next(self, number: int) -> np.ndarray:
        """Decode on until frame `number` comes, which must not lie behind: (H, W, 3)."""
        while True:
            try:
                frame = next(self._frames)
            except StopIteration:
                raise _Unreadable(f"ends at frame {self._at + 1} of {self.num_frames}") from None
            except av.FFmpegError as reason:
                raise _Unreadable(
                    f"frame {self._at + 1} of {self.num_frames} cannot be decoded ({_short(reason)})"
                ) from None
            self._at = self._number.get(frame.pts or 0, -1) if self._timed else self._at + 1
            if self._at == number:
                return self._convert(frame)
            if self._at > number:
                raise _Unreadable(
                    f"frame {number} of {self.num_frames} is missing: the decoder gives {self._at} after it"
                )

    def _seek(self, number: int) -> bool:
        """Stand at the last key frame that is not behind `number`; at the start, False, where that is as good."""
        keys = [key for key in self._keys if key <= self._times[number]]
        if len(keys) < 2:
            self._rewind()
            return False
        self._container.seek(keys[-1], stream=self._stream)
        self._frames, self._at, self._needed = self._decode(), -1, None
        return True

    def _rewind(self) -> None:
        self._container.seek(min(self._stream.start_time or 0, 0), stream=self._stream)
        self._frames, self._at, self._needed = self._decode(), -1, None

    def _skip_unless(self, numbers: list[int]) -> bool:
        """Leave out frames that are not wanted and that no other frame refers to: the others come out the same.

        Only in H.264, where each such frame says so itself: half of the frames of usual files.
        """
        if self._timed and self._stream.codec_context.name == "h264":
            self._needed = {self._times[number] for number in numbers}
        return self._needed is not None

    def _decode(self) -> Iterator[av.VideoFrame]:
        codec = self._stream.codec_context
        for packet in self._container.demux(self._stream):
            codec.skip_frame = "DEFAULT" if self._needed is None or packet.pts in self._needed else "NONREF"
            yield from packet.decode()

    def _convert(self, frame: av.VideoFrame) -> np.ndarray:
        if frame.is_corrupt:
            raise _Unreadable(f"frame {self._at} of {self.num_frames} is damaged")
        _check_size(frame.width, frame.height)
        picture = self._converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        turns = round((frame.rotation or 0) / 90) % 4
        if turns % 2:
            self.pixel_aspect = 1 / (self._stream.sample_aspect_ratio or Fraction(1))
        return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture

    def close(self) -> None:
        self._container.close()


class _DecordBackend:
    """decord reads the whole index itself; its retries at the end of a file repeat frames in silence, so none are allowed."""

    def __init__(self, file: Path) -> None:
        try:
            import decord
        except ImportError as reason:
            raise _Unreadable(f"decord is not installed ({reason}): use data.decoder=pyav") from None
        try:
            self._reader = decord.VideoReader(str(file), num_threads=1, fault_tol=0)
        except Exception as reason:  # decord's own error type is private and derives from Exception
            raise _Unreadable(f"cannot be opened by decord ({_short(reason)})") from None
        self.num_frames = len(self._reader)
        self.pixel_aspect = Fraction(1)
        self.fps = float(self._reader.get_avg_fps())
        if not self.num_frames:
            raise _Unreadable("no frames")

    def times(self) -> list[Fraction]:
        return []

    def read(self, wanted: np.ndarray) -> np.ndarray:
        try:
            return self._reader.get_batch(wanted.tolist()).asnumpy()
        except Exception as reason:
            raise _Unreadable(f"cannot be decoded by decord ({_short(reason)})") from None

    def read_next(self, number: int) -> np.ndarray:
        return self.read(np.array([number]))[0]

    def close(self) -> None:
        del self._reader


BACKENDS: dict[str, Callable[[Path], _Backend]] = {"pyav": _PyAvBackend, "decord": _DecordBackend}


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _Unreadable(f"its frames of {width}×{height} pixels are above the limit of {MAX_PIXELS:,} pixels")


def _short(reason: Exception) -> str:
    """The reason alone: FFmpeg's word for it, or the first line of decord's."""
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    line = next((line for line in reversed(text.splitlines()) if line.strip()), "")
    return " ".join(line.split())[:160]
