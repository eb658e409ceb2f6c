"""Folders of numbered images."""

import struct

import numpy as np
import pytest
from numbered_video import numbered_frame, read_number
from PIL import Image

from mvit_video.data.video import limits as decode_limits
from mvit_video.data.video.reader import VideoReader
from mvit_video.errors import DecodeError


def write_pictures(folder, names, mode="RGB"):
    folder.mkdir()
    for number, name in enumerate(names):
        Image.fromarray(numbered_frame(number)).convert(mode).save(folder / name)
    return folder


@pytest.mark.parametrize("pattern", ["img_{:05d}.jpg", "{:06d}.png", "frame{}.jpeg", "v2 7.{:d}.JPG"])
@pytest.mark.parametrize("first", [0, 1, 95])
@pytest.mark.parametrize("backend", ["frames", "pyav", "decord"])
def test_pictures_come_in_the_order_of_their_numbers(tmp_path, pattern, first, backend):
    """Also where names without leading zeros sort otherwise, and whatever the first number is."""
    folder = write_pictures(tmp_path / "a", [pattern.format(first + number) for number in range(12)])
    (folder / "readme.txt").write_text("not an image")
    (folder / "._img_00001.jpg").write_text("what a Mac leaves behind")
    with VideoReader("a", tmp_path, backend) as reader:
        assert (len(reader), reader.fps) == (12, 30.0)
        assert [read_number(frame) for frame in reader.frames([10, 2, 2, 11, 0])] == [10, 2, 2, 11, 0]
        assert [read_number(frame) for frame in reader.stream()] == list(range(12))
        reader.check()


def test_png_frames_are_exact_and_only_requested_ones_are_decoded(tmp_path):
    with VideoReader(write_pictures(tmp_path / "a", [f"{number:03d}.png" for number in range(9)])) as reader:
        assert np.array_equal(reader.frames([7, 1]), [numbered_frame(7), numbered_frame(1)])
        assert reader.num_decoded == 2


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "LA"])
def test_pictures_of_other_kinds_become_rgb(tmp_path, mode):
    folder = write_pictures(tmp_path / "a", [f"{number}.png" for number in range(5)], mode)
    frames = VideoReader(folder).frames(range(5))
    assert frames.shape == (5, 48, 144, 3) and [read_number(frame) for frame in frames] == list(range(5))


def refused(folder, reason):
    with pytest.raises(DecodeError, match=f"a: .*{reason}"), VideoReader(folder) as reader:
        reader.check()


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["img_1.jpg", "img_2.jpg", "img_4.jpg"], "image 3 is missing: img_4.jpg follows img_2.jpg"),
        (["img_1.jpg", "flow_1.jpg"], "the images flow_1.jpg and img_1.jpg have the same number"),
        (["img_1.jpg", "cover.jpg"], "the image cover.jpg has no number in its name"),
        ([], "the folder contains no images"),
    ],
)
def test_folders_without_consecutive_images_are_refused(tmp_path, names, reason):
    refused(write_pictures(tmp_path / "a", names), reason)


def test_bad_pictures_are_named(tmp_path):
    folder = write_pictures(tmp_path / "a", [f"{number}.jpg" for number in range(6)])
    whole = (folder / "3.jpg").read_bytes()
    for content, reason in (
        (whole[: len(whole) // 2], r"the image 3.jpg cannot be decoded \((image file is truncated|Truncated)"),
        (b"", r"the image 3.jpg cannot be decoded \(is not a JPEG or PNG file\)"),
        (b"GIF89a" + whole, r"the image 3.jpg cannot be decoded \(is not a JPEG or PNG file\)"),
    ):
        (folder / "3.jpg").write_bytes(content)
        refused(folder, reason)
        with pytest.raises(DecodeError, match=reason):
            VideoReader(folder).frames([0, 3])
        assert read_number(VideoReader(folder).frames([4])[0]) == 4
    (folder / "3.jpg").unlink()
    (folder / "3.jpg").mkdir()
    refused(folder, "the image 3.jpg cannot be decoded")


def test_pictures_of_several_sizes_are_refused(tmp_path):
    folder = write_pictures(tmp_path / "a", [f"{number}.png" for number in range(6)])
    Image.new("RGB", (90, 60)).save(folder / "4.png")
    refused(folder, "the frame size changes within the video, from 144×48 to 90×60 in 4.png")
    with pytest.raises(DecodeError, match="the frame size changes within the video, from 144×48 to 90×60"):
        VideoReader(folder).frames([3, 4])


def test_sixteen_bits_a_channel_are_refused(tmp_path):
    folder = write_pictures(tmp_path / "a", ["0.png"])
    Image.fromarray(np.full((48, 144), 4000, np.uint16)).save(folder / "0.png")
    refused(folder, "the image 0.png has the mode I;16, expected 8 bits a channel")


@pytest.mark.parametrize("size", [(7000, 7000), (60000, 60000)])
def test_a_giant_picture_is_refused_by_its_header(tmp_path, size):
    folder = write_pictures(tmp_path / "a", ["0.png"])
    content = bytearray((folder / "0.png").read_bytes())
    content[16:24] = struct.pack(">II", *size)
    (folder / "0.png").write_bytes(content)
    refused(folder, "0.png.*(above the limit|cannot be decoded)")


def test_a_picture_above_the_limit_is_refused(tmp_path, monkeypatch):
    folder = write_pictures(tmp_path / "a", ["0.png"])
    monkeypatch.setattr(decode_limits, "MAX_PIXELS", 1000)
    refused(folder, "0.png: its frames of 144×48 pixels are above the limit of 1,000 pixels")


def test_an_image_may_be_a_symbolic_link(tmp_path):
    outside = write_pictures(tmp_path / "outside", ["0.png", "1.png"])
    root = tmp_path / "root"
    root.mkdir()
    folder = write_pictures(root / "a", ["0.png"])
    (folder / "1.png").symlink_to(outside / "1.png")
    with VideoReader("a", root) as reader, VideoReader(outside) as other:
        assert np.array_equal(reader.frames([1]), other.frames([1]))


def test_a_file_is_not_a_frame_folder(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(
        DecodeError, match=r"a.mp4: is a file, but data.decoder=frames reads folders of images: use data"
    ):
        VideoReader(tmp_path / "a.mp4", backend="frames")
