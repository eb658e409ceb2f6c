"""Arrays shared between processes: by fork as they are, by spawn and forkserver through a memory-mapped file."""

import mmap
import multiprocessing.context
import os
import tempfile
from collections.abc import Sequence
from multiprocessing.reduction import DupFd

import numpy as np

ALIGNMENT = 64


class SharedArrays:
    """Read-only one-dimensional arrays.

    Pickled for a process that is being started, they are passed as an unnamed file that each process maps without a copy.
    Pickled for anything else, they are copied.
    """

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.arrays = tuple(arrays)
        for array in self.arrays:
            array.flags.writeable = False
        self._file: int | None = None

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)

    def __reduce__(self) -> tuple:
        if multiprocessing.context.get_spawning_popen() is None:
            return SharedArrays, (self.arrays,)
        if self._file is None:
            self._file = _file_of(self.arrays)
        return _mapped, (DupFd(self._file), [(array.dtype.str, len(array)) for array in self.arrays])


def _places(kinds: Sequence[tuple[str, int]]) -> list[int]:
    """Offset of each array in the file, and the end of the last one."""
    places = [0]
    for kind, length in kinds:
        size = np.dtype(kind).itemsize * length
        places.append(-(-(places[-1] + size) // ALIGNMENT) * ALIGNMENT)
    return places


def _file_of(arrays: Sequence[np.ndarray]) -> int:
    places = _places([(array.dtype.str, len(array)) for array in arrays])
    with tempfile.TemporaryFile(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as file:
        file.truncate(max(places[-1], 1))
        for place, array in zip(places, arrays, strict=False):
            file.seek(place)
            file.write(array.data)
        file.flush()
        return os.dup(file.fileno())


def _mapped(handle, kinds: Sequence[tuple[str, int]]) -> SharedArrays:
    number, places = handle.detach(), _places(kinds)
    try:
        memory = mmap.mmap(number, max(places[-1], 1), access=mmap.ACCESS_READ)
    finally:
        os.close(number)
    return SharedArrays(
        [np.frombuffer(memory, kind, length, place) for (kind, length), place in zip(kinds, places, strict=False)]
    )
