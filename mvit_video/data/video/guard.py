"""A decoder in a process of its own: one that hangs or dies costs a video and a limited time, never the run.

`open_reader` gives what VideoReader gives. The work is done by a child that each process (a loader's worker, say) starts
once and keeps, and that is killed and started again after a failure; guard_child.py is what runs in it. Frames come back
through shared memory. Where a system cannot fork (Windows), the calling process decodes, unguarded.
"""

import json
import os
import signal
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Pipe
from multiprocessing.util import Finalize
from pathlib import Path

import numpy as np

from mvit_video.data.video.guard_child import SharedFrames, be_the_child
from mvit_video.data.video.reader import VideoReader
from mvit_video.errors import DecodeError

STREAM_FRAMES = 8  # frames that `stream` fetches at once
CAN_FORK = hasattr(os, "fork")
REAP_SECONDS = 0.5  # a child that reads from a dead network disk cannot be killed: it is not waited for any longer


def open_reader(
    path: str | Path, root: str | Path | None = None, backend: str = "pyav", timeout: float = 60.0
) -> "VideoReader | GuardedReader":
    """A reader of one video that cannot hang or crash this process; a plain VideoReader where `timeout` is 0.

    `timeout` seconds are allowed for opening and the first `frames` together, and for each later call.
    """
    if not timeout or not CAN_FORK:
        return VideoReader(path, root, backend)
    return GuardedReader(path, root, backend, timeout)


class GuardedReader:
    """VideoReader's interface, with the decoder in a child. One reader at a time is open in a child."""

    def __init__(self, path: str | Path, root: str | Path | None, backend: str, timeout: float) -> None:
        self.path, self._timeout, self._left = str(path), timeout, timeout
        self._decoder: Decoder | None = _idle_decoder()
        try:
            opened = self._ask(**open_request(path, root, backend))
        except BaseException:
            self.close()
            raise
        self._num_frames, self.fps = int(opened["frames"]), float(opened["fps"])

    def __len__(self) -> int:
        return self._num_frames

    def __enter__(self) -> "GuardedReader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Give the child back for the next reader; one that is still at work is killed."""
        decoder, self._decoder = self._decoder, None
        if decoder is not None and decoder.busy:
            decoder.kill()
        elif decoder is not None:
            _idle.append(decoder)

    def frames(self, indices) -> np.ndarray:
        """See VideoReader.frames."""
        return self._clip(verb="frames", indices=np.asarray(indices, dtype=np.int64).tolist())

    def stream(self) -> Iterator[np.ndarray]:
        """See VideoReader.stream."""
        for start in range(0, len(self), STREAM_FRAMES):
            yield from self._clip(verb="stream", start=start, count=min(STREAM_FRAMES, len(self) - start))

    def _clip(self, **request) -> np.ndarray:
        shape = self._ask(**request)["shape"]
        self._left = self._timeout
        assert self._decoder is not None
        return self._decoder.shared_clip(shape)

    def _ask(self, **request) -> dict:
        if self._decoder is None:
            raise DecodeError(f"{self.path}: its reader is closed, or its decoder was lost")
        start = time.monotonic()
        try:
            self._decoder.send(request, max(self._left, 0.0))
            return self._decoder.receive()
        except DecoderLost as reason:
            self._decoder = None
            raise DecodeError(f"{self.path}: {reason}") from None
        finally:
            self._left -= time.monotonic() - start


def open_request(path: str | Path, root: str | Path | None, backend: str) -> dict:
    """Opens a video in a child.

    A child keeps the current folder that it was started in, so the root is told as it is seen from here.
    """
    root = None if root is None else os.path.abspath(root)
    return {"verb": "open", "path": str(path), "root": root, "backend": backend}


class DecoderLost(Exception):
    """A child did not answer in time, or died. It is gone; the reason is said without the file's name."""


class Decoder:
    """A child that decodes. One request at a time: `send`, then `receive` within the time that `send` allowed.

    `fileno` and `deadline` are for those who wait for several children at once.
    """

    def __init__(self) -> None:
        self.busy, self.deadline, self._timeout = False, float("inf"), 0.0
        self._memory = _shared_memory()
        self._clip = SharedFrames(self._memory)
        self._pipe, theirs = Pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            be_the_child(theirs, self._memory, parent)
        theirs.close()
        self._ending = Finalize(self, _end, (self.pid, self._memory), exitpriority=20)
        _decoders.add(self)

    def fileno(self) -> int:
        return self._pipe.fileno()

    def send(self, request: dict, timeout: float) -> None:
        self.busy, self._timeout, self.deadline = True, timeout, time.monotonic() + timeout
        try:
            self._pipe.send_bytes(json.dumps(request | {"timeout": timeout}).encode())
        except OSError:
            raise self._lost() from None

    def receive(self) -> dict:
        """The answer. Raises DecodeError where the video is bad, DecoderLost where there is none in time."""
        try:
            if not self._pipe.poll(max(self.deadline - time.monotonic(), 0.0)):
                self.kill()
                raise DecoderLost(f"the decoder did not answer within {self._timeout:.3g} s")
            reply = json.loads(self._pipe.recv_bytes())
        except (EOFError, ConnectionError):
            raise self._lost() from None
        self.busy, self.deadline = False, float("inf")
        if "failure" in reply:
            raise RuntimeError(f"in the decoder's process:\n{reply['failure']}")
        if "bad" in reply:
            raise DecodeError(reply["bad"])
        return reply

    def shared_clip(self, shape: list[int]) -> np.ndarray:
        """A copy of the frames that the last answer left in shared memory."""
        return self._clip.view(tuple(shape)).copy()

    @property
    def alive(self) -> bool:
        """Whether an idle child is still there: its pipe is readable only once it is closed."""
        return not self._pipe.closed and not self._pipe.poll(0)

    def kill(self) -> int | None:
        """End the child; its status where it could be had."""
        self._ending.cancel()
        _decoders.discard(self)
        self._pipe.close()
        return _end(self.pid, self._memory)

    def abandon(self) -> None:
        """After a fork, in the new process: let go of what belongs to the old one."""
        self._ending.cancel()
        self._pipe.close()
        os.close(self._memory)

    def _lost(self) -> DecoderLost:
        late = time.monotonic() >= self.deadline
        status = self.kill()
        number = os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else 0
        if late or number == signal.SIGALRM:
            return DecoderLost(f"the decoder did not answer within {self._timeout:.3g} s")
        return DecoderLost(f"the decoder died ({signal.Signals(number).name if number else 'its process ended'})")


_idle: list[Decoder] = []
_decoders: "weakref.WeakSet[Decoder]" = weakref.WeakSet()


def _idle_decoder() -> Decoder:
    """A child of this process that waits for work, or a new one."""
    while _idle:
        decoder = _idle.pop()
        if decoder.alive:
            return decoder
        decoder.kill()
    return Decoder()


def _shared_memory() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("frames")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _end(pid: int, memory: int) -> int | None:
    """Kill a child and take its status, without waiting for one that the system cannot end."""
    with suppress(OSError):
        os.close(memory)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + REAP_SECONDS
    while time.monotonic() < deadline:
        try:
            found, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return None
        if found:
            return status
        time.sleep(0.002)
    return None


def _forget_children() -> None:
    """A forked process has children of its own to start; those of its parent are not its business."""
    _idle.clear()
    for decoder in list(_decoders):
        decoder.abandon()
    _decoders.clear()


if CAN_FORK:
    os.register_at_fork(after_in_child=_forget_children)
