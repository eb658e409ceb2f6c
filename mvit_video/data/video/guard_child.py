"""What runs in a decoding process: requests in, frames into shared memory, until the other end is gone.

It is a fork of the launcher (guard_launcher.py), never of the program that wants frames: nothing of that program is in it.
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

from mvit_video.data.video.guard_channel import GOING_ON, WAITING, Channel, SharedFrames, named_function, new_memory
from mvit_video.data.video.reader import VideoReader
from mvit_video.errors import ConfigError, DecodeError

CHUNK_FRAMES, CHUNK_BYTES, CHUNK_SECONDS = 8, 32 << 20, 0.5  # of the frames that `next` gives at once
PR_SET_PDEATHSIG = 1


def be_the_child(end: socket.socket) -> NoReturn:
    """Serve and end; never returns."""
    parent, channel = os.getppid(), Channel(end)
    try:
        _bind_to(parent)
        hello, _ = channel.receive()
        os.environ.clear()
        os.environ.update(hello["environment"])
        _limit_memory(hello["memory"])
        for module in hello["imports"]:
            importlib.import_module(module)
        Server(channel, hello["memory"]).serve()
    except (EOFError, ConnectionError):
        os._exit(0)  # nobody listens any more
    except BaseException:
        with suppress(BaseException):
            channel.send({"failure": traceback.format_exc()}, timeout=1.0)
    finally:
        os._exit(1)


class Server:
    """Answers one request after the other. One video is open at a time, one thing plays, and one job is worked at."""

    def __init__(self, channel: Channel, memory_limit: int) -> None:
        self._channel, self._memory_limit = channel, memory_limit
        self._clip = SharedFrames(new_memory())
        self._video: VideoReader | None = None
        self._name, self._most_pixels = "", 0
        self._playing: Iterator[Any] = iter(())
        self._put_back: list[Any] = []  # of what plays: it comes with the next answer
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
        """The other side keeps the clip of the last answer."""
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
        self, path: str, root: str | None, folder: str | None, backend: str, whole: bool, most_pixels: int
    ) -> dict:
        """`folder` is where a relative path starts from; frames of more than `most_pixels` are refused."""
        if self._video is not None:
            self._video.close()
        self._video, self._playing, self._put_back = None, iter(()), []
        self._name, self._most_pixels = path, most_pixels
        if folder is not None:
            with suppress(OSError):
                os.chdir(folder)
        self._video = VideoReader(path, root, backend, whole)
        os.chdir("/")
        return self._learned() | {
            "frames": len(self._video),
            "fps": self._video.fps,
            "shortfall": self._video.shortfall,
            "note": self._video.note,
        }

    def _learned(self) -> dict:
        """What a reader knows better with every frame."""
        aspect = self._opened.pixel_aspect
        return {"decoded": self._opened.num_decoded, "aspect": (aspect.numerator, aspect.denominator)}

    @property
    def _opened(self) -> VideoReader:
        assert self._video is not None
        return self._video

    def _frames(self, indices: list[int]) -> dict:
        return {"shape": self._opened.frames(indices, self._room_for_pictures).shape} | self._learned()

    def _times(self) -> dict:
        """Numerators and denominators of all times, as bytes."""
        times = self._opened.times()
        try:
            parts = [[time.numerator for time in times], [time.denominator for time in times]]
            content = np.array(parts, np.int64).view(np.uint8)
        except OverflowError:
            raise DecodeError(f"{self._name}: its frame times are out of range") from None
        self._room(content.shape)[:] = content
        return {"shape": content.shape}

    def _stream(self) -> dict:
        self._playing, self._put_back = enumerate(self._opened.stream()), []
        return self._next()

    def _play(self, function: str, arguments: list) -> dict:
        """Play what is no file: `function` yields a dictionary about it, then (number, frame), WAITING or GOING_ON."""
        self._playing, self._put_back = named_function(function)(*arguments), []
        self._name, self._most_pixels = arguments[0], 0
        return self._next()

    def _next(self) -> dict:
        """Frames of one shape, at least one, until there are enough of them, time is up, or the source is silent."""
        numbers, clip, until = list[int](), np.empty(0, np.uint8), time.monotonic() + CHUNK_SECONDS
        try:
            while not numbers or (len(numbers) < len(clip) and time.monotonic() < until):
                item = self._next_item()
                if isinstance(item, dict):
                    return {"about": item}
                if numbers and (item in (WAITING, GOING_ON) or item[1].shape != clip.shape[1:]):
                    self._put_back.append(item)
                    break
                if item in (WAITING, GOING_ON):
                    self._channel.send({"waiting": item == WAITING})
                    continue
                number, frame = item
                if not numbers:
                    most = min(max(CHUNK_BYTES // frame.nbytes, 1), CHUNK_FRAMES)
                    clip = self._room_for_pictures((most, *frame.shape))
                clip[len(numbers)] = frame
                numbers.append(number)
        except StopIteration:
            if not numbers:
                return {"last": True}
        except DecodeError as reason:
            if not numbers:
                raise
            self._put_back.append(reason)
        learned = self._learned() if self._video is not None else {}
        return {"numbers": numbers, "shape": (len(numbers), *clip.shape[1:])} | learned

    def _next_item(self) -> Any:
        item = self._put_back.pop() if self._put_back else next(self._playing)
        if isinstance(item, DecodeError):
            raise item
        return item

    def _work(self, seconds: float, name: str = "", function: str = "", arguments: Sequence = ()) -> dict:
        """Begin a job, or go on with it for some time: `function` yields as often as it can, and returns its result."""
        if function:
            self._name, self._job = name, named_function(function)(*arguments)
        until = time.monotonic() + seconds
        try:
            while time.monotonic() < until:
                next(self._job)
        except StopIteration as end:
            return {"done": True, "result": end.value}
        return {"done": False}

    def _room_for_pictures(self, shape: tuple[int, ...]) -> np.ndarray:
        """Shared memory for frames (T, H, W, 3) of a size that is allowed."""
        if self._most_pixels and shape[1] * shape[2] > self._most_pixels:
            raise DecodeError(
                f"{self._name}: its frames of {shape[2]}×{shape[1]} pixels are above the limit of "
                f"{self._most_pixels:,} pixels"
            )
        return self._room(shape)

    def _room(self, shape: tuple[int, ...]) -> np.ndarray:
        """Shared memory, uint8."""
        try:
            return self._clip.resized(shape)
        except OSError as reason:
            if reason.errno == EFBIG:
                raise ConfigError(
                    f"{self._name}: {int(np.prod(shape)):,} bytes of frames are above this shell's limit on the size "
                    "of files: raise it with ulimit -f"
                ) from None
            raise MemoryError from reason


def check_video(path: str, root: str, backend: str) -> Generator[None, None, str]:
    """A job: all of a video, decoded; its note. DecodeError where anything is not as it should be."""
    with VideoReader(path, root, backend) as reader:
        yield from reader.check_steps()
        return reader.note


def _bind_to(parent: int) -> None:
    """Die with the launcher, where the system can promise that."""
    faulthandler.disable()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _limit_memory(limit: int) -> None:
    """No core dumps, and not more memory than the limit and what is mapped already."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with suppress(OSError, ValueError):  # no /proc, or a stricter limit is there already
        with open("/proc/self/statm") as file:
            mapped = int(file.read().split()[0]) * mmap.PAGESIZE
        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (mapped + limit, most))
