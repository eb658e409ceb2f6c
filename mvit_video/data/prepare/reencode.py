"""One video written anew so that a random clip of it decodes fast: short side N, short groups of pictures, no sound.

What makes clips cheap, in the order of what it brings (docs/data.md has the measurements): few pixels; seven of eight frames
are B-frames that no other frame refers to, so that a reader leaves out those that it does not want; no deblocking and no
arithmetic coding to undo; a key frame every GROUP frames. The price is size.
"""

import errno
import os
import time
from collections.abc import Generator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from mvit_video.data.video.reader import VideoReader
from mvit_video.errors import DecodeError, MvitVideoError
from mvit_video.paths import file_sha256
from mvit_video.version import __version__

GROUP = 24  # frames from one key frame to the next
OPTIONS = {
    "crf": "22",
    "preset": "medium",
    "x264-params": f"keyint={GROUP}:min-keyint={GROUP}:scenecut=0:open-gop=0:bframes=7:b-adapt=0:b-pyramid=none:"
    "no-cabac=1:no-deblock=1:weightp=0:weightb=0:"
    "no-mbtree=1",  # with AVX-512 x264's mbtree reads memory that nobody wrote, so that each run would write other files
}
MPEG_RANGE, BT601 = 1, 6  # FFmpeg's numbers; what untagged video is taken for
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.ENOENT)
TICKS = 90_000  # a second of a video with a variable frame rate


class WriteError(MvitVideoError):
    """The new file cannot be written: no fault of the video, and the next one would fare the same."""


def reencode_job(path: str, root: str, target: str, short_side: int) -> Generator[None, None, dict]:
    """`reencode`, for a decoding process: returns its record as "written", or why nothing can be written as "stopped"."""
    try:
        return {"written": (yield from reencode(path, root, Path(target), short_side))}
    except WriteError as reason:
        return {"stopped": str(reason)}


def reencode(path: str, root: str, target: Path, short_side: int) -> Generator[None, None, dict]:
    """Write video `path` of `root` to `target`, synced, and return what was done, as plain values for a manifest.

    Frame k of the new file is frame k of the old one, shown at the same time. Yields after each frame.
    Raises DecodeError where the video cannot be read or does not come out whole, WriteError where the disk is full.
    """
    started = time.monotonic()
    with VideoReader(path, root) as reader:
        times, fps, count = reader.times(), reader.fps, len(reader)
        size = yield from _encode(reader, target, short_side)
    _check(path, target, count, size)
    source = Path(root) / path
    return {
        "source": path,
        **fingerprint(source),
        "source_sha256": file_sha256(source),
        "frames": count,
        "fps": fps,
        "height": size[0],
        "width": size[1],
        "seconds": round(float(times[-1] - times[0]) + 1 / fps, 6),
        "bytes": target.stat().st_size,
        "encoding_seconds": round(time.monotonic() - started, 3),
        "settings": encoding_settings(short_side),
        "versions": {"mvit_video": __version__, "av": av.__version__},
    }


def encoding_settings(short_side: int) -> dict:
    """What decides how a video is written, as it stands in a manifest."""
    return {"short_side": short_side, "codec": "libx264", **OPTIONS}


def fingerprint(source: Path) -> dict:
    """What tells at a glance that a source is still the same file."""
    status = source.stat()
    return {"source_bytes": status.st_size, "source_mtime_ns": status.st_mtime_ns}


def prepared_size(height: int, width: int, pixel_aspect: Fraction, short_side: int) -> tuple[int, int]:
    """Even height and width: square pixels, the shorter side at most `short_side`, never larger than before.

    An image with pixels that are not square shrinks along the side on which they lie too densely.
    """
    tall, wide = Fraction(height), width * pixel_aspect
    if pixel_aspect > 1:
        tall, wide = height / pixel_aspect, Fraction(width)
    scale = min(Fraction(1), short_side / min(tall, wide))
    if scale == 1:
        return max(int(tall) // 2 * 2, 2), max(int(wide) // 2 * 2, 2)
    return max(round(tall * scale / 2) * 2, 2), max(round(wide * scale / 2) * 2, 2)


def frame_clock(times: list[Fraction], fps: float) -> tuple[Fraction, Fraction, list[int]]:
    """Frame rate, time base, and each frame's time in it: 0, 1, 2 ... where the frames are evenly spaced.

    A container that counts milliseconds rounds even times, so what is even to a millisecond is taken for even.
    """
    start, span = times[0], times[-1] - times[0]
    measured = (len(times) - 1) / float(span) if span else fps
    rates = [max(Fraction(rate).limit_denominator(1001), Fraction(1, 1001)) for rate in (fps, measured)]
    for rate in rates:
        if all(abs(at - start - number / rate) <= Fraction(1, 1000) for number, at in enumerate(times)):
            return rate, 1 / rate, list(range(len(times)))
    ticks = [round((at - start) * TICKS) for at in times]
    for number in range(1, len(ticks)):
        ticks[number] = max(ticks[number], ticks[number - 1] + 1)
    return rate, Fraction(1, TICKS), ticks


def _encode(reader: VideoReader, target: Path, short_side: int) -> Generator[None, None, tuple[int, int]]:
    """Every frame of the reader into `target`; the new height and width."""
    rate, time_base, ticks = frame_clock(reader.times(), reader.fps)
    converter, size, stream = VideoReformatter(), (0, 0), None
    try:
        with av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            for picture, tick in zip(reader.stream(), ticks, strict=True):
                if stream is None:
                    size = prepared_size(picture.shape[0], picture.shape[1], reader.pixel_aspect, short_side)
                    stream = _add_stream(container, rate, time_base, size)
                frame = _smaller(converter, picture, size)
                frame.pts, frame.time_base = tick, time_base
                container.mux(stream.encode(frame))
                yield
            if stream is not None:
                container.mux(stream.encode())
    except (av.FFmpegError, OSError) as reason:
        raise _write_error(reader.path, target, reason) from None
    return size


def _add_stream(container, rate: Fraction, time_base: Fraction, size: tuple[int, int]):
    stream = container.add_stream("libx264", rate=rate, options=OPTIONS)
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    stream.time_base = stream.codec_context.time_base = time_base
    stream.codec_context.thread_count = 1
    stream.codec_context.color_range, stream.codec_context.colorspace = MPEG_RANGE, BT601
    return stream


def _smaller(converter: VideoReformatter, picture: np.ndarray, size: tuple[int, int]) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    return converter.reformat(
        frame,
        width=size[1],
        height=size[0],
        format="yuv420p",
        dst_colorspace=int(Colorspace.ITU601),
        dst_color_range=int(ColorRange.MPEG),
        interpolation=Interpolation.BICUBIC,
        threads=1,
    )


def _write_error(path: str, target: Path, reason: Exception) -> MvitVideoError:
    """A disk that is full, or went away, concerns all videos; what the encoder does not take, this one."""
    text = getattr(reason, "strerror", None) or str(reason)
    if getattr(reason, "errno", None) in NO_ROOM:
        return WriteError(f"{target.parent.parent}: cannot be written ({text}): free some space and call again")
    return DecodeError(f"{path}: cannot be encoded ({text})")


def _check(path: str, target: Path, count: int, size: tuple[int, int]) -> None:
    """The new file, read back from the disk: as many frames, the right size, the first and the last decodable."""
    handle = os.open(target, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as reason:
        raise _write_error(path, target, reason) from None
    finally:
        os.close(handle)
    with VideoReader(target) as reader:
        found = reader.frames([0, len(reader) - 1]).shape[1:3]
        if (len(reader), found) != (count, size):
            raise DecodeError(f"{path}: was written with {len(reader)} frames of {found}, expected {count} of {size}")
