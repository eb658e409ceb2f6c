"""Copies of a video with drawings on every frame: H.264 in MP4, with sound; never overwrites the source."""

# H/W pixels; frames are uint8 (H, W, 3), RGB

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path

import av
import matplotlib
import numpy as np
from av.container import OutputContainer
from PIL import Image, ImageDraw, ImageFont

from mvit_video.data.video.guard import Guard
from mvit_video.data.video.guard_pool import Job
from mvit_video.data.video.reader import Reader
from mvit_video.data.video.sound import sound_in
from mvit_video.errors import ConfigError, DecodeError
from mvit_video.inference.predictor import open_video
from mvit_video.inference.timeline import Timeline
from mvit_video.inference.windows import shown_at
from mvit_video.paths import whole_file

Draw = Callable[[int, np.ndarray], np.ndarray]

TICKS = 90_000  # per second, as in MPEG; a multiple of it where frames are closer together
MOST_TICKS = 100 * TICKS
LEAST_HEIGHT = 240  # smaller videos are enlarged, so that what is drawn can be read
MOST_ENLARGED = 4096  # pixels a row, of long and thin ones
MOST_CODED = 16_384  # pixels a side, of libx264
FONT = str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")


def write_annotated(path: str | Path, output: Path, timeline: Timeline, guard: Guard) -> None:
    """A copy of the video with the labels of the moment and their scores in the corner, as far as the timeline goes."""
    with open_video(path, guard, whole=False, again=True) as reader:
        times = shown_at(reader)

    def draw(number: int, frame: np.ndarray) -> np.ndarray:
        said = ", ".join(f"{segment.label}  {segment.score:.2f}" for segment in timeline.segments_at(times[number]))
        return put_caption(frame, said) if said else frame

    write_copy(path, output, draw, guard)


def write_copy(path: str | Path, output: Path, draw: Draw, guard: Guard) -> None:
    """`draw(number, frame)` of every frame of a video, at the frame's own time, up to where it can be decoded.

    Frames are upright and enlarged to a height of 240, or scaled down to what H.264 can hold. The sound is copied where it
    can be read and MP4 can hold it. ConfigError if `output` is the video itself.
    """
    refuse_source(path, output)
    with (
        open_video(path, guard, whole=False, again=True) as reader,
        whole_file(output) as temporary,
        av.open(str(temporary), "w", format="mp4") as copy,
    ):
        times = shown_at(reader)
        frames = (draw(number, enlarged(frame)) for number, frame in enumerate(_until_damage(reader)))
        first = next(frames)
        picture = copy.add_stream("libx264", rate=Fraction(max(reader.fps, 0.01)).limit_denominator(100_000))
        picture.height, picture.width = _coded_size(*first.shape[:2])
        picture.pix_fmt, picture.options = "yuv420p", {"crf": "23", "preset": "veryfast"}
        moments, picture.codec_context.time_base = _moments(times)
        picture.codec_context.sample_aspect_ratio = reader.pixel_aspect  # type: ignore[attr-defined]
        with _sound(path, copy, output, reader.times()[0], guard) as copy_until:
            for number, frame in enumerate(chain([first], frames)):
                shown = _encodable(frame, picture.height, picture.width)
                shown.pts, shown.time_base = moments[number], picture.codec_context.time_base
                copy.mux(picture.encode(shown))
                copy_until(times[number])
            copy.mux(picture.encode())


def refuse_source(path: str | Path, output: Path) -> None:
    """ConfigError if writing `output` would destroy the video."""
    if os.path.exists(path) and output.exists() and os.path.samefile(path, output):
        raise ConfigError(f"{output}: is the video itself, which is never overwritten: choose another --output")


def _until_damage(reader: Reader) -> Iterator[np.ndarray]:
    seen = False
    try:
        for frame in reader.stream():
            yield frame
            seen = True
    except DecodeError:
        if not seen:
            raise


def _coded_size(height: int, width: int) -> tuple[int, int]:
    """The size, or the next even one; of the same shape where it is more than libx264 takes."""
    longer = max(height, width)
    if longer > MOST_CODED:
        height, width = (max(side * MOST_CODED // longer, 1) for side in (height, width))
    return height + height % 2, width + width % 2


def _moments(times: np.ndarray) -> tuple[list[int], Fraction]:
    """Rising times of frames in ticks, and a tick, small enough for the two that are closest together."""
    gaps = np.diff(times)
    closest = gaps[gaps > 0].min(initial=1)
    ticks = min(TICKS * math.ceil(1 / (TICKS * closest)), MOST_TICKS)
    moments = np.rint(times * ticks).astype(np.int64)
    numbers = np.arange(len(moments))  # no frame is later than one more than it needs to be
    return (np.maximum.accumulate(moments - numbers) + numbers).tolist(), Fraction(1, ticks)


def _encodable(frame: np.ndarray, height: int, width: int) -> av.VideoFrame:
    """The frame in the copy's size: padded by one pixel to an even one, else scaled, as where the size changes within a video."""
    down, right = height - frame.shape[0], width - frame.shape[1]
    if down not in (0, 1) or right not in (0, 1):
        frame = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))
    elif down or right:
        frame = np.pad(frame, ((0, down), (0, right), (0, 0)), mode="edge")
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")


@contextmanager
def _sound(
    path: str | Path, copy: OutputContainer, output: Path, begin: Fraction, guard: Guard
) -> Iterator[Callable[[float], None]]:
    """Inside, a function that copies the video's sound up to a moment in seconds. `begin` is the time of the first frame."""
    with tempfile.NamedTemporaryFile(dir=output.parent, prefix=f".{output.name}.", suffix=".sound") as file:
        words = (os.path.abspath(path), file.name, begin.as_integer_ratio())
        found = (
            guard.run_job(Job(str(path), "mvit_video.data.video.sound:copy_sound", words))
            if os.path.isfile(path)
            else None
        )
        if found is None or not found.result:
            yield lambda seconds: None
            return
        with sound_in(Path(file.name)) as source:
            track = copy.add_stream_from_template(source.streams.audio[0])
            packets = (packet for packet in source.demux(audio=0) if packet.pts is not None)
            yield partial(_copy_until, copy, track, packets)


def _copy_until(copy: OutputContainer, track: av.AudioStream, packets: Iterator[av.Packet], seconds: float) -> None:
    for packet in packets:
        now = float(packet.pts * packet.time_base)  # type: ignore[operator]
        packet.stream = track
        copy.mux(packet)
        if now > seconds:
            return


def enlarged(frame: np.ndarray) -> np.ndarray:
    """Whole multiples of small frames, as far as they do not become too wide."""
    factor = min(-(-LEAST_HEIGHT // frame.shape[0]), max(MOST_ENLARGED // frame.shape[1], 1))
    return frame if factor == 1 else frame.repeat(factor, 0).repeat(factor, 1)


def put_caption(frame: np.ndarray, text: str) -> np.ndarray:
    """The frame with a line of text on a dark band in its upper left corner."""
    band = _band(" ".join(text.split()), frame.shape[1], frame.shape[0])
    frame = frame.copy()
    corner = frame[: band.shape[0], : band.shape[1]]
    share = band[: corner.shape[0], : corner.shape[1], 3:].astype(np.uint16)
    ink = band[: corner.shape[0], : corner.shape[1], :3].astype(np.uint16)
    corner[:] = (ink * share + corner * (255 - share)) // 255
    return frame


@lru_cache(maxsize=64)
def _band(text: str, width: int, height: int) -> np.ndarray:
    """The text as RGBA (h, w, 4), its letters a 16th of the image's height or smaller, so that it fits the width."""
    size = max(height // 16, 10)
    room = width - size
    length = ImageFont.truetype(FONT, size).getlength(text)
    if length > room:
        size = max(int(size * room / length), 6)
    font = ImageFont.truetype(FONT, size)
    ascent, descent = font.getmetrics()
    margin = size // 3
    shape = (min(int(font.getlength(text)) + 2 * margin + 1, width), ascent + descent + 2 * margin)
    picture = Image.new("RGBA", shape, (0, 0, 0, 170))
    ImageDraw.Draw(picture).text((margin, margin), text, font=font, fill=(255, 255, 255, 255))
    return np.asarray(picture)
