"""decord gives PyAV's frames, or a refusal that says why."""

import struct

import numpy as np
import pytest
from numbered_video import read_number, write_numbered
from shared_files import shared

from mvit_video.data.video.reader import VideoReader
from mvit_video.errors import DecodeError

pytest.importorskip("decord")
B_FRAMES = {"bf": "3", "g": "24", "crf": "16"}
FAST = {"deadline": "realtime", "cpu-used": "8", "g": "20"}
RIGHT = {
    "H.264 with B-frames": ("a.mp4", dict(options=B_FRAMES)),
    "H.264 in Matroska": ("a.mkv", dict(options=B_FRAMES)),
    "VP9": ("a.webm", dict(codec="libvpx-vp9", options=FAST)),
    "VP8": ("a.webm", dict(codec="libvpx", options=FAST)),
    "MPEG-4": ("a.mp4", dict(codec="mpeg4", options={"g": "12"})),
    "variable frame rate": ("a.mp4", dict(options=B_FRAMES, gaps=True)),
    "odd sizes": ("a.mp4", dict(options=B_FRAMES, pixels="yuv444p", padding=1)),
    "full range": ("a.mp4", dict(options=B_FRAMES, pixels="yuvj420p")),
    "BT.709": ("a.mp4", dict(options=B_FRAMES | {"colorspace": "bt709", "color_range": "tv"})),
}
WRONG = {
    "AVI": (
        "a.avi",
        dict(options={"bf": "0", "g": "12"}),
        "it is in the container avi, decord is only reliable for mov, matroska",
    ),
    "ten bits": (
        "a.mp4",
        dict(options=B_FRAMES, pixels="yuv420p10le"),
        "its pixels are yuv420p10le, decord converts only",
    ),
    "open groups": ("a.mp4", dict(options=B_FRAMES | {"x264-params": "open-gop=1"}), "it has open groups of pictures"),
    "MPEG-4 with B-frames": (
        "a.mp4",
        dict(codec="mpeg4", options={"g": "12", "bf": "2"}),
        "open groups of pictures",
    ),
    "HEVC": (
        "a.mp4",
        dict(codec="libx265", options={"x265-params": "log-level=none"}),
        "its codec is hevc, decord is only reliable",
    ),
    "transport stream": (
        "a.ts",
        dict(options=B_FRAMES),
        "it is in the container mpegts, decord is only reliable for mov, matroska",
    ),
    "refreshed bit by bit": ("a.mp4", dict(options={"x264-params": "intra-refresh=1:keyint=24:bframes=0"}), ""),
}


@pytest.mark.parametrize("kind", RIGHT)
def test_decord_gives_the_same_frames(kind, tmp_path):
    """All differ by 0 here but for rounding in the conversion to RGB, where the two FFmpegs take different paths."""
    name, arguments = RIGHT[kind]
    path = write_numbered(tmp_path / name, 75, **arguments)
    ours = VideoReader(path).frames(range(75)).astype(int)
    with VideoReader(path, backend="decord") as reader:
        assert len(reader) == 75 and reader.fps == VideoReader(path).fps
        for number in np.random.default_rng(0).permutation(75):
            theirs = reader.frames([number])[0]
            assert read_number(theirs) == number and np.abs(theirs - ours[number]).max() <= 2
        assert [read_number(frame) for frame in reader.frames([70, 5, 5, 71])] == [70, 5, 5, 71]
        assert [read_number(frame) for frame in reader.stream()] == list(range(75))


@pytest.mark.parametrize("kind", WRONG)
def test_files_that_decord_reads_wrongly_are_refused(kind, tmp_path):
    name, arguments, reason = WRONG[kind]
    path = write_numbered(tmp_path / name, 75, **arguments)
    with pytest.raises(DecodeError, match=f"{name}: .*{reason}.*: use data.decoder=pyav"):
        VideoReader(path, backend="decord")


def test_rotated_video_is_refused(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 4)
    content, one = path.read_bytes(), 1 << 16
    straight = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    assert content.count(straight) == 2
    path.write_bytes(content.replace(straight, struct.pack(">9i", 0, one, 0, -one, 0, 0, 48 * one, 0, 1 << 30)))
    with pytest.raises(
        DecodeError, match=r"its frames are rotated, which decord does not support: use data.decoder=pyav"
    ):
        VideoReader(path, backend="decord")


@pytest.mark.parametrize("name", ["arm_wrestling.mp4", "cleaning_pool.mp4", "flipping_a_pancake.mkv", "goat.mp4"])
def test_real_videos_are_the_same(name):
    path = shared(f"videos/{name}")
    expected = [149, 3, 60, 61, 100]
    ours, theirs = (VideoReader(path, backend=backend).frames(expected) for backend in ("pyav", "decord"))
    assert np.abs(ours.astype(int) - theirs).max() <= 2


def test_real_videos_that_it_reads_wrongly_are_refused():
    for name, reason in (("h265_video.mp4", "its codec is hevc"), ("nasa_13013.mp4", "it has 2 video streams")):
        with pytest.raises(DecodeError, match=reason):
            VideoReader(shared(f"videos/{name}"), backend="decord")
    with (
        pytest.raises(DecodeError, match="cannot be decoded"),
        VideoReader(shared("videos/corrupted.mp4"), backend="decord") as reader,
    ):
        reader.frames([10, 40])
