"""What a process and its decoding process have in common: messages over a socket, and memory for frames."""

import importlib
import json
import mmap
import os
import select
import socket
import struct
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

WAITING, GOING_ON = "waiting", "going on"  # around what may take for ever, in what a decoding process plays
MOST_FILES = 4  # that come with a message
LENGTH = struct.Struct("<Q")
CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class Channel:
    """JSON objects over one end of a socket, files with them. A message is whole or EOFError: the other end is gone."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, message: dict, files: Sequence[int] = (), timeout: float | None = None) -> None:
        """Raises OSError where nobody listens, TimeoutError where nobody takes it."""
        content = json.dumps(message).encode()
        content = LENGTH.pack(len(content)) + content
        self._end.settimeout(timeout)
        sent = socket.send_fds(self._end, [content], list(files)) if files else 0
        self._end.sendall(content[sent:])

    def receive(self, timeout: float | None = None) -> tuple[dict, list[int]]:
        """A message, and numbers of open files, which are the caller's to close."""
        self._end.settimeout(timeout)
        files: list[int] = []
        try:
            start, files, _, _ = socket.recv_fds(self._end, LENGTH.size, MOST_FILES, CLOSE_ON_EXEC)
            (length,) = LENGTH.unpack(start + self._exactly(LENGTH.size - len(start)))
            return json.loads(self._exactly(length)), files
        except BaseException as reason:
            for file in files:
                os.close(file)
            if isinstance(reason, ConnectionError):
                raise EOFError from None
            raise

    def _exactly(self, count: int) -> bytes:
        content = bytearray()
        while len(content) < count:
            part = self._end.recv(min(count - len(content), 1 << 20))
            if not part:
                raise EOFError
            content += part
        return bytes(content)

    def wait(self, seconds: float) -> bool:
        """Whether there is something to receive, be it the end, within this time."""
        if self._end.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        return bool(poll.poll(max(seconds, 0.0) * 1000))

    def hang_up(self) -> None:
        """End it for both sides and all copies, also in the midst of another thread's waiting."""
        with suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._end.close()


class SharedFrames:
    """Memory that two processes share, for one clip. It is as large as the clip that is in it."""

    def __init__(self, memory: int) -> None:
        self.memory, self._mapped = memory, mmap.mmap(-1, 1)

    def resized(self, shape: tuple[int, ...]) -> np.ndarray:
        """Room for a clip, uint8. Raises OSError where there is none."""
        os.ftruncate(self.memory, int(np.prod(shape)))
        return self.view(shape)

    def view(self, shape: tuple[int, ...]) -> np.ndarray:
        """The clip of this shape that is there. Clips of one size keep the mapping: a new one costs 2 ms."""
        size = int(np.prod(shape))
        if len(self._mapped) != size:
            self._mapped = mmap.mmap(self.memory, size)
        return np.frombuffer(self._mapped, np.uint8).reshape(shape)

    def close(self) -> None:
        if self.memory >= 0:
            os.close(self.memory)
            self.memory = -1


def new_memory() -> int:
    """An open file that lies in memory and nowhere else."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("frames")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def named_function(name: str) -> Any:
    """By module:name; only this package's own code says which."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)
