"""A decoder whose trouble is named in the file, for `DecoderPool(imports=["misbehaving"])`, and jobs that make trouble.

`spin` happens when a `.bad` file is opened, `late-spin` when frames are read, `mid-spin` at the fifth frame of a stream. Other
files are read as always.
"""

import os
import signal
import time

import numpy as np

from mvit_video.data.video import reader
from mvit_video.errors import DecodeError

ORDINARY = reader.BACKENDS["pyav"]


class Misbehaving:
    num_frames, num_pixels, num_decoded, fps, pixel_aspect, shortfall, note = 10, 1, 0, 25.0, 1, "", ""

    def __init__(self, file, root=None, whole=True) -> None:
        self.trouble = file.read_text()
        self._happen("")

    def _happen(self, when: str) -> None:
        if self.trouble == f"{when}spin":
            while True:
                pass
        if self.trouble == f"{when}die":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.trouble == f"{when}exit":
            os._exit(3)
        if self.trouble == f"{when}eat":
            self.eaten = [np.zeros(1 << 28, np.uint8) for _ in range(6)]
        if self.trouble == f"{when}bug":
            raise IndexError("a mistake of ours")

    def times(self):
        return []

    def read(self, expected):
        self._happen("late-")
        yield from np.zeros((len(expected), 4, 6, 3), np.uint8)

    def stream(self):
        for number in range(self.num_frames):
            if number == 5:
                self._happen("mid-")
            yield np.full((1200, 1600, 3), number, np.uint8)  # so large that not all come at once

    def check(self):
        for number in range(self.num_frames):
            time.sleep(0.1 if "slow" in self.trouble else 0)
            if number == 5:
                self._happen("mid-")
                self._happen("slow-")
            yield

    def close(self) -> None:
        pass


def _either(file, root=None, **words):
    return (Misbehaving if file.suffix == ".bad" else ORDINARY)(file, root, **words)


reader.BACKENDS["pyav"] = _either


def slow(seconds: float):
    """Goes on for longer than it ever is silent."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.05)
        yield
    return {"child": os.getpid()}


def hang():
    yield
    time.sleep(600)


def die():
    yield
    os.kill(os.getpid(), signal.SIGSEGV)


def bad():
    yield
    raise DecodeError("x.mp4: is bad")


def mistake():
    yield
    raise ZeroDivisionError("ours")


def no_room(*_):
    yield
    return {"stopped": "full"}
