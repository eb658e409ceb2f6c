"""Runs in a decoding process: receives requests and writes frames to shared memory until the other end closes.

It is forked from the launcher (guard_launcher.py), never from the program itself, and inherits nothing of the program.
"""

import ctypes
import faulthandler
import importlib
import mmap
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from errno import EFBIG
from typing import Any, NoReturn

import numpy as np

from mvit_video.data.video.guard_channel import RESUMED, WAITING, Channel, SharedFrames, load_function, new_memory
from mvit_video.data.video.reader import VideoReader
from mvit_video.errors import ConfigError, DecodeError

CHUNK_FRAMES, CHUNK_BYTES, CHUNK_SECONDS = 8, 32 << 20, 0.5  # limits of the frames in one reply to `next`
PR_SET_PDEATHSIG = 1


def run_child(end: socket.socket) -> NoReturn:
    """Serve requests, then exit."""
    parent, channel = os.getppid(), Channel(end)
    try:
        _die_with(parent)
        hello, _ = channel.receive()
        os.environ.clear()
        os.environ.update(hello["environment"])
        _limit_memory(hello["memory"])
        for module in hello["imports"]:
            importlib.import_module(module)
        Server(channel, hello["memory"]).serve()
    except (EOFError, ConnectionError):
        os._exit(0)  # the peer is gone
    except BaseException:
        with suppress(BaseException):
            channel.send({"failure": traceback.format_exc()}, timeout=1.0)
    finally:
        os._exit(1)


class Server:
    """Answers requests one by one. Holds one open video, one iterator of frames and one job."""

    def __init__(self, channel: Channel, memory_limit: int) -> None:
        self._channel, self._memory_limit = channel, memory_limit
        self._clip = SharedFrames(new_memory())
        self._video: VideoReader | None = None
        self._name, self._max_pixels = "", 0
        self._items: Iterator[Any] = iter(())
        self._pending: list[Any] = []  # items of `_items` that were read too early
        self._job: Iterator[None] = iter(())
        self._verbs: dict[str, Callable[..., dict]] = {
            "ping": dict,
            "open": self._open,
            "frames": self._frames,
            "times": self._times,
            "stream": self._stream,
            "play": self._play,
            "next": self._next,
            "work": self._work,
        }

    def serve(self) -> NoReturn:
        self._channel.send({"child": os.getpid()}, (self._clip.memory,))
        while True:
            request, files = self._channel.receive()
            memory = self._new_clip() if request.pop("keep") else ()
            self._channel.send(self._answer(request, files), memory)

    def _new_clip(self) -> tuple[int, ...]:
        """Allocate new shared memory: the peer keeps using that of the last reply."""
        self._clip.close()
        self._clip = SharedFrames(new_memory())
        return (self._clip.memory,)

    def _answer(self, request: dict, files: Sequence[int]) -> dict:
        try:
            for number, file in enumerate(files):
                os.dup2(file, number)
                os.close(file)
            return self._verbs[request.pop("verb")](**request)
        except DecodeError as reason:
            return {"bad": str(reason)}
        except MemoryError:
            return {"bad": f"{self._name}: decoding it needs more than {self._memory_limit / 1e9:.1f} GB of memory"}
        except ConfigError as reason:
            return {"refused": str(reason)}
        except Exception:
            return {"failure": traceback.format_exc()}

    def _open(
        self, path: str, root: str | None, folder: str | None, backend: str, whole: bool, max_pixels: int
    ) -> dict:
        """`folder` is the base of relative paths; frames above `max_pixels` are refused."""
        if self._video is not None:
            self._video.close()
        self._video, self._items, self._pending = None, iter(()), []
        self._name, self._max_pixels = path, max_pixels
        if folder is not None:
            with suppress(OSError):
                os.chdir(folder)
        self._video = VideoReader(path, root, backend, whole)
        os.chdir("/")
        return self._progress() | {
            "frames": len(self._video),
            "pixels": self._video.num_pixels,
            "fps": self._video.fps,
            "shortfall": self._video.shortfall,
            "note": self._video.note,
        }

    def _progress(self) -> dict:
        """What a reader updates with every frame."""
        aspect = self._reader.pixel_aspect
        return {"decoded": self._reader.num_decoded, "aspect": (aspect.numerator, aspect.denominator)}

    @property
    def _reader(self) -> VideoReader:
        assert self._video is not None
        return self._video

    def _frames(self, indices: list[int]) -> dict:
        return {"shape": self._reader.frames(indices, self._allocate_frames).shape} | self._progress()

    def _times(self) -> dict:
        """Numerators and denominators of all times, as bytes."""
        times = self._reader.times()
        try:
            parts = [[time.numerator for time in times], [time.denominator for time in times]]
            content = np.array(parts, np.int64).view(np.uint8)
        except OverflowError:
            raise DecodeError(f"{self._name}: its frame times are out of range") from None
        self._allocate(content.shape)[:] = content
        return {"shape": content.shape}

    def _stream(self) -> dict:
        self._items, self._pending = enumerate(self._reader.stream()), []
        return self._next()

    def _play(self, function: str, arguments: list) -> dict:
        """Iterate over `function`, which yields a dictionary about its source, then (number, frame), WAITING or RESUMED."""
        self._items, self._pending = load_function(function)(*arguments), []
        self._name, self._max_pixels = arguments[0], 0
        return self._next()

    def _next(self) -> dict:
        """At least one frame, and more of the same shape until the chunk is full, time is up, or the source blocks."""
        numbers, clip, deadline = list[int](), np.empty(0, np.uint8), time.monotonic() + CHUNK_SECONDS
        try:
            while not numbers or (len(numbers) < len(clip) and time.monotonic() < deadline):
                item = self._next_item()
                if isinstance(item, dict):
                    return {"about": item}
                if numbers and (item in (WAITING, RESUMED) or item[1].shape != clip.shape[1:]):
                    self._pending.append(item)
                    break
                if item in (WAITING, RESUMED):
                    self._channel.send({"waiting": item == WAITING})
                    continue
                number, frame = item
                if not numbers:
                    count = min(max(CHUNK_BYTES // frame.nbytes, 1), CHUNK_FRAMES)
                    clip = self._allocate_frames((count, *frame.shape))
                clip[len(numbers)] = frame
                numbers.append(number)
        except StopIteration:
            if not numbers:
                return {"last": True}
        except DecodeError as reason:
            if not numbers:
                raise
            self._pending.append(reason)
        progress = self._progress() if self._video is not None else {}
        return {"numbers": numbers, "shape": (len(numbers), *clip.shape[1:])} | progress

    def _next_item(self) -> Any:
        item = self._pending.pop() if self._pending else next(self._items)
        if isinstance(item, DecodeError):
            raise item
        return item

    def _work(self, seconds: float, name: str = "", function: str = "", arguments: Sequence = ()) -> dict:
        """Start a job (with `function`, a generator that yields often and returns its result) or continue it for `seconds`."""
        if function:
            self._name, self._job = name, load_function(function)(*arguments)
        deadline = time.monotonic() + seconds
        try:
            while time.monotonic() < deadline:
                next(self._job)
        except StopIteration as end:
            return {"done": True, "result": end.value}
        return {"done": False}

    def _allocate_frames(self, shape: tuple[int, ...]) -> np.ndarray:
        """Shared memory for frames (T, H, W, 3), after checking their size."""
        if self._max_pixels and shape[1] * shape[2] > self._max_pixels:
            raise DecodeError(
                f"{self._name}: its frames of {shape[2]}×{shape[1]} pixels are above the limit of "
                f"{self._max_pixels:,} pixels"
            )
        return self._allocate(shape)

    def _allocate(self, shape: tuple[int, ...]) -> np.ndarray:
        """Shared memory, uint8."""
        try:
            return self._clip.allocate(shape)
        except OSError as reason:
            if reason.errno == EFBIG:
                raise ConfigError(
                    f"{self._name}: {int(np.prod(shape)):,} bytes of frames are above this shell's limit on the size "
                    "of files: raise it with ulimit -f"
                ) from None
            raise MemoryError from reason


def check_video(path: str, root: str, backend: str) -> Generator[None, None, str]:
    """A job that decodes a whole video and returns its note. Raises DecodeError if anything is wrong."""
    with VideoReader(path, root, backend) as reader:
        yield from reader.check_steps()
        return reader.note


def _die_with(parent: int) -> None:
    """Exit with the launcher, where the system supports that."""
    faulthandler.disable()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _limit_memory(limit: int) -> None:
    """Disable core dumps, and limit memory beyond what is mapped already."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with suppress(OSError, ValueError):  # no /proc, or a stricter limit is set already
        with open("/proc/self/statm") as file:
            mapped = int(file.read().split()[0]) * mmap.PAGESIZE
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (mapped + limit, hard))
