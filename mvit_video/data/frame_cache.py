"""Decoded frames kept in a folder, so that later epochs, runs and processes decode nothing.

A kept video is a file of safetensors with one tensor, `frames`, uint8 (T, H, W, 3); its metadata say what it was made of, its
rate and a CRC-32. Its name is a digest of what it was made of, so a video that changes is another entry. Files appear whole;
one that is damaged later is decoded anew. Samples are the same to the bit with and without the folder.
"""

import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Sequence
from contextlib import closing, suppress
from math import prod
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from safetensors.numpy import save

from mvit_video.config.schema import DecodingSettings
from mvit_video.data.scaled_videos import PART_BYTES, ScaledVideos
from mvit_video.data.video.limits import Unreadable
from mvit_video.data.video.reader import FrameReader, check_requested, existing
from mvit_video.data.video.source import VideoSource, video_files_from
from mvit_video.errors import ConfigError, DecodeError
from mvit_video.paths import UNFINISHED, unfinished

LARGEST_SHARE = 64  # a video of more than this part of the bound is not kept: it would be decoded whole for one clip
LOOK_SHARE = 16  # of the room left, after which a process looks again at what others have written
SPARE_BYTES = 1 << 30  # of the disk that are left to others
LEFT_SECONDS = 3600  # after which an unfinished file is a killed process's
GIB = 1 << 30
CURE = "name another folder, or null to decode in every epoch"
# What reading a file raises that is cut or has changed
DAMAGED = (ValueError, KeyError, TypeError, OverflowError, RecursionError, DecodeError)


def training_source(root: str, settings: DecodingSettings) -> VideoSource:
    """Where training and its validations open videos: files under `root`, scaled and kept as the settings say.

    Raises ConfigError where frames cannot be kept in the folder.
    """
    videos = ScaledVideos(video_files_from(root, settings), settings.decoded_side)
    if settings.cache is None:
        return videos
    _check_writable(settings.cache)
    folder = Path(settings.cache).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise ConfigError(f"data.cache = {settings.cache}: cannot be created ({reason.strerror}): {CURE}") from None
    return FrameCache(videos, folder, round(settings.cache_gib * GIB))


def cache_room(settings: DecodingSettings) -> float:
    """GiB of frames that `settings.cache` can come to hold, with what is there: less than the bound on a full disk.

    Raises ConfigError where frames cannot be kept in the folder; creates nothing.
    """
    assert settings.cache is not None
    place, folder = _check_writable(settings.cache), Path(settings.cache).absolute()
    try:
        room = shutil.disk_usage(place).free - SPARE_BYTES
        held = sum(file.stat().st_size for file in folder.iterdir()) if place == folder else 0
    except OSError:
        return settings.cache_gib
    return min(settings.cache_gib, max(held + room, 0) / GIB)


def _check_writable(cache: str) -> Path:
    """The folder `cache`, or the nearest one above it that is there. Raises ConfigError where no files can be created in it."""
    folder = Path(cache).absolute()
    place = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    if not place.is_dir():
        what = "a file" if place.exists() else "a link to nothing"
        raise ConfigError(f"data.cache = {cache}: {place} is {what}: {CURE}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"data.cache = {cache}: no files can be created in {place}: {CURE}")
    return place


class FrameCache:
    """A source of videos that keeps all frames of each in `folder`, up to about `most_bytes` in all.

    Processes share the folder: whoever writes a video, its frames are the same. A video that is not kept, since it is damaged or
    too long, or since the folder or the disk (but for SPARE_BYTES) is full, is read from `videos`.
    """

    def __init__(self, videos: ScaledVideos, folder: Path, most_bytes: int) -> None:
        self.videos, self.folder, self.most_bytes = videos, folder, most_bytes
        self._sound: set[Path] = set()
        self._not_kept: set[Path] = set()
        self._room = self._until_look = 0

    def open(self, path: str) -> FrameReader:
        origin = self._origin(path)
        if origin is None:
            return self.videos.open(path)  # which says why
        file = self.folder / f"{hashlib.sha256(origin.encode()).hexdigest()}.safetensors"
        if file in self._not_kept:
            return self.videos.open(path)
        try:
            return self._kept(file, path) or self._keep(file, path, origin)
        except OSError:  # another user's file, or too many open ones
            return self.videos.open(path)

    def _origin(self, path: str) -> str | None:
        """All that a video's frames follow from, in JSON; None for one that is not there."""
        files = self.videos.files
        try:
            video = existing(path, files.root).resolve()
            parts = [video] if video.is_file() else sorted(video.iterdir())
            state = [(part.name, (stat := part.stat()).st_size, stat.st_mtime_ns) for part in parts]
        except (Unreadable, OSError, RuntimeError):
            return None
        return json.dumps([str(video), state, files.decoder, av.__version__, self.videos.side])

    def _kept(self, file: Path, path: str) -> "KeptReader | None":
        """A reader of a kept video; a damaged file is deleted. OSError for one that cannot be read, which may be sound."""
        try:
            reader = KeptReader(file, path, check=file not in self._sound)
        except FileNotFoundError:
            return None
        except DAMAGED:
            with suppress(OSError):
                file.unlink()
            return None
        self._sound.add(file)
        return reader

    def _keep(self, file: Path, path: str, origin: str) -> FrameReader:
        """Decode a video whole and keep it; where that is not possible, it is read from `videos` from now on."""
        # Damaged frames, which clips may do without; or, most often, a full disk
        with closing(self.videos.open(path)) as reader, suppress(DecodeError, OSError):
            frames = self._all_frames(reader)
            if frames is not None:
                self._write(file, frames, reader.fps, origin)
                if (kept := self._kept(file, path)) is not None:
                    return kept
        self._not_kept.add(file)
        return self.videos.open(path)  # anew: a reader refuses frames of another size than those that it has read

    def _all_frames(self, reader: FrameReader) -> np.ndarray | None:
        """All frames of a video, or None if they do not fit."""
        frames = reader.frames([0])
        if not self._fits(len(reader) * frames.nbytes):
            return None
        count = max(PART_BYTES // frames.nbytes, 1)
        whole = np.empty((len(reader), *frames.shape[1:]), np.uint8)
        for first in range(0, len(reader), count):
            part = reader.frames(np.arange(first, min(first + count, len(reader))))
            if part.shape[1:] != whole.shape[1:]:
                return None  # clips within one size can still be read
            whole[first : first + count] = part
        return whole

    def _fits(self, size: int) -> bool:
        if size * LARGEST_SHARE > self.most_bytes:
            return False
        if size > self._until_look:
            free = shutil.disk_usage(self.folder).free - SPARE_BYTES
            self._room = min(self.most_bytes - _bytes_in(self.folder), free)
            self._until_look = max(self._room // LOOK_SHARE, size)
        return size <= self._room

    def _write(self, file: Path, frames: np.ndarray, fps: float, origin: str) -> None:
        temporary = unfinished(file)
        about = {"origin": origin, "fps": repr(fps), "crc32": str(_checksum(frames, fps))}
        try:
            temporary.write_bytes(save({"frames": frames}, about))
            temporary.replace(file)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        self._room -= frames.nbytes
        self._until_look -= frames.nbytes


def _bytes_in(folder: Path) -> int:
    """Size of a folder's files, without what killed processes have left there, which is deleted."""
    total, now = 0, time.time()
    for file in folder.iterdir():
        with suppress(OSError):  # another process deletes, too
            state = file.stat()
            if UNFINISHED.match(file.name) and now - state.st_mtime > LEFT_SECONDS:
                file.unlink()
            else:
                total += state.st_size
    return total


def _checksum(frames: np.ndarray, fps: float) -> int:
    return zlib.crc32(frames.data, zlib.crc32(repr((frames.shape, fps)).encode()))


class KeptReader:
    """The frames of a kept video.

    Raises FileNotFoundError if it is not kept, another OSError if its file cannot be read, and those of DAMAGED for a damaged
    one, whose frames are compared with their CRC-32 if `check`.
    """

    def __init__(self, file: Path, path: str, check: bool) -> None:
        self.path = path
        self._file = file.open("rb", buffering=0)
        try:
            size = os.fstat(self._file.fileno()).st_size
            length = int.from_bytes(self._file.read(8), "little")
            header = json.loads(self._file.read(min(length, size)))
            about, self._start = header["__metadata__"], 8 + length
            self.fps, self._shape = float(about["fps"]), tuple(map(int, header["frames"]["shape"]))
            if self._start + prod(self._shape) != size or len(self._shape) != 4:
                raise ValueError("is cut")
            if check and _checksum(self.frames(range(len(self))), self.fps) != int(about["crc32"]):
                raise ValueError("has changed")
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return self._shape[0]

    @property
    def num_pixels(self) -> int:
        return self._shape[1] * self._shape[2]

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """See `FrameReader.frames`."""
        check_requested(self.path, np.asarray(indices, np.int64), len(self))
        frames = np.empty((len(indices), *self._shape[1:]), np.uint8)
        for frame, index in zip(frames, indices, strict=True):
            try:
                self._file.seek(self._start + int(index) * frame.nbytes)
                count = self._file.readinto(memoryview(frame).cast("B"))
            except OSError as reason:
                raise DecodeError(f"{self.path}: {self._file.name} cannot be read ({reason.strerror})") from None
            if count != frame.nbytes:
                raise DecodeError(f"{self.path}: frame {index} is not in {self._file.name}, which keeps {len(self)}")
        return frames

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "KeptReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
