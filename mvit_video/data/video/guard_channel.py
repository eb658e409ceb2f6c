"""What a program and its decoding processes share: messages over a socket, and memory for frames."""

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

WAITING, RESUMED = "waiting", "resumed"  # yielded by a source around what may block for ever
MAX_FILES = 4  # per message
LENGTH = struct.Struct("<Q")
CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class Channel:
    """JSON messages with file descriptors over a socket. Raises EOFError when the peer is gone."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, message: dict, files: Sequence[int] = (), timeout: float | None = None) -> None:
        """Raises OSError if the peer is gone, TimeoutError if it does not read."""
        content = json.dumps(message).encode()
        content = LENGTH.pack(len(content)) + content
        self._end.settimeout(timeout)
        sent = socket.send_fds(self._end, [content], list(files)) if files else 0
        self._end.sendall(content[sent:])

    def receive(self, timeout: float | None = None) -> tuple[dict, list[int]]:
        """A message and its file descriptors, which the caller must close."""
        self._end.settimeout(timeout)
        files: list[int] = []
        try:
            start, files, _, _ = socket.recv_fds(self._end, LENGTH.size, MAX_FILES, CLOSE_ON_EXEC)
            (length,) = LENGTH.unpack(start + self._receive_exactly(LENGTH.size - len(start)))
            return json.loads(self._receive_exactly(length)), files
        except BaseException as reason:
            for file in files:
                os.close(file)
            if isinstance(reason, ConnectionError):
                raise EOFError from None
            raise

    def _receive_exactly(self, count: int) -> bytes:
        content = bytearray()
        while len(content) < count:
            part = self._end.recv(min(count - len(content), 1 << 20))
            if not part:
                raise EOFError
            content += part
        return bytes(content)

    def wait(self, seconds: float) -> bool:
        """Whether a message, or the end of the stream, arrives within this time."""
        if self._end.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        return bool(poll.poll(max(seconds, 0.0) * 1000))

    def shut_down(self) -> None:
        """Shut down both directions for all copies of the socket, even while another thread waits."""
        with suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._end.close()


class SharedFrames:
    """Memory shared by two processes, the size of one clip."""

    def __init__(self, memory: int) -> None:
        self.memory, self._mapped = memory, mmap.mmap(-1, 1)

    def allocate(self, shape: tuple[int, ...]) -> np.ndarray:
        """Resize for a clip, uint8. Raises OSError if there is no memory."""
        os.ftruncate(self.memory, int(np.prod(shape)))
        return self.view(shape)

    def view(self, shape: tuple[int, ...]) -> np.ndarray:
        """View the memory as a clip. The mapping is reused for clips of equal size: a new one costs 2 ms."""
        size = int(np.prod(shape))
        if len(self._mapped) != size:
            self._mapped = mmap.mmap(self.memory, size)
        return np.frombuffer(self._mapped, np.uint8).reshape(shape)

    def close(self) -> None:
        if self.memory >= 0:
            os.close(self.memory)
            self.memory = -1


def new_memory() -> int:
    """Descriptor of an anonymous file, in memory if possible."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("frames")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def load_function(name: str) -> Any:
    """Import `module:name`; names come only from this package's own code."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)
