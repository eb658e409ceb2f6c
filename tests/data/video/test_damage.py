"""Damage: what refers to it is not handed out either, gaps are found, and so is a missing end."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest
from mutations import accepted
from numbered_video import read_number, write_numbered
from odd_videos import TABLE, B, P

from mvit_video.data.video.reader import VideoReader
from mvit_video.errors import DecodeError

FAST = {"bf": "2", "g": "12"}


def test_frames_after_damage_are_not_returned_until_the_next_key_frame(tmp_path):
    """FFmpeg conceals the damage and marks one frame; those that refer to it look whole and are wrong."""
    whole = write_numbered(tmp_path / "whole.mp4", 40, options={"bf": "0", "g": "20", "sc_threshold": "0"})
    with av.open(str(whole)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(whole.read_bytes())
    position, size = packets[8]
    for place in range(position + size // 2, position + size):
        content[place] ^= 0xFF
    (tmp_path / "a.mp4").write_bytes(content)
    clean = VideoReader(whole).frames(range(40))
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert np.array_equal(reader.frames([0, 7]), clean[[0, 7]])
        assert np.array_equal(reader.frames([20, 39]), clean[[20, 39]])
        for number in (8, 9, 15, 19):
            with pytest.raises(DecodeError, match=r"frame 8 of 40 (is damaged|cannot be decoded)"):
                reader.frames([number])
        with pytest.raises(DecodeError, match="frame 8 of 40"):
            reader.check()


def test_b_frames_shown_before_a_damaged_frame_that_they_refer_to_are_not_returned(tmp_path):
    """FFmpeg gives them first and unmarked. One bit is flipped at a time, and each frame asked for alone.

    One bit in fifty gives other images without an error, also where FFmpeg is told to stop at errors (`accepted`).
    """
    whole = write_numbered(tmp_path / "whole.mp4", 48, options=B | {"b_strategy": "1", "bf": "3"})
    content, clean = whole.read_bytes(), list(VideoReader(whole).stream())
    rng, refused = np.random.default_rng(0), 0
    for _ in range(16):
        changed = bytearray(content)
        changed[rng.integers(len(content) // 20, len(content) * 8 // 10)] ^= 1 << int(rng.integers(8))
        (tmp_path / "a.mp4").write_bytes(changed)
        unseen, _ = accepted(tmp_path / "a.mp4")
        with VideoReader(tmp_path / "a.mp4") as reader:
            for number in range(48):
                try:
                    frame = reader.frames([number])[0]
                except DecodeError:
                    refused += 1
                    continue
                assert any(
                    np.array_equal(frame, frames[number]) for frames in (clean, unseen[number:] and unseen) if frames
                )
    assert 20 < refused < 16 * 48


def test_a_stream_returns_the_frames_before_damage(tmp_path):
    whole = write_numbered(tmp_path / "whole.mp4", 40, options=P | {"g": "40"})
    with av.open(str(whole)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(whole.read_bytes())
    position, size = packets[25]
    content[position + 8 : position + size] = bytes(size - 8)
    (tmp_path / "a.mp4").write_bytes(content)
    given = []
    with pytest.raises(DecodeError, match="frame 25 of 40"):
        given.extend(VideoReader(tmp_path / "a.mp4").stream())
    assert [read_number(frame) for frame in given] == list(range(25))


@pytest.mark.parametrize("name", ["AVI MJPEG", "Matroska MJPEG", "MP4 MJPEG"])
def test_damage_that_a_decoder_only_logs_is_an_error(name, tmp_path):
    path = TABLE[name](tmp_path)
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    at = packets[9][0] + packets[9][1] * 3 // 4
    content[at : at + 12] = b"\xff\x00" * 6
    path.write_bytes(content)
    with av.open(str(path)) as container:
        assert not any(frame.is_corrupt for frame in container.decode(video=0)), "FFmpeg marks it now"
    with VideoReader(path) as reader:
        assert len(reader.frames([8, 10])) == 2
        with pytest.raises(DecodeError, match="frame 9 of 30 cannot be decoded"):
            reader.frames([9])


def short_clusters(folder: Path) -> tuple[Path, list[int]]:
    """A Matroska file of several clusters, and where they begin."""
    path = write_numbered(folder / "whole.mkv", 75, options=FAST, container={"cluster_time_limit": "400"})
    content, found = path.read_bytes(), []
    while (at := content.find(b"\x1f\x43\xb6\x75", found[-1] + 4 if found else 0)) >= 0:
        found.append(at)
    assert len(found) > 4
    return path, found


def test_a_gap_that_a_demuxer_skips_is_found(tmp_path):
    """FFmpeg looks for the next cluster, and goes on there."""
    whole, clusters = short_clusters(tmp_path)
    content = whole.read_bytes()
    for name, at, count in (("cluster", clusters[2], 4), ("block", clusters[2] + 14, 3)):
        path = tmp_path / f"{name}.mkv"
        path.write_bytes(content[:at] + bytes(count) + content[at + count :])
        with av.open(str(path)) as container:
            assert 20 < sum(1 for _ in container.decode(video=0)) < 75
        with pytest.raises(DecodeError, match=f"{name}.mkv: is damaged at byte .*unexpected data for its container"):
            VideoReader(path)
        with VideoReader(path, whole=False) as reader:
            assert "is damaged at byte" in reader.shortfall
            numbers = [read_number(frame) for frame in reader.stream()]
            assert numbers == list(range(len(numbers))) and 10 < len(numbers) < 75


CUT = {
    "MP4, index first": r"is cut short: it lists 30 frames but contains \d\d",
    "MP4 H.264": "an MP4 file without its index",
    "MP4 in fragments": "is cut short: an element ends at byte",
    "Matroska H.264": "is cut short: an element ends at byte",
    "WebM VP8": "is cut short: an element ends at byte",
    "AVI MJPEG": "is cut short: an element ends at byte",
    "AVI MPEG-4, packed B-frames": "is cut short: an element ends at byte",
    "FLV H.264": "is cut short: an element ends at byte",
    "Ogg VP8": "is cut short: an element ends at byte",
    "ASF WMV2": "is cut short: an element ends at byte",
    "GIF": "is cut short: its end marker is missing",
    "Y4M": "is cut short: an element ends at byte",
    "MXF MPEG-2": "is cut short: an element ends at byte",
    "IVF VP9": "is cut short: an element ends at byte",
    "program stream MPEG-2": "is cut short: an element ends at byte",
}


@pytest.mark.parametrize("name", CUT)
def test_a_clip_cut_short_by_15_percent_is_an_error(name, tmp_path):
    path = TABLE[name](tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 85 // 100 - 3])
    with pytest.raises(DecodeError, match=f"{path.name}: .*{CUT[name]}"):
        VideoReader(path)


@pytest.mark.parametrize("name", ["MP4, index first", "Matroska H.264", "AVI MPEG-4", "FLV H.264"])
def test_a_truncated_clip_is_read_up_to_its_end_on_request(name, tmp_path):
    path = TABLE[name](tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 70 // 100])
    with VideoReader(path, whole=False) as reader:
        assert reader.shortfall.startswith("is cut short: ")
        given = []
        try:
            given.extend(reader.stream())
        except DecodeError as reason:  # the last frame may be there in part
            assert f"frame {len(given)} of" in str(reason) or "damaged" in str(reason)
        assert [read_number(frame) for frame in given] == list(range(len(given))) and len(given) > 5


def test_padding_and_appended_data_are_no_damage(tmp_path):
    for name in ("MP4 H.264", "Matroska H.264", "AVI MPEG-4", "FLV H.264", "GIF", "program stream MPEG-2"):
        folder = tmp_path / name
        folder.mkdir()
        path = TABLE[name](folder)
        path.write_bytes(path.read_bytes() + bytes(1000))
        VideoReader(path).check()
    path = TABLE["MP4 H.264"](tmp_path)
    path.write_bytes(path.read_bytes() + struct.pack(">I", 5000) + b"SEFT of a phone")
    VideoReader(path).check()
