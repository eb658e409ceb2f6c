import multiprocessing
import os
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from numbered_video import HEIGHT, read_number, remux, write_numbered
from shared_files import shared

from mvit_video.data.video.reader import VideoReader
from mvit_video.errors import DecodeError

B_FRAMES = {"bf": "3", "g": "24", "crf": "16"}
VP9 = dict(codec="libvpx-vp9", options={"g": "20", "deadline": "realtime", "cpu-used": "8"})
MPEG4 = {"g": "12", "qscale": "3"}
FILES = {
    "H.264 with B-frames": ("a.mp4", dict(options=B_FRAMES)),
    "H.264 in Matroska": ("a.mkv", dict(options=B_FRAMES)),
    "H.264 in a transport stream": ("a.ts", dict(options=B_FRAMES)),
    "H.264 in Flash": ("a.flv", dict(options=B_FRAMES)),
    "H.264 without a container": ("a.h264", dict(options=B_FRAMES)),
    "H.264 in fragments": ("a.mp4", dict(options=B_FRAMES, container={"movflags": "frag_keyframe+empty_moov"})),
    "open groups of pictures": ("a.mp4", dict(options=B_FRAMES | {"x264-params": "open-gop=1"})),
    "no key frame but the first": ("a.ts", dict(options={"x264-params": "intra-refresh=1:keyint=24:bframes=0"})),
    "HEVC with open groups": ("a.mp4", dict(codec="libx265", options={"x265-params": "log-level=none:keyint=24"})),
    "VP9 in WebM": ("a.webm", VP9),
    "VP8 in WebM": ("a.webm", VP9 | dict(codec="libvpx")),
    "AV1 in MP4": (
        "a.mp4",
        dict(codec="libsvtav1", options={"g": "24", "preset": "8", "crf": "5"}),
    ),
    "MPEG-4 in AVI": ("a.avi", dict(codec="mpeg4", options=MPEG4)),
    "MPEG-4 with B-frames in AVI": ("a.avi", dict(codec="mpeg4", options=MPEG4 | {"bf": "2"})),
    "MPEG-2 with open groups": ("a.mpg", dict(codec="mpeg2video", options=MPEG4 | {"bf": "2"})),
    "key frames only": ("a.avi", dict(codec="mjpeg", pixels="yuvj420p", options={"qscale": "3"})),
    "variable frame rate": ("a.mp4", dict(options=B_FRAMES, gaps=True)),
    "odd sizes in VP9": ("a.webm", VP9 | dict(padding=1)),
    "odd sizes in H.264": ("a.mp4", dict(options=B_FRAMES, padding=1, pixels="yuv444p")),
    "no declared duration": ("live", dict(options=B_FRAMES, form="matroska")),
}


class Pipe:
    """What a muxer cannot go back in, so that the header tells neither duration nor where to seek."""

    def __init__(self, file) -> None:
        self.write = lambda content: file.write(content)


def write_kind(kind: str, folder: Path, count: int) -> Path:
    name, arguments = FILES[kind]
    if name != "live":
        file = write_numbered(folder / name, count, **arguments)
        if hasattr(
            os, "sched_setscheduler"
        ):  # libsvtav1 makes root's process a real-time one, which takes all from others
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        return file
    with open(folder / name, "wb") as file:
        write_numbered(Pipe(file), count, **arguments)
    return folder / name


@pytest.fixture(scope="module", params=FILES)
def numbered(request, tmp_path_factory):
    return write_kind(request.param, tmp_path_factory.mktemp("numbered"), 75)


def test_frames_are_the_requested_ones_in_any_order(numbered):
    with VideoReader(numbered) as reader:
        assert len(reader) == 75
        for expected in ([0], [74], [50, 3, 3, 74, 26], list(range(75)), [73], [1, 2]):
            frames = reader.frames(expected)
            assert frames.shape[0] == len(expected) and frames.shape[3] == 3 and frames.dtype == np.uint8
            assert [read_number(frame) for frame in frames] == expected


def test_every_single_frame_is_that_of_a_sequential_decode(numbered):
    whole = list(VideoReader(numbered).stream())
    for seed in (0, 1):
        with VideoReader(numbered) as reader:
            for number in np.random.default_rng(seed).permutation(75):
                assert np.array_equal(reader.frames([number])[0], whole[number]), number


def test_frames_with_gaps_are_those_of_a_sequential_decode(numbered):
    """Frames between, that no other refers to, are not decoded; what is wanted must not change by that."""
    whole = np.stack(list(VideoReader(numbered).stream()))
    for expected in (range(0, 75, 4), range(1, 75, 5), [2, 23, 24, 25, 47, 49, 70]):
        with VideoReader(numbered) as reader:
            assert np.array_equal(reader.frames(expected), whole[list(expected)])


def test_frames_are_those_of_ffmpegs_own_order(numbered):
    """Independent of our numbering: PyAV decodes the file in one go, with its default threads and no seek."""
    with av.open(str(numbered)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with VideoReader(numbered) as reader:
        assert np.abs(reader.frames(range(75)).astype(int) - np.stack(expected)).max() <= 1
    VideoReader(numbered).check()


def test_no_declared_duration_means_none(tmp_path):
    with open(tmp_path / "live", "wb") as file:
        write_numbered(Pipe(file), 5, form="matroska")
    with av.open(str(tmp_path / "live")) as container:
        assert container.duration is None


def test_frames_with_equal_times_are_in_the_decoders_order(tmp_path):
    whole = write_numbered(tmp_path / "whole.mkv", 20, options={"bf": "0"})

    def repeat(packet):
        if packet.pts == 320:
            packet.pts = packet.dts = 280

    with VideoReader(remux(whole, tmp_path / "a.mkv", repeat)) as reader:
        assert [read_number(frame) for frame in reader.frames([7, 8, 19])] == [7, 8, 19]
        times = reader.times()
        assert times[7] == times[8] and len(times) == 20


def test_frames_before_an_edit_lists_start_are_not_frames_of_the_video(tmp_path):
    whole = write_numbered(tmp_path / "whole.mp4", 75, options=B_FRAMES)

    def earlier(packet):
        packet.pts -= 10 * 512
        packet.dts -= 10 * 512

    path = remux(whole, tmp_path / "a.mp4", earlier, {"use_editlist": "1", "avoid_negative_ts": "disabled"})
    with VideoReader(path) as reader:
        assert len(reader) == 65
        assert [read_number(frame) for frame in reader.stream()] == list(range(10, 75))
        for number in np.random.default_rng(0).permutation(65)[:20]:
            assert read_number(reader.frames([number])[0]) == number + 10


def test_hidden_reference_frames_are_not_counted(tmp_path):
    """As VP8's alternate references. Here a shown frame is made one, by the bit of its header that says so."""
    options = {"g": "20", "deadline": "realtime", "cpu-used": "8"}
    whole = write_numbered(tmp_path / "whole.webm", 30, codec="libvpx", options=options)
    with av.open(str(whole)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    content = whole.read_bytes()
    hidden = bytes([packets[7][0] & ~16]) + packets[7][1:]
    assert content.count(packets[7]) == 1
    (tmp_path / "a.webm").write_bytes(content.replace(packets[7], hidden))
    with VideoReader(tmp_path / "a.webm") as reader:
        shown = [number for number in range(30) if number != 7]
        assert [read_number(frame) for frame in reader.stream()] == shown
        assert read_number(reader.frames([12])[0]) == 13


def decoded(path, expected):
    with VideoReader(path) as reader:
        reader.frames(expected)
        return reader.num_decoded


def test_only_requested_and_referenced_frames_are_decoded(tmp_path):
    """Chains of P-frames: from the key frame (every 20th) to the wanted one. Frame 59 ends a group, 60 starts one."""
    path = write_numbered(
        tmp_path / "p.mp4", 80, options={"bf": "0", "g": "20", "keyint_min": "20", "sc_threshold": "0"}
    )
    assert decoded(path, [0]) == 1
    assert decoded(path, [59]) == 20
    assert decoded(path, [60]) == 1
    assert decoded(path, [5, 65]) == 6 + 6
    assert decoded(path, [0, 20, 40, 60]) == 4
    assert decoded(path, range(80)) == 80


def test_unreferenced_frames_are_decoded_only_on_request(tmp_path):
    """I b P b P ...: of frames 0 to 40 the even ones refer to each other."""
    options = {"bf": "1", "b_strategy": "0", "b-pyramid": "none", "g": "80", "sc_threshold": "0"}
    path = write_numbered(tmp_path / "b.mp4", 80, options=options)
    assert decoded(path, [40]) in (21, 22)
    assert decoded(path, [39, 40]) in (22, 23)


def test_clips_are_those_of_a_sequential_decode_though_frames_are_skipped(numbered):
    whole = list(VideoReader(numbered).stream())
    rng = np.random.default_rng(0)
    with VideoReader(numbered) as reader:
        for stride in (1, 2, 3, 4, 7, 19):
            expected = rng.integers(0, 75 - 3 * stride) + stride * np.arange(4)
            for frame, number in zip(reader.frames(expected), expected, strict=True):
                assert np.array_equal(frame, whole[number])


def test_streaming_gives_every_frame_once(numbered):
    assert [read_number(frame) for frame in VideoReader(numbered).stream()] == list(range(75))


@pytest.mark.parametrize(
    "kind", sorted(FILES.keys() - {"HEVC with open groups"})
)  # FFmpeg fails to write it now and then
def test_a_video_of_one_frame_has_one_frame(kind, tmp_path):
    path = write_kind(kind, tmp_path, 1)
    with VideoReader(path) as reader:
        assert len(reader) == 1 and read_number(reader.frames([0, 0])[1]) == 0
        reader.check()


def test_the_frame_rate_is_the_mean_rate(tmp_path):
    assert VideoReader(write_numbered(tmp_path / "a.mp4", 30)).fps == pytest.approx(25)


@pytest.mark.parametrize("gaps", [False, True])
def test_a_false_duration_in_the_header_does_not_change_the_frame_rate(tmp_path, gaps):
    path = write_numbered(tmp_path / "a.mp4", 30, options=B_FRAMES, gaps=gaps)
    rate = VideoReader(path).fps
    content = bytearray(path.read_bytes())
    place = content.index(b"mdhd") + 4 + 12  # version and flags, two dates, then time scale and duration
    content[place + 4 : place + 8] = struct.pack(">I", 10 * 3600 * struct.unpack(">I", content[place : place + 4])[0])
    path.write_bytes(content)
    with VideoReader(path) as reader:
        assert reader.fps == pytest.approx(rate, rel=0.02)
        assert [read_number(frame) for frame in reader.frames([0, 17, 29])] == [0, 17, 29]


def test_times_are_those_at_which_frames_are_shown(tmp_path):
    path = write_numbered(tmp_path / "a.mkv", 6, options=B_FRAMES, gaps=True)
    assert [float(time) for time in VideoReader(path).times()] == pytest.approx([0, 0.08, 0.12, 0.16, 0.24, 0.28])


@pytest.mark.parametrize(
    ("name", "count", "fps", "size"),
    [
        ("arm_wrestling.mp4", 280, 28, (256, 340)),
        ("cleaning_pool.mp4", 300, 30, (256, 340)),
        ("flipping_a_pancake.mkv", 310, 30, (240, 426)),
        ("goat.mp4", 150, 30, (256, 256)),
        ("nasa_13013.mp4", 325, 25, (180, 320)),
        ("h265_video.mp4", 10, 10, (128, 128)),
    ],
)
def test_real_videos_have_the_frames_that_they_are_known_to_have(name, count, fps, size):
    with VideoReader(shared(f"videos/{name}")) as reader:
        assert (len(reader), reader.fps) == (count, fps)
        assert reader.frames([0, count - 1]).shape == (2, *size, 3)


def test_a_damaged_video_gives_the_frames_before_the_damage_and_an_error_after(tmp_path):
    path = shared("videos/corrupted.mp4")
    with VideoReader(path) as reader:
        assert reader.frames(range(28)).shape[0] == 28
    with pytest.raises(DecodeError, match=r"corrupted.mp4: frame 3\d of 50 (is damaged|cannot be decoded)"):
        VideoReader(path).frames([10, 40])
    with pytest.raises(DecodeError, match=r"frame 3\d of 50 (is damaged|cannot be decoded)"):
        list(VideoReader(path).stream())


def set_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Overwrite the identity matrix of the mp4's track header: x' = a·x + c·y, y' = b·x + d·y, moved to where it is seen."""
    one = 1 << 16
    identity = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    content = path.read_bytes()
    place = content.index(identity, content.index(b"tkhd"))
    x, y = (HEIGHT if c < 0 else 144 * (a < 0)), (144 if b < 0 else HEIGHT * (d < 0))
    matrix = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, x * one, y * one, 1 << 30)
    path.write_bytes(content[:place] + matrix + content[place + len(matrix) :])


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turn", [(1, 0), (0, 1), (-1, 0), (0, -1)])
def test_rotated_and_mirrored_videos_are_shown_upright(tmp_path, turn, mirrored):
    """Each stored pixel must be where the matrix maps it."""
    a, b = turn
    c, d = (b, -a) if mirrored else (-b, a)
    path = write_numbered(tmp_path / "a.mp4", 4)
    stored = VideoReader(path).frames([2])[0]
    if (a, b, c, d) != (1, 0, 0, 1):
        set_display_matrix(path, a, b, c, d)
    y, x = np.indices(stored.shape[:2])
    right, down = a * x + c * y, b * x + d * y
    shown = np.zeros((144, HEIGHT, 3) if b else (HEIGHT, 144, 3), np.uint8)
    shown[down - down.min(), right - right.min()] = stored
    with VideoReader(path) as reader:
        assert np.array_equal(reader.frames([2, 0])[0], shown)
    if mirrored:
        with pytest.raises(DecodeError, match=r"its frames are rotated|decord is not installed"):
            VideoReader(path, backend="decord")


def test_a_forked_process_decodes_after_its_parent_has(tmp_path):
    """As a loader's workers do. Threads do not survive a fork: a converter that kept some would wait for ever."""
    path = write_numbered(tmp_path / "a.mp4", 3)
    with VideoReader(path) as reader:
        reader.frames([0, 1])
    child = multiprocessing.get_context("fork").Process(target=lambda: VideoReader(path).frames([0, 1, 2]))
    child.start()
    child.join(20)
    alive = child.is_alive()
    child.kill()
    assert not alive and child.exitcode == 0
