"""Read frames of videos. A reader returns the requested frames, or raises DecodeError.

A video is a file, or a folder of numbered images. The decoders are in pyav.py (the default), decord.py and
frame_folders.py; all return the same frames for a file, or refuse it. `guard.open_reader` provides the same reader in a
separate process, for files that may hang or crash the decoder.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from mvit_video.data.video.decord import DecordBackend
from mvit_video.data.video.frame_folders import FramesBackend
from mvit_video.data.video.limits import Unreadable, check_clip, short_reason
from mvit_video.data.video.pyav import PyAvBackend
from mvit_video.errors import DecodeError

Allocate = Callable[[tuple[int, ...]], np.ndarray]


class VideoReader:
    """The frames of one video.

    Args:
        path: a local file or frame folder. With `root`, relative to it, and refused if it leads out of it through `..`; links
            are followed.
        backend: "pyav", "decord" or "frames", or a function (file, root) -> Backend. A folder is always read as frames.
            decord has an old FFmpeg: use it only on files you trust.
        whole: False, for "pyav", also accepts a truncated file, up to where it ends; `reader.shortfall` then describes it.

    `len(reader)` is the number of frames, `reader.fps` the mean rate in frames per second (30 for frame folders).
    `reader.note` is a warning about a video that can be read, and usually empty.
    Raises DecodeError with the file and the reason, here or in the methods.
    """

    def __init__(
        self,
        path: str | Path,
        root: str | Path | None = None,
        backend: "str | MakeBackend" = "pyav",
        whole: bool = True,
    ) -> None:
        self.path, self.shortfall, self.note = str(path) or "''", "", ""
        try:
            file = existing(str(path), root)
            if not whole and backend == "pyav" and file.is_file():
                self._backend: Backend = PyAvBackend(file, root, whole=False)
                self.shortfall = self._backend.shortfall
            else:
                make = BACKENDS[backend] if isinstance(backend, str) else backend
                self._backend = (BACKENDS["frames"] if file.is_dir() else make)(file, root)
        except Unreadable as reason:
            raise DecodeError(f"{self.path}: {reason}") from None
        self.fps: float = self._backend.fps
        self.note = self._backend.note

    def __len__(self) -> int:
        return self._backend.num_frames

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._backend.close()

    def times(self) -> list[Fraction]:
        """Presentation times of the frames in seconds; evenly spaced if the file has none."""
        return self._backend.times() or [number / Fraction(self.fps) for number in range(len(self))]

    @property
    def pixel_aspect(self) -> Fraction:
        """Width over height of a pixel, in the orientation of the returned frames; 1 if the file does not state it."""
        return self._backend.pixel_aspect

    @property
    def num_pixels(self) -> int:
        """Pixels of a frame as the file states them; what is decoded tells."""
        return self._backend.num_pixels

    @property
    def num_decoded(self) -> int:
        """Number of frames decoded so far, including those not requested: the cost of reading."""
        return self._backend.num_decoded

    def frames(self, indices: Sequence[int] | np.ndarray, allocate: Allocate | None = None) -> np.ndarray:
        """Frames by number, in any order, repeats allowed: uint8 (T, H, W, 3), RGB.

        `allocate` allocates memory for a shape, once the frame size is known and checked.
        """
        requested = np.asarray(indices, dtype=np.int64)
        check_requested(self.path, requested, len(self))
        distinct, positions = np.unique(requested, return_inverse=True)
        clip: np.ndarray | None = None
        try:
            for position, picture in enumerate(self._backend.read(distinct.tolist())):
                if clip is None:
                    check_clip(len(requested), *picture.shape[:2])
                    clip = (allocate or _new_array)((len(requested), *picture.shape))
                _check_shape(picture, clip)
                clip[positions == position] = picture
        except Unreadable as reason:
            raise DecodeError(f"{self.path}: {reason}") from None
        assert clip is not None
        return clip

    def stream(self) -> Iterator[np.ndarray]:
        """Iterate over all frames, uint8 (H, W, 3); memory does not grow with the video."""
        try:
            yield from self._backend.stream()
        except Unreadable as reason:
            raise DecodeError(f"{self.path}: {reason}") from None

    def check(self) -> None:
        """Decode the whole video, but convert only the first frame; DecodeError if anything is wrong."""
        for _ in self.check_steps():
            pass

    def check_steps(self) -> Iterator[None]:
        """`check` as an iterator that yields after each frame, to observe its progress."""
        try:
            yield from self._backend.check()
        except Unreadable as reason:
            raise DecodeError(f"{self.path}: {reason}") from None


def check_requested(path: str, requested: np.ndarray, length: int) -> None:
    """Raise DecodeError unless these are numbers of frames of a video of that length."""
    if requested.ndim != 1 or requested.size == 0 or requested.min() < 0 or requested.max() >= length:
        raise DecodeError(f"{path}: frames {_shortened(requested)} were requested, it has 0 to {length - 1}")


def size_changed(path: str, old: tuple[int, ...], new: tuple[int, ...]) -> DecodeError:
    """The error of a video whose frames have other heights and widths than before."""
    return DecodeError(f"{path}: the frame size changes within the video, from {old[1]}×{old[0]} to {new[1]}×{new[0]}")


class FrameReader(Protocol):
    """What a dataset needs of an open video. All methods raise DecodeError with the video and the reason."""

    @property
    def path(self) -> str:
        """The name of the video in messages."""
        ...

    @property
    def fps(self) -> float:
        """The mean rate in frames per second."""
        ...

    @property
    def num_pixels(self) -> int:
        """Pixels of a frame, about: what memory frames will take, before one is decoded."""
        ...

    def __len__(self) -> int:
        """The number of frames."""
        ...

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Frames by number, in any order, repeats allowed: uint8 (T, H, W, 3), RGB."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> "FrameReader": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Reader(FrameReader, Protocol):
    """All of one open video: VideoReader in this process, or GuardedReader in another."""

    @property
    def shortfall(self) -> str:
        """What a truncated file lacks; empty for a complete one."""
        ...

    @property
    def note(self) -> str:
        """A warning about a video that can be read; usually empty."""
        ...

    @property
    def pixel_aspect(self) -> Fraction:
        """Width over height of a pixel of the frames returned so far."""
        ...

    @property
    def num_decoded(self) -> int:
        """Number of frames decoded so far, requested or not."""
        ...

    def stream(self) -> Iterator[np.ndarray]:
        """Every frame in order, uint8 (H, W, 3)."""
        ...

    def times(self) -> list[Fraction]:
        """Presentation times of the frames in seconds."""
        ...

    def __enter__(self) -> "Reader": ...


class Backend(Protocol):
    """Interface of decoders: frames by increasing, distinct numbers, or all of them, uint8 (H, W, 3)."""

    num_frames: int
    num_decoded: int
    fps: float
    pixel_aspect: Fraction
    note: str

    @property
    def num_pixels(self) -> int: ...

    def times(self) -> list[Fraction]: ...

    def read(self, numbers: list[int]) -> Iterator[np.ndarray]: ...

    def stream(self) -> Iterator[np.ndarray]: ...

    def check(self) -> Iterator[None]: ...

    def close(self) -> None: ...


MakeBackend = Callable[[Path, str | Path | None], Backend]
BACKENDS: dict[str, MakeBackend] = {
    "pyav": PyAvBackend,
    "decord": DecordBackend,
    "frames": FramesBackend,
}


def existing(path: str, root: str | Path | None) -> Path:
    """Absolute path of a file or folder, which no decoder can mistake for a URL."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path):
        raise Unreadable("is a URL, expected a local file: download it first")
    if not path:
        raise Unreadable("is an empty path, expected a video: is a variable of your shell unset?")
    if "\0" in path:
        raise Unreadable("no such file")
    file = Path(path) if root is None else Path(root) / path
    try:
        if root is not None and (Path(path).is_absolute() or ".." in Path(path).parts):
            raise Unreadable(f"leads out of data.root = {root}: write paths relative to it, without '..'")
        if file.is_dir():
            return file.absolute()
        if not file.exists():
            raise Unreadable("no such file")
        if not file.is_file():
            raise Unreadable("is not a file")
        if file.stat().st_size == 0:
            raise Unreadable("the file is empty (0 bytes)")
    except (OSError, RuntimeError) as reason:  # RuntimeError: a link to itself
        raise Unreadable(f"cannot be opened ({short_reason(reason)})") from None
    return file.absolute()


def _new_array(shape: tuple[int, ...]) -> np.ndarray:
    return np.empty(shape, np.uint8)


def _check_shape(picture: np.ndarray, clip: np.ndarray) -> None:
    if picture.shape != clip.shape[1:]:
        (height, width), (old_height, old_width) = picture.shape[:2], clip.shape[1:3]
        raise Unreadable(f"the frame size changes within the video, from {old_width}×{old_height} to {width}×{height}")


def _shortened(requested: np.ndarray) -> str:
    numbers = requested.ravel().tolist()
    return str(numbers) if len(numbers) <= 16 else f"[{numbers[0]}, ..., {numbers[-1]}]"
