"""A reader whose decoder runs in a process of its own: one that hangs or dies costs a video and a limited time, never the run.

`open_reader` gives what VideoReader gives; guard_pool.py has the processes, which are kept for the next reader. Frames come
back through shared memory. Where a system has no fork (Windows), the calling process decodes, unguarded.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import numpy as np

from mvit_video.data.video.guard_pool import Decoder, DecoderLost, DecoderPool
from mvit_video.data.video.guard_start import CAN_GUARD
from mvit_video.data.video.reader import VideoReader
from mvit_video.errors import DecodeError

TIMEOUT = 60.0
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


def open_reader(
    path: str | Path,
    root: str | Path | None = None,
    backend: str = "pyav",
    timeout: float = TIMEOUT,
    whole: bool = True,
    pool: DecoderPool | None = None,
    most_pixels: int = 0,
) -> "VideoReader | GuardedReader":
    """A reader of one video that cannot hang or crash this process; a plain VideoReader where `timeout` is 0.

    `timeout` seconds are allowed for opening and the first frames together, and for each later call. The process is one of
    `pool`, by default of those that this process keeps. Frames of more than `most_pixels` are refused where it is not 0.
    """
    if not timeout or not CAN_GUARD:
        return VideoReader(path, root, backend, whole)
    return GuardedReader(path, root, backend, timeout, whole, pool or shared_pool, most_pixels)


class GuardedReader:
    """VideoReader's interface, with the decoder in another process. Each reader has one of its own while it is open."""

    def __init__(
        self,
        path: str | Path,
        root: str | Path | None,
        backend: str,
        timeout: float,
        whole: bool,
        pool: DecoderPool,
        most_pixels: int,
    ) -> None:
        self.path, self._timeout, self._left = str(path), timeout, timeout
        self._pool, self._streams, self._decoder = pool, 0, self._taken(pool)
        self.pixel_aspect, self.num_decoded = Fraction(1), 0
        try:
            opened = self._ask(
                "open",
                path=self.path,
                root=None if root is None else os.path.abspath(root),
                folder=_current_folder(),
                backend=backend,
                whole=whole,
                most_pixels=most_pixels,
            )
        except BaseException:
            self.close()
            raise
        self._num_frames, self.fps = int(opened["frames"]), float(opened["fps"])
        self.shortfall, self.note = opened["shortfall"], opened["note"]

    def __len__(self) -> int:
        return self._num_frames

    def __enter__(self) -> "GuardedReader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Give the process back for the next reader; one that is still at work is killed."""
        decoder, self._decoder = self._decoder, None
        if decoder is not None:
            self._pool.give(decoder)

    def times(self) -> list[Fraction]:
        """See VideoReader.times."""
        content = self._clip(self._ask("times"))
        return [Fraction(*pair) for pair in zip(*content.view(np.int64).tolist(), strict=True)]

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """See VideoReader.frames."""
        return self._clip(self._ask("frames", indices=np.asarray(indices, dtype=np.int64).tolist()))

    def stream(self) -> Iterator[np.ndarray]:
        """See VideoReader.stream. The next frames are decoded while these are looked at."""
        self._let_go()
        number = self._streams
        self._send("stream")
        while "last" not in (reply := self._receive()):
            clip = self._clip(reply)
            self._send("next")
            yield from clip
            if number != self._streams:
                raise RuntimeError(f"{self.path}: its reader was asked for something else in the midst of a stream")

    def _ask(self, verb: str, **arguments) -> dict:
        self._let_go()
        self._send(verb, **arguments)
        return self._receive()

    def _let_go(self) -> None:
        """End a stream that is under way, and wait for the frames that it has asked for."""
        self._streams += 1
        if self._decoder is not None and self._decoder.busy:
            with suppress(DecodeError):
                self._receive()

    def _send(self, verb: str, **arguments) -> None:
        with self._lost():
            self._open_decoder.send(verb, self._left, **arguments)

    def _receive(self) -> dict:
        """The answer; what it tells besides is kept."""
        with self._lost():
            decoder = self._open_decoder
            try:
                reply = decoder.receive()
            finally:
                self._left = decoder.left
        if "decoded" in reply:
            self.num_decoded, self.pixel_aspect = reply["decoded"], Fraction(*reply["aspect"])
        return reply

    def _clip(self, reply: dict) -> np.ndarray:
        """The frames that came with an answer. From here on there is the whole time for the next ones."""
        self._left = self._timeout
        return self._open_decoder.clip(reply["shape"])

    @property
    def _open_decoder(self) -> Decoder:
        if self._decoder is None:
            raise DecodeError(f"{self.path}: its reader is closed, or its decoder was lost")
        return self._decoder

    def _taken(self, pool: DecoderPool) -> Decoder | None:
        with self._lost():
            return pool.take()

    @contextmanager
    def _lost(self) -> Iterator[None]:
        """A decoder that is lost inside is a video that cannot be decoded."""
        try:
            yield
        except DecoderLost as reason:
            self._decoder = None
            raise DecodeError(f"{self.path}: {reason}") from None


def _current_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None


shared_pool = DecoderPool()
