"""Files that lie, lead elsewhere or are damaged: a sentence, no memory, no connection."""

import os
import socket
import struct
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from numbered_video import write_numbered

from mvit_video.data.video import limits as decode_limits
from mvit_video.data.video import pyav as decode_pyav
from mvit_video.data.video.reader import VideoReader
from mvit_video.errors import DecodeError

FAST = {"bf": "2", "g": "12"}


def silent_audio(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def refused(path, reason, root=None, backend="pyav"):
    """Opening and decoding wholly must end in this reason."""
    with pytest.raises(DecodeError, match=f"{Path(path).name}: .*{reason}"), VideoReader(path, root, backend) as reader:
        reader.check()


def test_unusable_files_are_named_with_the_reason(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is not a video\n" * 50)
    silent_audio(tmp_path / "audio.mp4")
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    reasons = {
        "nowhere.mp4": "no such file",
        "null\0.mp4": "no such file",
        "x" * 300 + ".mp4": "cannot be opened",
        "loop.mp4": "cannot be opened|no such file",
        "empty.mp4": r"the file is empty \(0 bytes\)",
        "text.mp4": "cannot be opened as a video",
        "audio.mp4": "no video stream",
        "fifo.mp4": "is not a file",
        ".": "the folder contains no images, expected names such as img_00001.jpg",
    }
    for name, reason in reasons.items():
        with pytest.raises(DecodeError, match=f"{name}: ({reason})"):
            VideoReader(tmp_path / name)


def test_frames_outside_the_video_are_refused(tmp_path):
    reader = VideoReader(write_numbered(tmp_path / "a.mp4", 5))
    for expected in ([5], [-1], [], [[0, 1]]):
        with pytest.raises(DecodeError, match="it has 0 to 4"):
            reader.frames(expected)


def test_paths_do_not_lead_out_of_the_root(tmp_path):
    outside = write_numbered(tmp_path / "outside.mp4", 3)
    root = tmp_path / "root"
    (root / "x").mkdir(parents=True)
    (root / "link.mp4").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path)
    os.link(outside, root / "inside.mp4")
    (root / "x" / "kept.mp4").symlink_to(root / "inside.mp4")
    assert len(VideoReader("inside.mp4", root)) == len(VideoReader("x/kept.mp4", root)) == 3
    assert len(VideoReader("link.mp4", root)) == len(VideoReader("folder/outside.mp4", root)) == 3, "links are followed"
    for path in ("../outside.mp4", str(outside), "x/../../outside.mp4", "x/../inside.mp4", "../root/inside.mp4"):
        with pytest.raises(DecodeError, match=r"leads out of data.root = .*: write paths relative to it, without"):
            VideoReader(path, root)


@pytest.mark.parametrize("path", ["http://127.0.0.1:9/a.mp4", "file:///etc/passwd", "rtmp://x/y", "HTTPS://x/a.mp4"])
def test_an_address_is_not_a_path(path, tmp_path):
    for root in (None, tmp_path):
        with pytest.raises(DecodeError, match="is a URL, expected a local file: download it first"):
            VideoReader(path, root)


@pytest.mark.parametrize(
    "name", ["concat:a.mp4|b.mp4", "data:video,a.mp4", "frame_%03d.mp4", "a#1?x=y.mp4", "ünï cödé\n.mp4"]
)
def test_a_file_with_an_odd_name_is_a_file(name, tmp_path, monkeypatch):
    """FFmpeg takes some names for protocols and patterns."""
    write_numbered(tmp_path / "a.mp4", 3).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(VideoReader(name)) == len(VideoReader(name, ".")) == 3


@pytest.fixture
def listener():
    """(port, connections): counts who calls."""
    server, connections = socket.create_server(("127.0.0.1", 0)), []

    def count():
        while True:
            try:
                connection, caller = server.accept()
            except OSError:
                return
            connections.append(caller)
            connection.close()

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    yield server.getsockname()[1], connections
    server.shutdown(socket.SHUT_RDWR)  # which close alone does not do to a thread that waits in accept
    server.close()
    thread.join(5)


PLAYLISTS = {
    "HLS": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n",
    "HLS of a local file": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{local}\n#EXT-X-ENDLIST\n",
    "HLS with a key": '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="http://127.0.0.1:{port}/k"\n#EXTINF:1,\na.ts\n',
    "ffconcat": "ffconcat version 1.0\nfile http://127.0.0.1:{port}/a.mp4\n",
    "ffconcat of a local file": "ffconcat version 1.0\nfile {local}\n",
    "DASH": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S">'
    '<Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1">'
    "<BaseURL>http://127.0.0.1:{port}/a.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "RTSP redirect": "rtsptextrtsp://127.0.0.1:{port}/a",
    "ASX": '<asx version="3.0"><entry><ref href="http://127.0.0.1:{port}/a.mp4"/></entry></asx>',
    "IMF": '<?xml version="1.0"?><CompositionPlaylist xmlns="http://127.0.0.1:{port}/"></CompositionPlaylist>',
}


@pytest.mark.parametrize("suffix", ["mp4", "avi", "m3u8", "ts"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_disguised_playlists_are_refused_without_a_connection(kind, suffix, listener, tmp_path):
    port, connections = listener
    local = write_numbered(tmp_path / "local.mp4", 3)
    path = tmp_path / f"list.{suffix}"
    path.write_text(PLAYLISTS[kind].format(port=port, local=local))
    refused(path, "cannot be opened as a video")
    assert connections == []


def test_the_listener_counts(listener):
    port, connections = listener
    with socket.create_connection(("127.0.0.1", port)) as call:
        call.recv(1)
    assert len(connections) == 1


def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + name + content


def test_an_mp4_that_refers_to_other_files_and_addresses_opens_none_of_them(listener, tmp_path):
    """Its data reference names an address, or a file beside it, where the images are said to be."""
    port, connections = listener
    whole = write_numbered(tmp_path / "whole.mp4", 5).read_bytes()
    own = box(b"dref", bytes(4) + struct.pack(">I", 1) + box(b"url ", b"\0\0\0\1"))
    assert whole.count(own) == 1
    at = whole.index(own)
    nests = [whole.index(name) - 4 for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf")]
    for number, target in enumerate((f"http://127.0.0.1:{port}/a.mp4", "whole.mp4", str(tmp_path / "whole.mp4"))):
        other = box(b"dref", bytes(4) + struct.pack(">I", 1) + box(b"url ", bytes(4) + target.encode() + b"\0"))
        content = bytearray(whole[:at] + other + whole[at + len(own) :])
        for place in nests:
            size = struct.unpack(">I", content[place : place + 4])[0]
            content[place : place + 4] = struct.pack(">I", size + len(other) - len(own))
        media, end = whole.index(b"mdat") + 4, whole.index(b"moov") - 4
        content[media:end] = bytes(end - media)  # what is not here could only come from there
        path = tmp_path / f"refers{number}.mp4"
        path.write_bytes(content)
        refused(path, "frame 0 of 5 cannot be decoded")
    assert connections == []


def test_frames_above_the_pixel_limit_are_refused_before_decoding(tmp_path, monkeypatch):
    path = write_numbered(tmp_path / "a.mp4", 3)
    monkeypatch.setattr(decode_limits, "MAX_PIXELS", 48 * 144 - 1)
    with pytest.raises(DecodeError, match=r"its frames of 144×48 pixels are above the limit of 6,911 pixels"):
        VideoReader(path)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_frame_that_turns_out_giant_allocates_no_memory(tmp_path):
    """The container says 144×48, the stream 16383×16383, which is 403 MB a frame."""
    options = {"deadline": "realtime", "cpu-used": "8"}
    content = write_numbered(tmp_path / "a.webm", 6, codec="libvpx", options=options).read_bytes()
    start = content.index(b"\x9d\x01\x2a") + 3
    assert struct.unpack("<HH", content[start : start + 4]) == (144, 48)
    (tmp_path / "giant.webm").write_bytes(content[:start] + struct.pack("<HH", 16383, 16383) + content[start + 4 :])
    before = resident()
    refused(tmp_path / "giant.webm", "frame 0 of 6 cannot be decoded .*above the limit of 36,000,000 pixels")
    assert resident() - before < 100e6


@pytest.mark.parametrize("limit", [1 << 30, 20_000])
def test_a_size_that_changes_in_mid_stream_is_an_error_at_that_frame(tmp_path, monkeypatch, limit):
    """With the lower limit the second size is above it, and is refused by the decoder before memory is taken."""
    monkeypatch.setattr(decode_pyav, "MAX_PIXELS", limit)
    monkeypatch.setitem(decode_pyav.OPTIONS, "max_pixels", str(limit))
    for name, padding in (("small", 0), ("large", 96)):
        write_numbered(tmp_path / f"{name}.h264", 10, options={"bf": "0"}, padding=padding, form="h264")
    both = (tmp_path / "small.h264").read_bytes() + (tmp_path / "large.h264").read_bytes()
    (tmp_path / "both.h264").write_bytes(both)
    refused(
        tmp_path / "both.h264", "size changes within the video, to 240×144" if limit > 20_000 else "cannot be decoded"
    )
    with VideoReader(tmp_path / "both.h264") as reader:
        assert reader.frames(range(10)).shape == (10, 48, 144, 3)
        with pytest.raises(
            DecodeError, match="size changes within the video, from 144×48" if limit > 20_000 else "decoded"
        ):
            reader.frames([3, 15])


def test_too_many_frames_at_once_are_refused_before_allocation(tmp_path):
    with VideoReader(write_numbered(tmp_path / "a.mp4", 3)) as reader:
        with pytest.raises(
            DecodeError, match=r"300000 frames of 144×48 pixels at once need 6.2 GB, above the limit of 4.3 GB: request"
        ):
            reader.frames([1] * 300_000)
        assert reader.frames([1] * 300).shape[0] == 300


def test_too_many_frames_and_too_long_videos_are_refused(tmp_path, monkeypatch):
    path = write_numbered(tmp_path / "a.mp4", 30)
    monkeypatch.setattr(decode_limits, "MAX_FRAMES", 20)
    refused(path, "its 21 frames or more are above the limit of 20")
    content = bytearray(write_numbered(tmp_path / "long.mkv", 5).read_bytes())
    place = content.index(b"\x44\x89\x88") + 3  # Duration, 8 bytes, in milliseconds
    content[place : place + 8] = struct.pack(">d", 100 * 3600e3)
    (tmp_path / "long.mkv").write_bytes(content)
    refused(tmp_path / "long.mkv", "its length of 100 hours is above the limit of 48")


def test_any_byte_of_a_small_file_may_be_wrong(tmp_path):
    """No error but ours, whatever is flipped; frames that are given have the video's size."""
    content = write_numbered(tmp_path / "a.mp4", 4, options={"bf": "1"}).read_bytes()
    rng = np.random.default_rng(0)
    outcomes = {"given": 0, "refused": 0}
    for _ in range(150):
        changed = bytearray(content)
        for place in rng.integers(0, len(content), 3):
            changed[place] = rng.integers(256)
        (tmp_path / "b.mp4").write_bytes(changed)
        try:
            with VideoReader(tmp_path / "b.mp4") as reader:
                reader.frames(range(len(reader)))
                reader.check()
            outcomes["given"] += 1
        except DecodeError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 5


def test_an_mp4_whose_index_is_cut_says_that_it_is_cut_short(tmp_path):
    content = write_numbered(tmp_path / "whole.mp4", 12).read_bytes()
    (tmp_path / "a.mp4").write_bytes(content[: content.index(b"stts") + 40])
    refused(tmp_path / "a.mp4", "is cut short")
