"""Frames of live sources: a camera, a pipe, an address. A stream may be damaged or begin in the middle.

`live_frames` runs in a decoding process (see guard.py); frames that cannot be decoded are skipped.
"""

# H/W pixels

from collections.abc import Iterator
from typing import TypeAlias

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from mvit_video.data.video.guard_channel import RESUMED, WAITING
from mvit_video.data.video.limits import MAX_PIXELS, Unreadable, check_size, short_reason
from mvit_video.errors import DecodeError

PROBE = {"probesize": "1000000", "analyzeduration": "1000000"}  # bytes and microseconds to detect the format
LONGEST_JUMP = 60.0  # seconds; larger jumps of the source's clock, or backward ones, are ignored

Played: TypeAlias = dict | str | tuple[int, np.ndarray]


def live_frames(
    name: str, address: str, options: dict[str, str], form: str | None, timeout: float | None
) -> Iterator[Played]:
    """{"fps"}, then (number, frame), frames uint8 (H, W, 3), upright, numbered by their times at the source's usual rate.

    WAITING and RESUMED are yielded around what may block for ever: an open camera or pipe may pause for any time.
    Raises DecodeError if the source cannot be opened, breaks off, or has no decodable frame.
    """
    yield WAITING
    try:
        container = av.open(
            address, format=form, options=PROBE | {"max_pixels": str(MAX_PIXELS)} | options, timeout=timeout
        )
    except (av.FFmpegError, ValueError) as reason:
        raise DecodeError(f"{name}: cannot be opened as a video stream ({short_reason(reason)})") from None
    yield RESUMED
    with container:
        stream = _checked(container, name)
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        fps = rate if 1 <= rate <= 240 else 30.0
        yield {"fps": fps}
        yield from _numbered(container.demux(stream), fps, name)


def _checked(container, name: str) -> av.VideoStream:
    if not container.streams.video or container.streams.video[0].codec_context is None:
        raise DecodeError(f"{name}: this stream has no decodable video")
    codec = container.streams.video[0].codec_context
    try:
        check_size(codec.width, codec.height)
    except Unreadable as reason:
        raise DecodeError(f"{name}: {reason}") from None
    return container.streams.video[0]


def _numbered(packets: Iterator[av.Packet], fps: float, name: str) -> Iterator[Played]:
    numbers, converter, any_frame = FrameNumbers(fps), VideoReformatter(), False
    while True:
        yield WAITING
        try:
            packet = next(packets)
        except StopIteration:
            break
        except av.FFmpegError as reason:
            raise DecodeError(f"{name}: the stream broke off ({short_reason(reason)})") from None
        yield RESUMED
        for frame in _decoded(packet):
            number = numbers.next(frame.time)
            if number is not None:
                any_frame = True
                yield number, _upright(converter.reformat(frame, format="rgb24", threads=1), frame.rotation)
    if not any_frame:
        raise DecodeError(f"{name}: the stream ended without a decodable frame")


def _decoded(packet: av.Packet) -> list[av.VideoFrame]:
    """The intact frames of a packet; none if it is damaged or refers to frames before the first one received."""
    try:
        frames = [frame for frame in packet.decode() if isinstance(frame, av.VideoFrame)]
    except av.FFmpegError:
        return []
    return [frame for frame in frames if not frame.is_corrupt and frame.width * frame.height <= MAX_PIXELS]


def _upright(frame: av.VideoFrame, rotation: int) -> np.ndarray:
    turns = round((rotation or 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(), turns))


class FrameNumbers:
    """Increasing frame numbers from times in seconds, with gaps where the source dropped frames."""

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self._zero: float | None = None  # the time of number 0
        self._last, self._time = -1, 0.0

    def next(self, seconds: float | None) -> int | None:
        """The number of the frame at this time; None if it comes before the next number is due."""
        if seconds is None:
            seconds = self._time + 1 / self.fps
        if self._zero is None:
            self._zero = seconds
        elif not 0 <= seconds - self._time <= LONGEST_JUMP:
            self._zero = seconds - (self._last + 1) / self.fps
        self._time = seconds
        number = round((seconds - self._zero) * self.fps)
        if number <= self._last:
            return None
        self._last = number
        return number
