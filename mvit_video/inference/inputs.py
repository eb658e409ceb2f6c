"""What a predictor takes for a video: a file in any form, or its frames in any form."""

# T frames, H/W pixels

import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

from mvit_video.data.video.frame_folders import MODES
from mvit_video.data.video.limits import short_reason
from mvit_video.errors import InputError

Picture: TypeAlias = np.ndarray | Tensor | Image.Image
Video: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | np.ndarray | Tensor | Sequence[Picture]

KINDS = (
    "expected a path, the bytes of a file, a file opened with 'rb', frames as a uint8 array or tensor (frames, height, width, 3) or "
    "(frames, 3, height, width), RGB, or a list of frames (uint8 arrays (height, width, 3) or PIL images)"
)


def several(videos: Any) -> Iterable[Video]:
    """One video as a list of one: a list of images is one video, a list of anything else is several."""
    if is_file(videos) or isinstance(videos, np.ndarray | Tensor):
        return [videos]
    if isinstance(videos, Sequence) and videos and is_picture(videos[0]):
        return [videos]
    if not isinstance(videos, Iterable) or isinstance(videos, dict | Image.Image):
        raise InputError(f"videos are of type {_kind(videos)}: {KINDS}; or several of these")
    return videos


def is_file(video: object) -> bool:
    """Whether a video comes as a file, to be decoded."""
    return isinstance(video, str | os.PathLike | bytes | bytearray | memoryview) or hasattr(video, "read")


def is_picture(item: object) -> bool:
    return isinstance(item, Image.Image) or (isinstance(item, np.ndarray | Tensor) and item.ndim == 3)


def name_of(video: Any) -> str:
    """How a video is called in predictions and errors."""
    if isinstance(video, str | os.PathLike):
        return os.fsdecode(video)
    if hasattr(video, "read"):
        name = getattr(video, "name", None)
        return name if isinstance(name, str) else "file"
    if isinstance(video, bytes | bytearray | memoryview):
        return "bytes"
    return {np.ndarray: "array", Tensor: "tensor"}.get(type(video), "frames")


@contextmanager
def as_path(video: Any) -> Iterator[str]:
    """A path of the file, inside; what has none is written to a temporary one."""
    if isinstance(video, str | os.PathLike):
        yield os.fsdecode(video)
        return
    with tempfile.TemporaryDirectory(prefix="mvit_video_predict_") as folder:
        place = Path(folder) / "video"
        with open(place, "wb") as copy:
            if hasattr(video, "read"):
                _copy(video, copy)
            else:
                copy.write(video)
        yield str(place)


def _copy(source: Any, copy: BinaryIO) -> None:
    """What is left to read of a file that a user has opened."""
    if isinstance(source, io.TextIOBase):
        raise InputError(f"{name_of(source)}: was opened as text, expected a file opened with 'rb'")
    try:
        while part := source.read(1 << 20):
            copy.write(part)
    except (ValueError, TypeError, io.UnsupportedOperation) as reason:  # it is closed, for writing, or no file of bytes
        raise InputError(f"{name_of(source)}: cannot be read ({reason}): {KINDS}") from None


def as_frames(video: Any) -> np.ndarray:
    """uint8 (T, H, W, 3) of frames in any form."""
    if isinstance(video, np.ndarray | Tensor):
        return _array(video)
    if not isinstance(video, Sequence):
        raise InputError(f"a video is of type {_kind(video)}: {KINDS}")
    frames = [_picture(item, number) for number, item in enumerate(video)]
    if not frames:
        raise InputError(f"a video is a list without frames: {KINDS}")
    for number, frame in enumerate(frames):
        if frame.shape != frames[0].shape:
            sizes = " and ".join(f"{shape[1]}×{shape[0]}" for shape in (frames[0].shape, frame.shape))
            raise InputError(f"frames 0 and {number} are {sizes} pixels: the frames of a video have one size")
    return np.stack(frames)


def _array(frames: np.ndarray | Tensor) -> np.ndarray:
    shape, dtype = tuple(frames.shape), str(frames.dtype).removeprefix("torch.")
    if len(shape) != 4 or dtype != "uint8" or 0 in shape or 3 not in (shape[-1], shape[1]):
        raise InputError(f"frames are {dtype} of shape {shape}: {KINDS}")
    array = frames.detach().cpu().numpy() if isinstance(frames, Tensor) else frames
    return array if shape[-1] == 3 else np.moveaxis(array, 1, -1)


def _picture(item: Any, number: int) -> np.ndarray:
    if not is_picture(item):
        raise InputError(f"frame {number} of a list is a {_kind(item)}: {KINDS}")
    if not isinstance(item, Image.Image):
        return _array(item[None])[0]
    if item.mode not in MODES:
        raise InputError(f"frame {number} has PIL's mode {item.mode}, expected 8 bits a channel, such as RGB")
    try:
        return np.asarray(item.convert("RGB"))
    except OSError as reason:  # PIL reads a file when its pixels are asked for
        raise InputError(f"frame {number} cannot be read ({short_reason(reason)})") from None


def _kind(thing: object) -> str:
    if isinstance(thing, np.ndarray | Tensor):
        return f"{type(thing).__name__} of shape {tuple(thing.shape)}"
    return type(thing).__name__
