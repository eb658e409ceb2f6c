"""A reader whose decoder runs in a process of its own: one that hangs or dies costs a video and a limited time, never the run.

A `Guard` opens what VideoReader opens; guard_pool.py has the processes, which are kept for the next reader. Frames come
back through shared memory. Where a system has no fork (Windows), the calling process decodes, unguarded.
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

from mvit_video.data.video.guard_channel import GOING_ON, WAITING, named_function
from mvit_video.data.video.guard_pool import Decoder, DecoderLost, DecoderPool, Done, Job
from mvit_video.data.video.guard_start import CAN_GUARD
from mvit_video.data.video.reader import Reader, VideoReader
from mvit_video.errors import DecodeError

TIMEOUT = 60.0
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))

shared_pool = DecoderPool()


@dataclass(frozen=True)
class Guard:
    """How videos are decoded: how long a decoder may take, in which processes, and how large its frames may be.

    `timeout` seconds are allowed for opening and the first frames together, and for each later call; 0 decodes in this
    process, unguarded. Without `pool`, it is that of all readers of this process. Frames of more than `most_pixels` are
    refused where it is not 0.
    """

    timeout: float = TIMEOUT
    pool: DecoderPool | None = None
    most_pixels: int = 0

    @contextmanager
    def for_now(self) -> Iterator["Guard"]:
        """The same, for a while: at its end, what still decodes (for threads that nobody waits for, say) is stopped."""
        with DecoderPool(of=self.pool or shared_pool) as pool:
            yield replace(self, pool=pool)

    def open(
        self, path: str | Path, root: str | Path | None = None, backend: str = "pyav", whole: bool = True
    ) -> Reader:
        """A reader of one video that cannot hang or crash this process. See VideoReader."""
        if not self.timeout or not CAN_GUARD:
            return VideoReader(path, root, backend, whole)
        return GuardedReader(path, root, backend, whole, self)

    def play(self, name: str, function: str, *arguments: Any, file: int | None = None) -> "Playing":
        """What `function` (module:name) yields for `name` and the other arguments; `file` is its standard input.

        A dictionary about it, then (number, frame), uint8 (H, W, 3), with WAITING before and GOING_ON after what may take
        for ever; at other times, each answer may take `timeout` seconds.
        """
        if not self.timeout or not CAN_GUARD:
            return Playing(named_function(function)(name, *arguments))
        session = _Session(name, self, new=True)
        files = () if file is None else (file,)
        return Playing(_played(session, files, function=function, arguments=[name, *arguments]))

    def do(self, job: Job) -> Done:
        """One job, in a process; see DecoderPool.run."""
        [done] = (self.pool or shared_pool).run([job], 1, self.timeout)
        return done


def open_reader(
    path: str | Path, root: str | Path | None = None, backend: str = "pyav", timeout: float = TIMEOUT
) -> Reader:
    """A reader that cannot hang or crash this process, in the processes that this process keeps; see Guard."""
    return Guard(timeout).open(path, root, backend)


class _Session:
    """A decoding process at work for the video `name`. What is lost with it is a DecodeError that names the video."""

    def __init__(self, name: str, guard: Guard, new: bool = False) -> None:
        self._name, self._timeout, self._left = name, guard.timeout, guard.timeout
        self._pool = guard.pool or shared_pool
        self._decoder: Decoder | None = None
        with self._lost():
            self._decoder = self._pool.take(new)

    @property
    def busy(self) -> bool:
        return self._decoder is not None and self._decoder.busy

    @property
    def process(self) -> int:
        return self._taken.pid

    def send(self, verb: str, files: Sequence[int] = (), **arguments) -> None:
        with self._lost():
            self._taken.send(verb, self._left, files, **arguments)

    def receive(self) -> dict:
        with self._lost():
            decoder = self._taken
            try:
                return decoder.receive()
            finally:
                self._left = decoder.left

    def clip(self, reply: dict) -> np.ndarray:
        """The frames that came with an answer. From here on there is the whole time for the next ones."""
        self._left = self._timeout
        return self._taken.clip(reply["shape"])

    def close(self) -> None:
        """Give the process back; one that is still at work is killed."""
        decoder, self._decoder = self._decoder, None
        if decoder is not None:
            self._pool.give(decoder)

    @property
    def _taken(self) -> Decoder:
        if self._decoder is None:
            raise DecodeError(f"{self._name}: its reader is closed, or its decoder died")
        return self._decoder

    @contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except DecoderLost as reason:
            self._decoder = None
            raise DecodeError(f"{self._name}: {reason}") from None


class GuardedReader:
    """VideoReader's interface, with the decoder in another process. Each reader has one of its own while it is open."""

    def __init__(self, path: str | Path, root: str | Path | None, backend: str, whole: bool, guard: Guard) -> None:
        self.path, self._session = str(path), _Session(str(path), guard)
        self.pixel_aspect, self.num_decoded = Fraction(1), 0
        self._times: np.ndarray | None = None
        self._streams = 0
        try:
            opened = self._ask(
                "open",
                path=self.path,
                root=None if root is None else os.path.abspath(root),
                folder=_current_folder(),
                backend=backend,
                whole=whole,
                most_pixels=guard.most_pixels,
            )
        except BaseException:
            self.close()
            raise
        self._num_frames, self.fps = int(opened["frames"]), float(opened["fps"])
        self.shortfall, self.note = opened["shortfall"], opened["note"]

    def __len__(self) -> int:
        return self._num_frames

    @property
    def process(self) -> int:
        """The number of the process that decodes."""
        return self._session.process

    def __enter__(self) -> "GuardedReader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Give the process back for the next reader; one that is still at work is killed."""
        self._session.close()

    def times(self) -> list[Fraction]:
        """See VideoReader.times."""
        if self._times is None:
            self._times = self._session.clip(self._ask("times")).view(np.int64)
        return [Fraction(*pair) for pair in zip(*self._times.tolist(), strict=True)]

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """See VideoReader.frames."""
        return self._session.clip(self._ask("frames", indices=np.asarray(indices, dtype=np.int64).tolist()))

    def stream(self) -> Iterator[np.ndarray]:
        """See VideoReader.stream. The next frames are decoded while these are looked at."""
        self._let_go()
        number = self._streams
        self._session.send("stream")
        while "last" not in (reply := self._receive()):
            clip = self._session.clip(reply)
            self._session.send("next")
            yield from clip
            if number != self._streams:
                raise RuntimeError(f"{self.path}: its reader received another request during a stream")

    def _ask(self, verb: str, **arguments) -> dict:
        self._let_go()
        self._session.send(verb, **arguments)
        return self._receive()

    def _let_go(self) -> None:
        """End a stream that is under way, and wait for the frames that it has asked for."""
        self._streams += 1
        if self._session.busy:
            with suppress(DecodeError):
                self._receive()

    def _receive(self) -> dict:
        """The answer; what it tells besides is kept."""
        reply = self._session.receive()
        if "decoded" in reply:
            self.num_decoded, self.pixel_aspect = reply["decoded"], Fraction(*reply["aspect"])
        return reply


class Playing:
    """(number, frame) of a source, once, and what is known `about` it."""

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items
        self.about: dict = next(item for item in items if isinstance(item, dict))

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        return (item for item in self._items if item not in (WAITING, GOING_ON))


def _played(session: _Session, files: Sequence[int], **request) -> Iterator[Any]:
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


def _current_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None
