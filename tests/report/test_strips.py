import base64
import io

import numpy as np
import pytest
from numbered_video import HEIGHT, read_number, write_numbered
from PIL import Image

from mvit_video.data.video.reader import VideoReader
from mvit_video.errors import DecodeError
from mvit_video.report import strips


def pictures(count, size=(40, 30), seed=0):
    noise = np.random.default_rng(seed).integers(0, 255, (count, size[1], size[0], 3), np.uint8)
    return [Image.fromarray(frame) for frame in noise]


def opened(address):
    head, content = address.split(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def seconds_of(picture):
    total = 0
    for place in range(picture.n_frames):
        picture.seek(place)
        picture.load()
        total += picture.info["duration"]
    return total / 1000


def test_a_clip_strip_is_a_strip_and_the_whole_video_at_its_own_speed(tmp_path):
    write_numbered(tmp_path / "v.mp4", 100)  # 4 s at 25 fps
    clip_strip = strips.clip_strip("v.mp4", str(tmp_path), "pyav", 60.0, (("true", "counting"),))
    strip, moving = opened(clip_strip.strip), opened(clip_strip.moving)
    width = round(144 * strips.STRIP_HEIGHT / HEIGHT)
    assert strip.size == (strips.STRIP_FRAMES * (width + 2) - 2, strips.STRIP_HEIGHT)
    assert moving.height == strips.MOVING_HEIGHT and moving.n_frames == 48 and moving.info["loop"] == 0
    assert seconds_of(moving) == pytest.approx(4.0, abs=0.03)


def test_the_frames_are_the_middles_of_equal_parts(tmp_path):
    assert strips.part_middles(8, 4).tolist() == [1, 3, 5, 7] and strips.part_middles(2, 4).tolist() == [0, 0, 1, 1]
    write_numbered(tmp_path / "v.mp4", 60)
    with VideoReader("v.mp4", tmp_path) as reader:
        frames = strips.read_small(reader, strips.part_middles(60, 6), HEIGHT)
    assert [read_number(np.asarray(frame)) for frame in frames] == [5, 15, 25, 35, 45, 55]


def test_large_frames_are_made_small_a_few_at_a_time(tmp_path, monkeypatch):
    write_numbered(tmp_path / "v.mp4", 40)
    asked = []
    with VideoReader("v.mp4", tmp_path) as reader:
        plain = [np.asarray(frame) for frame in strips.read_small(reader, np.arange(0, 40, 4), 24)]
        real = reader.frames
        monkeypatch.setattr(reader, "frames", lambda indices: asked.append(len(indices)) or real(indices))
        monkeypatch.setattr(strips, "HELD_PIXELS", 3 * HEIGHT * 144)
        few = [np.asarray(frame) for frame in strips.read_small(reader, np.arange(0, 40, 4), 24)]
    assert asked == [1, 3, 3, 3, 1] and np.array_equal(plain, few)


@pytest.mark.parametrize("budget", [40_000, 4_000, 300])
def test_a_moving_picture_is_made_coarser_until_it_fits(budget):
    content = strips.moving_picture(pictures(32), 4.0, budget)
    picture = Image.open(io.BytesIO(content))
    assert len(content) <= budget or picture.n_frames == 1
    assert picture.size == (40, 30)
    if picture.n_frames > 1:
        assert seconds_of(picture) == pytest.approx(4.0, abs=0.05), "fewer frames stand longer"


def test_frames_stand_in_a_row_with_gaps():
    one, other = pictures(2)
    row = np.asarray(strips.hstack_frames([one, other], gap=3))
    assert row.shape == (30, 83, 3) and (row[:, 40:43] == 255).all()
    assert np.array_equal(row[:, :40], one) and np.array_equal(row[:, 43:], other)


def test_a_video_of_one_frame_and_a_very_wide_one_have_strips(tmp_path):
    write_numbered(tmp_path / "one.mp4", 1)
    clip_strip = strips.clip_strip("one.mp4", str(tmp_path), "pyav", 60.0, ())
    assert (
        opened(clip_strip.strip).height == strips.STRIP_HEIGHT
        and opened(clip_strip.moving).height == strips.MOVING_HEIGHT
    )
    wide = strips._scaled(Image.new("RGB", (4000, 10)), 96)
    assert wide.size == (384, 96), "at most four times as wide as high"


def test_a_video_that_cannot_be_read_is_a_decode_error(tmp_path):
    with pytest.raises(DecodeError, match=r"none.mp4: no such file"):
        strips.clip_strip("none.mp4", str(tmp_path), "pyav", 60.0, ())
