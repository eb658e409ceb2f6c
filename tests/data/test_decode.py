import multiprocessing
import os
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from numbered_video import read_number, write_numbered
from shared_files import shared

from mvit_video.data import decode
from mvit_video.data.decode import VideoReader
from mvit_video.errors import DecodeError

B_FRAMES = {"bf": "3", "g": "24", "crf": "16"}
FILES = {
    "H.264 with B-frames": ("a.mp4", dict(options=B_FRAMES)),
    "H.264 in Matroska": ("a.mkv", dict(options=B_FRAMES)),
    "open groups of pictures": ("a.mp4", dict(options=B_FRAMES | {"x264-params": "open-gop=1"})),
    "VP9 in WebM": ("a.webm", dict(codec="libvpx-vp9", options={"g": "20", "deadline": "realtime", "cpu-used": "8"})),
    "MPEG-4 in AVI": ("a.avi", dict(codec="mpeg4", options={"g": "12", "qscale": "3"})),
    "variable frame rate": ("a.mp4", dict(options=B_FRAMES, gaps=True)),
}


@pytest.fixture(scope="module", params=FILES)
def numbered(request, tmp_path_factory):
    name, arguments = FILES[request.param]
    return write_numbered(tmp_path_factory.mktemp("numbered") / name, 75, **arguments)


def test_frames_are_the_ones_asked_for_in_any_order(numbered):
    with VideoReader(numbered) as reader:
        assert len(reader) == 75
        for wanted in ([0], [74], [50, 3, 3, 74, 26], list(range(75)), [73], [1, 2]):
            frames = reader.frames(wanted)
            assert frames.shape == (len(wanted), 48, 144, 3) and frames.dtype == np.uint8
            assert [read_number(frame) for frame in frames] == wanted


def test_frames_after_a_seek_are_those_of_decoding_through(numbered):
    whole = list(VideoReader(numbered).stream())
    for number in range(0, 75, 7):
        with VideoReader(numbered) as reader:
            assert np.array_equal(reader.frames([number])[0], whole[number])


def test_clips_are_those_of_decoding_through_though_frames_between_are_left_out(numbered):
    whole = list(VideoReader(numbered).stream())
    rng = np.random.default_rng(0)
    with VideoReader(numbered) as reader:
        for stride in (1, 2, 3, 4, 7, 19):
            wanted = rng.integers(0, 75 - 3 * stride) + stride * np.arange(4)
            for frame, number in zip(reader.frames(wanted), wanted, strict=True):
                assert np.array_equal(frame, whole[number])


@pytest.mark.parametrize(("codec", "decoded"), [("libx264", 24), ("mpeg4", 75)])
def test_frames_that_nobody_needs_are_not_decoded_where_the_codec_says_which(tmp_path, monkeypatch, codec, decoded):
    """I b b b P b b b ... b P: 20 of 75 frames are referred to, and four others are wanted."""
    options = {"bf": "3", "g": "99", "x264-params": "b-pyramid=none:b-adapt=0:scenecut=0"}
    path = write_numbered(tmp_path / "a.mp4", 75, codec, options if codec == "libx264" else {"bf": "2", "g": "99"})
    counted, plain = [], decode._PyAvBackend._decode
    monkeypatch.setattr(decode._PyAvBackend, "_decode", lambda self: (counted.append(1) or f for f in plain(self)))
    assert [read_number(frame) for frame in VideoReader(path).frames([1, 30, 55, 73, 74])] == [1, 30, 55, 73, 74]
    assert len(counted) == decoded


def test_streaming_gives_every_frame_once(numbered):
    assert [read_number(frame) for frame in VideoReader(numbered).stream()] == list(range(75))


def test_a_video_of_one_frame_has_one_frame(tmp_path):
    with VideoReader(write_numbered(tmp_path / "one.mp4", 1)) as reader:
        assert len(reader) == 1 and read_number(reader.frames([0])[0]) == 0


def test_the_frame_rate_is_the_mean_rate(tmp_path):
    assert VideoReader(write_numbered(tmp_path / "a.mp4", 30)).fps == pytest.approx(25)


def test_decord_gives_the_same_frames(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 60, options=B_FRAMES)
    wanted = [5, 0, 59, 30, 30]
    ours, theirs = (VideoReader(path, backend=name).frames(wanted) for name in ("pyav", "decord"))
    assert [read_number(frame) for frame in theirs] == wanted
    assert np.abs(ours.astype(int) - theirs).max() <= 2
    assert [read_number(f) for f in VideoReader(path, backend="decord").stream()] == list(range(60))


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
    for backend in ("pyav", "decord"):
        with pytest.raises(DecodeError, match=r"corrupted.mp4: .*cannot be decoded"):
            VideoReader(path, backend=backend).frames([10, 40])
    with pytest.raises(DecodeError, match="frame 28 of 50 cannot be decoded"):
        list(VideoReader(path).stream())


def test_a_file_cut_short_is_an_error(tmp_path):
    whole = write_numbered(tmp_path / "whole.mkv", 75, options=B_FRAMES).read_bytes()
    (tmp_path / "cut.avi").write_bytes(b"RIFF" + whole[:200])
    with pytest.raises(DecodeError, match=r"cut.avi: cannot be opened as a video"):
        VideoReader(tmp_path / "cut.avi")


def silent_audio(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_unusable_files_are_named_with_the_reason(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is not a video\n" * 50)
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n")
    silent_audio(tmp_path / "audio.mp4")
    reasons = {
        "nowhere.mp4": "no such file",
        "empty.mp4": r"the file is empty \(0 bytes\)",
        "text.mp4": "cannot be opened as a video",
        "list.mp4": "cannot be opened as a video",
        "audio.mp4": "no video stream",
        ".": "is not a file",
    }
    for name, reason in reasons.items():
        with pytest.raises(DecodeError, match=f"{name}: {reason}"):
            VideoReader(tmp_path / name)


def test_frames_outside_the_video_are_refused(tmp_path):
    reader = VideoReader(write_numbered(tmp_path / "a.mp4", 5))
    for wanted in ([5], [-1], []):
        with pytest.raises(DecodeError, match="it has 0 to 4"):
            reader.frames(wanted)


def test_paths_do_not_lead_out_of_the_root(tmp_path):
    outside = write_numbered(tmp_path / "outside.mp4", 3)
    root = tmp_path / "root"
    root.mkdir()
    (root / "link.mp4").symlink_to(outside)
    os.link(outside, root / "inside.mp4")
    assert len(VideoReader("inside.mp4", root)) == 3
    for path in ("../outside.mp4", str(outside), "link.mp4", "x/../../outside.mp4"):
        with pytest.raises(DecodeError, match="leads out of the data root"):
            VideoReader(path, root)


def test_frames_above_the_pixel_limit_are_refused_before_decoding(tmp_path, monkeypatch):
    path = write_numbered(tmp_path / "a.mp4", 3)
    monkeypatch.setattr(decode, "MAX_PIXELS", 48 * 144 - 1)
    with pytest.raises(DecodeError, match=r"its frames of 144×48 pixels are above the limit of 6,911 pixels"):
        VideoReader(path)


def set_display_matrix(path: Path, a: int, b: int, c: int, d: int, x: int) -> None:
    """Overwrite the identity matrix of the mp4's track header: x' = a·x + c·y + x0, y' = b·x + d·y."""
    one = 1 << 16
    identity = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    content = path.read_bytes()
    place = content.index(identity, content.index(b"tkhd"))
    matrix = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, x * one, 0, 1 << 30)
    path.write_bytes(content[:place] + matrix + content[place + len(matrix) :])


def test_a_video_filmed_upright_with_a_turned_camera_is_turned_back(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 4)
    stored = VideoReader(path).frames([2])[0]
    set_display_matrix(path, 0, 1, -1, 0, 48)  # the stored top left corner is shown at the top right: clockwise
    assert np.array_equal(VideoReader(path).frames([2])[0], np.rot90(stored, -1))
    assert VideoReader(path).frames([2]).shape == (1, 144, 48, 3)


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
