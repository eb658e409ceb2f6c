"""Live sources: a camera, a pipe, or an address that the user allows; predictions roll while frames come.

A thread reads all that comes, so that the source never waits for the network. At most a few windows wait; where the
network is slower than the source the oldest are dropped and counted. A camera's or pipe's stream may be damaged or
begin in the middle: frames that cannot be decoded are left out.
"""

import os
import stat
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from torch import Tensor

from mvit_video.data.video.limits import MAX_PIXELS, Unreadable, check_size, short_reason
from mvit_video.errors import ConfigError, DecodeError
from mvit_video.inference.predictor import Predictor
from mvit_video.inference.windows import SlidingClips, plan_windows

# No playlist format is among them: a playlist names addresses of its own, and the user has named one.
FORMATS = "matroska,webm,mpegts,flv,mov,avi,ogg,mpeg,mpegvideo,h264,hevc,mjpeg,mpjpeg,yuv4mpegpipe"
NETWORK = {
    "http": {"protocol_whitelist": "http,tcp", "format_whitelist": FORMATS},
    "https": {"protocol_whitelist": "https,tls,tcp", "format_whitelist": FORMATS},
    "rtsp": {
        "protocol_whitelist": "rtp,udp,tcp",
        "format_whitelist": f"rtsp,rtp,sdp,{FORMATS}",
        "rtsp_transport": "tcp",
    },
}
PROBE = {"probesize": "1000000", "analyzeduration": "1000000"}  # bytes and microseconds to find out what comes
SILENCE_SECONDS = (
    10.0  # of an address, after which it has ended; cameras and pipes may be silent for as long as they like
)
MOST_WAITING = 4  # windows
LONGEST_JUMP = 60.0  # seconds; what the source's clock leaps beyond that, or backwards, did not happen


@dataclass(frozen=True)
class LivePrediction:
    """The best class of the window that ends at `time` (seconds from the stream's first frame), and its score.

    `latency` are the seconds from the arrival of the window's last frame to this prediction; `dropped` counts the
    windows that nobody has looked at since the stream began.
    """

    time: float
    label: str
    score: float
    latency: float
    dropped: int

    def as_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class LiveSource:
    """What FFmpeg is told: an address with what it may open for it."""

    name: str
    address: str
    options: dict[str, str]
    format: str | None = None
    timeout: float | None = None


def live_source(name: str, allow_network: bool = False) -> LiveSource:
    """A camera (/dev/video0), standard input (-), a named pipe, or an rtsp/http(s) address where that is allowed.

    Opens nothing. Raises ConfigError for anything else.
    """
    if name in ("-", "pipe:", "pipe:0", "/dev/stdin"):
        return LiveSource("standard input", "pipe:0", {"protocol_whitelist": "pipe", "format_whitelist": FORMATS})
    if "://" in name:
        return _network_source(name, allow_network)
    try:
        kind = os.stat(name).st_mode
    except (OSError, ValueError):
        raise ConfigError(
            f"{name}: no such camera or pipe: a stream is a device such as /dev/video0, - for standard input, "
            "a named pipe, or an address"
        ) from None
    if stat.S_ISFIFO(kind):
        path = f"file:{os.path.abspath(name)}"
        return LiveSource(name, path, {"protocol_whitelist": "file", "format_whitelist": FORMATS})
    if stat.S_ISCHR(kind):
        return LiveSource(name, name, {"format_whitelist": "video4linux2,v4l2"}, format="video4linux2,v4l2")
    what = "a file: predict it with --timeline" if stat.S_ISREG(kind) else "neither a camera nor a pipe"
    raise ConfigError(f"{name}: is {what}, since --stream is for what happens now")


def _network_source(name: str, allow_network: bool) -> LiveSource:
    scheme = urlsplit(name).scheme.lower()
    if scheme not in NETWORK:
        raise ConfigError(f"{name}: '{scheme}' is no stream that is opened here: allowed are {', '.join(NETWORK)}")
    if not allow_network:
        raise ConfigError(f"{name}: is an address, and nothing is fetched from one unless you say --allow-network")
    return LiveSource(name, name, NETWORK[scheme], timeout=SILENCE_SECONDS)


def live_predictions(
    predictor: Predictor, source: LiveSource, step_seconds: float | None = None
) -> Generator[LivePrediction, None, None]:
    """Predictions as they come, until the source ends; closing the iterator ends the reading.

    Raises DecodeError where the source cannot be opened or gives no video.
    """
    plan_windows(predictor.card.preprocessing, 30.0, None, step_seconds)  # complains before anything is opened
    waiting = _Waiting()
    reader = threading.Thread(target=_read, args=(source, predictor, step_seconds, waiting), daemon=True)
    reader.start()
    try:
        for window in waiting:
            best = predictor.prediction(source.name, predictor.scores(window.clip[None])[0], top=1)
            latency = time.monotonic() - window.arrived
            yield LivePrediction(
                round(window.end, 3), best.label, round(best.score, 4), round(latency, 3), waiting.dropped
            )
    finally:
        waiting.stop()
        reader.join(timeout=1.0)  # one that waits for a silent source is left behind


@dataclass(frozen=True)
class _LiveWindow:
    clip: Tensor  # (C, T, H, W)
    end: float
    arrived: float


class _Waiting:
    """Windows between the reader and the network, oldest first; when full, the oldest gives way and is counted."""

    def __init__(self) -> None:
        self.dropped, self.stopped = 0, False
        self._windows: deque[_LiveWindow] = deque()
        self._ended = False
        self._error: Exception | None = None
        self._changed = threading.Condition()

    def put(self, window: _LiveWindow) -> None:
        with self._changed:
            if len(self._windows) == MOST_WAITING:
                self._windows.popleft()
                self.dropped += 1
            self._windows.append(window)
            self._changed.notify()

    def end(self, error: Exception | None = None) -> None:
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify()

    def stop(self) -> None:
        """Tell the reader that nobody listens any more."""
        self.stopped = True

    def __iter__(self) -> Iterator[_LiveWindow]:
        while True:
            with self._changed:
                while not self._windows and not self._ended:
                    self._changed.wait()
                if not self._windows:
                    if self._error is not None:
                        raise self._error
                    return
                window = self._windows.popleft()
            yield window


def _read(source: LiveSource, predictor: Predictor, step_seconds: float | None, waiting: _Waiting) -> None:
    """The reader's thread: all frames of the source, windows into `waiting`, an error to where it is raised again."""
    try:
        with _LiveFrames(source) as frames:
            plan = plan_windows(predictor.card.preprocessing, frames.fps, None, step_seconds)
            clips, number = SlidingClips(predictor.card.preprocessing, plan), 0
            for number, frame in frames:
                arrived = time.monotonic()
                for window in clips.push(number, frame):
                    waiting.put(_LiveWindow(window.clip, (window.start + plan.length) / frames.fps, arrived))
                if waiting.stopped:
                    return
            for window in clips.flush():
                waiting.put(_LiveWindow(window.clip, (number + 1) / frames.fps, time.monotonic()))
    except Exception as reason:  # whatever it is, it belongs to the thread that waits
        waiting.end(reason)
    else:
        waiting.end()


class _LiveFrames:
    """(number, frame) of a source, uint8 (H, W, 3), upright, numbered by their times at the source's usual rate."""

    def __init__(self, source: LiveSource) -> None:
        self.name = source.name
        try:
            self._container = av.open(
                source.address,
                format=source.format,
                options=PROBE | {"max_pixels": str(MAX_PIXELS)} | source.options,
                timeout=source.timeout,
            )
        except (av.FFmpegError, ValueError) as reason:
            raise DecodeError(f"{self.name}: cannot be opened as a stream of video ({short_reason(reason)})") from None
        try:
            self._stream = self._checked()
        except BaseException:
            self._container.close()
            raise
        self._stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        rate = float(self._stream.average_rate or self._stream.guessed_rate or 0)
        self.fps = rate if 1 <= rate <= 240 else 30.0

    def _checked(self) -> av.VideoStream:
        if not self._container.streams.video or self._container.streams.video[0].codec_context is None:
            raise DecodeError(f"{self.name}: no video in this stream that can be decoded")
        codec = self._container.streams.video[0].codec_context
        try:
            check_size(codec.width, codec.height)
        except Unreadable as reason:
            raise DecodeError(f"{self.name}: {reason}") from None
        return self._container.streams.video[0]

    def __enter__(self) -> "_LiveFrames":
        return self

    def __exit__(self, *_) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        numbers, converter, any_frame = _Numbers(self.fps), VideoReformatter(), False
        try:
            for packet in self._container.demux(self._stream):
                for frame in _decoded(packet):
                    number = numbers.next(frame.time)
                    if number is not None:
                        any_frame = True
                        yield number, _upright(converter.reformat(frame, format="rgb24", threads=1), frame.rotation)
        except av.FFmpegError as reason:
            raise DecodeError(f"{self.name}: the stream broke off ({short_reason(reason)})") from None
        if not any_frame:
            raise DecodeError(f"{self.name}: the stream ended without a frame that can be decoded")


def _decoded(packet: av.Packet) -> list[av.VideoFrame]:
    """The whole frames of a packet; none where it is damaged, or refers to what came before we listened."""
    try:
        frames = [frame for frame in packet.decode() if isinstance(frame, av.VideoFrame)]
    except av.FFmpegError:
        return []
    return [frame for frame in frames if not frame.is_corrupt and frame.width * frame.height <= MAX_PIXELS]


def _upright(frame: av.VideoFrame, rotation: int) -> np.ndarray:
    turns = round((rotation or 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(), turns))


class _Numbers:
    """Rising frame numbers from times in seconds, so that frames that the source left out are missed."""

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self._zero: float | None = None  # the time of number 0
        self._last, self._time = -1, 0.0

    def next(self, seconds: float | None) -> int | None:
        """The number of the frame with this time; None for one that comes before the next number is due."""
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
