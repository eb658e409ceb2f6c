"""Live sources: a camera, a pipe, or an address that the user allows; predictions roll while frames come.

A thread takes all that comes from a decoding process, so that the source never waits for the network. At most a few windows
wait; where the network is slower than the source the oldest are dropped and counted.
"""

import os
import stat
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

from torch import Tensor

from mvit_video.config.schema import InputSettings
from mvit_video.data.video.guard import Guard
from mvit_video.errors import ConfigError
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
LIVE_FRAMES = "mvit_video.data.video.live:live_frames"
STANDARD_INPUT = "pipe:0"
SILENCE_SECONDS = (
    10.0  # of an address, after which it has ended; cameras and pipes may be silent for as long as they like
)
MAX_WAITING = 4  # windows


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
    """Input for FFmpeg: a URL, and the protocols that it may use."""

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
        return LiveSource("standard input", STANDARD_INPUT, {"protocol_whitelist": "pipe", "format_whitelist": FORMATS})
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
    raise ConfigError(f"{name}: is {what}, but --stream is for live sources")


def _network_source(name: str, allow_network: bool) -> LiveSource:
    scheme = urlsplit(name).scheme.lower()
    if scheme not in NETWORK:
        raise ConfigError(f"{name}: '{scheme}' is not a supported stream: choose from {', '.join(NETWORK)}")
    if not allow_network:
        raise ConfigError(f"{name}: is a URL: pass --allow-network to open it")
    return LiveSource(name, name, NETWORK[scheme], timeout=SILENCE_SECONDS)


def live_predictions(
    predictor: Predictor, source: LiveSource, step_seconds: float | None = None
) -> Generator[LivePrediction, None, None]:
    """Predictions as they come, until the source ends; closing the iterator ends the reading.

    Raises DecodeError where the source cannot be opened or gives no video.
    """
    plan_windows(predictor.card.preprocessing, 30.0, None, step_seconds)  # complains before anything is opened
    waiting = _Waiting()
    with predictor.guard.scoped() as guard:
        words = (source, guard, predictor.card.preprocessing, step_seconds, waiting)
        reader = threading.Thread(target=_read, args=words, daemon=True)
        reader.start()
        try:
            for window in waiting:
                best = predictor.prediction(source.name, predictor.scores_of([window.pixels[None]])[0], top=1)
                latency = time.monotonic() - window.arrived
                yield LivePrediction(
                    round(window.end, 3), best.label, round(best.score, 4), round(latency, 3), waiting.dropped
                )
        finally:
            waiting.stop()
    reader.join(timeout=1.0)  # its decoder is gone by now, also where it has waited for a silent source


@dataclass(frozen=True)
class _LiveWindow:
    pixels: Tensor  # (C, T, H, W)
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
            if len(self._windows) == MAX_WAITING:
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


def _read(
    source: LiveSource, guard: Guard, settings: InputSettings, step_seconds: float | None, waiting: _Waiting
) -> None:
    """The reader's thread: all frames of the source, windows into `waiting`, an error to where it is raised again."""
    try:
        words = (source.address, source.options, source.format, source.timeout)
        frames = guard.play(source.name, LIVE_FRAMES, *words, file=0 if source.address == STANDARD_INPUT else None)
        fps, number = frames.about["fps"], 0
        plan = plan_windows(settings, fps, None, step_seconds)
        clips = SlidingClips(settings, plan)
        for number, frame in frames:
            arrived = time.monotonic()
            for window in clips.push(number, frame):
                waiting.put(_LiveWindow(window.pixels, (window.start + plan.length) / fps, arrived))
            if waiting.stopped:
                return
        for window in clips.flush():
            waiting.put(_LiveWindow(window.pixels, (number + 1) / fps, time.monotonic()))
    except Exception as reason:  # whatever it is, it belongs to the thread that waits
        waiting.end(reason)
    else:
        waiting.end()
