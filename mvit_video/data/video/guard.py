"""Readers that decode in a separate process: a decoder that hangs or crashes costs one video and a bounded time, not the run.

A `Guard` opens what VideoReader opens, in the processes of guard_pool.py, which are reused. Frames are returned through
shared memory. On systems without fork (Windows) the calling process decodes, unguarded.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mvit_video.data.video.guard_channel import RESUMED, WAITING, load_function
from mvit_video.data.video.guard_pool import Decoder, DecoderLost, DecoderPool, Job, JobResult
from mvit_video.data.video.guard_start import CAN_GUARD
from mvit_video.data.video.reader import Reader, VideoReader
from mvit_video.errors import DecodeError

TIMEOUT = 60.0
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))

shared_pool = DecoderPool()


@dataclass(frozen=True)
class Guard:
    """How videos are decoded: the time allowed, the pool of processes, and the largest frame size.

    `timeout` is in seconds, for opening and the first frames together, and for each later call; 0 decodes in this process,
    unguarded. `pool` defaults to the one shared by this process. Frames above `max_pixels` are refused, unless it is 0.
    """

    timeout: float = TIMEOUT
    pool: DecoderPool | None = None
    max_pixels: int = 0

    @contextmanager
    def scoped(self) -> Iterator["Guard"]:
        """A copy of this guard whose decoders are stopped on exit, even if other threads still use them."""
        with DecoderPool(parent=self.pool or shared_pool) as pool:
            yield replace(self, pool=pool)

    def open(
        self, path: str | Path, root: str | Path | None = None, backend: str = "pyav", whole: bool = True
    ) -> Reader:
        """A reader of one video that cannot hang or crash this process. See VideoReader."""
        if not self.timeout or not CAN_GUARD:
            return VideoReader(path, root, backend, whole)
        return GuardedReader(path, root, backend, whole, self)

    def play(self, name: str, function: str, *arguments: Any, file: int | None = None) -> "Playback":
        """Iterate over `function` (module:name) of `name` and the arguments; `file` becomes its standard input.

        It yields a dictionary about the source, then (number, frame), uint8 (H, W, 3), with WAITING before and RESUMED after
        what may block for ever; otherwise each reply may take `timeout` seconds.
        """
        if not self.timeout or not CAN_GUARD:
            return Playback(load_function(function)(name, *arguments))
        session = _Session(name, self, new=True)
        files = () if file is None else (file,)
        return Playback(_playback_items(session, files, function=function, arguments=[name, *arguments]))

    def run_job(self, job: Job) -> JobResult:
        """Run one job in a process; see DecoderPool.run."""
        [result] = (self.pool or shared_pool).run([job], 1, self.timeout)
        return result


def open_reader(
    path: str | Path, root: str | Path | None = None, backend: str = "pyav", timeout: float = TIMEOUT
) -> Reader:
    """A reader that cannot hang or crash this process, from the shared pool; see Guard."""
    return Guard(timeout).open(path, root, backend)


class _Session:
    """A decoding process in use for the video `name`. If it is lost, methods raise DecodeError with that name."""

    def __init__(self, name: str, guard: Guard, new: bool = False) -> None:
        self._name, self._timeout, self._time_left = name, guard.timeout, guard.timeout
        self._pool = guard.pool or shared_pool
        self._decoder: Decoder | None = None
        with self._translate_errors():
            self._decoder = self._pool.acquire(new)

    @property
    def busy(self) -> bool:
        return self._decoder is not None and self._decoder.busy

    @property
    def process(self) -> int:
        return self._current.pid

    def send(self, verb: str, files: Sequence[int] = (), **arguments) -> None:
        with self._translate_errors():
            self._current.send(verb, self._time_left, files, **arguments)

    def receive(self) -> dict:
        with self._translate_errors():
            decoder = self._current
            try:
                return decoder.receive()
            finally:
                self._time_left = decoder.time_left

    def clip(self, reply: dict) -> np.ndarray:
        """The frames of a reply. Restarts the timeout for the next ones."""
        self._time_left = self._timeout
        return self._current.clip(reply["shape"])

    def close(self) -> None:
        """Return the process to the pool; it is killed if it is busy."""
        decoder, self._decoder = self._decoder, None
        if decoder is not None:
            self._pool.release(decoder)

    @property
    def _current(self) -> Decoder:
        if self._decoder is None:
            raise DecodeError(f"{self._name}: its reader is closed, or its decoder died")
        return self._decoder

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except DecoderLost as reason:
            self._decoder = None
            raise DecodeError(f"{self._name}: {reason}") from None


class GuardedReader:
    """VideoReader's interface, with the decoder in another process that each open reader has to itself."""

    def __init__(self, path: str | Path, root: str | Path | None, backend: str, whole: bool, guard: Guard) -> None:
        self.path, self._session = str(path), _Session(str(path), guard)
        self.pixel_aspect, self.num_decoded = Fraction(1), 0
        self._times: np.ndarray | None = None
        self._stream_id = 0
        try:
            opened = self._request(
                "open",
                path=self.path,
                root=None if root is None else os.path.abspath(root),
                folder=_working_directory(),
                backend=backend,
                whole=whole,
                max_pixels=guard.max_pixels,
            )
        except BaseException:
            self.close()
            raise
        self._num_frames, self.num_pixels, self.fps = int(opened["frames"]), int(opened["pixels"]), float(opened["fps"])
        self.shortfall, self.note = opened["shortfall"], opened["note"]

    def __len__(self) -> int:
        return self._num_frames

    @property
    def process(self) -> int:
        """Id of the decoding process."""
        return self._session.process

    def __enter__(self) -> "GuardedReader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Return the process to the pool; it is killed if it is busy."""
        self._session.close()

    def times(self) -> list[Fraction]:
        """See VideoReader.times."""
        if self._times is None:
            self._times = self._session.clip(self._request("times")).view(np.int64)
        return [Fraction(*pair) for pair in zip(*self._times.tolist(), strict=True)]

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """See VideoReader.frames."""
        return self._session.clip(self._request("frames", indices=np.asarray(indices, dtype=np.int64).tolist()))

    def stream(self) -> Iterator[np.ndarray]:
        """See VideoReader.stream. The next frames are decoded while these are processed."""
        self._end_stream()
        stream_id = self._stream_id
        self._session.send("stream")
        while "last" not in (reply := self._receive()):
            clip = self._session.clip(reply)
            self._session.send("next")
            yield from clip
            if stream_id != self._stream_id:
                raise RuntimeError(f"{self.path}: its reader received another request during a stream")

    def _request(self, verb: str, **arguments) -> dict:
        self._end_stream()
        self._session.send(verb, **arguments)
        return self._receive()

    def _end_stream(self) -> None:
        """End a stream in progress, and wait for the frames that it has requested."""
        self._stream_id += 1
        if self._session.busy:
            with suppress(DecodeError):
                self._receive()

    def _receive(self) -> dict:
        """The reply, after updating what it reports about the video."""
        reply = self._session.receive()
        if "decoded" in reply:
            self.num_decoded, self.pixel_aspect = reply["decoded"], Fraction(*reply["aspect"])
        return reply


class Playback:
    """(number, frame) of a source, to iterate once, and a dictionary `about` it."""

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items
        self.about: dict = next(item for item in items if isinstance(item, dict))

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        return (item for item in self._items if item not in (WAITING, RESUMED))


def _playback_items(session: _Session, files: Sequence[int], **request) -> Iterator[Any]:
    try:
        session.send("play", files, **request)
        while "last" not in (reply := session.receive()):
            clip = session.clip(reply) if "shape" in reply else ()
            session.send("next")
            if "about" in reply:
                yield reply["about"]
            yield from zip(reply.get("numbers", ()), clip, strict=True)
    finally:
        session.close()


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None
