"""What runs in a guard's child: requests in, frames into shared memory, until the parent is gone.

The child is a fork: it starts in milliseconds, without importing anything. It never returns into the code that it was
forked from and touches nothing of it: foreign file handles are shut, signals are back to normal, and what was there
before is never collected. It dies with its parent, and by an alarm of its own where the system cannot promise that.
"""

import ctypes
import faulthandler
import gc
import json
import mmap
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection

import numpy as np

from mvit_video.data.video.limits import MAX_CLIP_BYTES
from mvit_video.data.video.reader import VideoReader
from mvit_video.errors import DecodeError

MEMORY = MAX_CLIP_BYTES + (4 << 30)  # what a child may take beyond what it was forked with: a clip, and decoding it
ALARM_AFTER = 1.0  # seconds after the parent's timeout: it kills first, if it lives
PR_SET_PDEATHSIG = 1
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


def be_the_child(pipe: Connection, memory: int, parent: int) -> None:
    """Serve and end; never returns."""
    try:
        _leave_the_parent(pipe.fileno(), memory, parent)
        Server(memory).serve(pipe)
    except (EOFError, ConnectionError):
        os._exit(0)
    except BaseException:
        with suppress(BaseException):
            traceback.print_exc()
            sys.stderr.flush()
    finally:
        os._exit(1)


class Server:
    """Answers one request after the other: `open`, `frames`, `stream`, `check`. One video is open at a time."""

    def __init__(self, memory: int) -> None:
        self._clip = SharedFrames(memory)
        self._reader: VideoReader | None = None
        self._stream: Iterator[np.ndarray] | None = None
        self._checking: Iterator[None] | None = None
        self._verbs = {"open": self._open, "frames": self._frames, "stream": self._next_frames, "check": self._check}

    def serve(self, pipe: Connection) -> None:
        while True:
            request = json.loads(pipe.recv_bytes())
            signal.setitimer(signal.ITIMER_REAL, request["timeout"] + ALARM_AFTER)
            reply = self._answer(request)
            signal.setitimer(signal.ITIMER_REAL, 0)
            pipe.send_bytes(json.dumps(reply).encode())

    def _answer(self, request: dict) -> dict:
        try:
            return self._verbs[request["verb"]](request)
        except DecodeError as reason:
            return {"bad": str(reason)}
        except MemoryError:
            path = self._reader.path if self._reader else request["path"]
            return {"bad": f"{path}: decoding it needs more than {MEMORY / 1e9:.1f} GB of memory"}
        except Exception:
            return {"failure": traceback.format_exc()}

    def _open(self, request: dict) -> dict:
        if self._reader is not None:
            self._reader.close()
            self._reader, self._stream, self._checking = None, None, None
        self._reader = VideoReader(request["path"], request["root"], request["backend"])
        return {"frames": len(self._reader), "fps": self._reader.fps}

    def _frames(self, request: dict) -> dict:
        assert self._reader is not None
        return {"shape": self._reader.frames(request["indices"], self._clip.resized).shape}

    def _next_frames(self, request: dict) -> dict:
        assert self._reader is not None
        if self._stream is None or request["start"] == 0:
            self._stream = self._reader.stream()
        first = next(self._stream)
        clip = self._clip.resized((request["count"], *first.shape))
        clip[0] = first
        for place in range(1, request["count"]):
            clip[place] = next(self._stream)
        return {"shape": clip.shape}

    def _check(self, request: dict) -> dict:
        """Go on checking (see VideoReader.check) for a while: whether it is done."""
        assert self._reader is not None
        if self._checking is None:
            self._checking = self._reader.checking()
        until = time.monotonic() + request["seconds"]
        while time.monotonic() < until:
            if next(self._checking, True):
                return {"done": True}
        return {"done": False}


class SharedFrames:
    """Memory that two processes have in common, for one clip. It is as large as the clip that is in it."""

    def __init__(self, memory: int) -> None:
        self._memory, self._mapped = memory, mmap.mmap(-1, 1)

    def resized(self, shape: tuple[int, ...]) -> np.ndarray:
        """Room for a clip, uint8."""
        try:
            os.ftruncate(self._memory, int(np.prod(shape)))
            return self.view(shape)
        except OSError as reason:
            raise MemoryError from reason

    def view(self, shape: tuple[int, ...]) -> np.ndarray:
        """The clip of this shape that is there. Clips of one size keep the mapping: a new one costs 2 ms."""
        size = int(np.prod(shape))
        if len(self._mapped) != size:
            self._mapped = mmap.mmap(self._memory, size)
        return np.frombuffer(self._mapped, np.uint8).reshape(shape)


def _leave_the_parent(pipe: int, memory: int, parent: int) -> None:
    gc.freeze()
    faulthandler.disable()
    _normal_signals()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    _shut_files({1, 2, pipe, memory})
    _limit_memory()


def _normal_signals() -> None:
    """As at the start of a program; what asks a program and its children to stop is the parent's to handle."""
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    for number in (*STOP_SIGNALS, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)


def _shut_files(kept: set[int]) -> None:
    """Point all other handles at nothing. Their numbers stay taken: an old object that closes one closes nothing of ours."""
    nothing = os.open(os.devnull, os.O_RDWR)
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    for number in map(int, os.listdir(folder)):
        if number not in kept and number != nothing:
            with suppress(OSError):
                os.dup2(nothing, number)


def _limit_memory() -> None:
    """No core dumps, and a limit relative to what the parent has mapped, which may be very much (CUDA)."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with suppress(OSError, ValueError):  # no /proc, or a stricter limit is there already
        with open("/proc/self/statm") as file:
            mapped = int(file.read().split()[0]) * mmap.PAGESIZE
        limit = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, limit))
