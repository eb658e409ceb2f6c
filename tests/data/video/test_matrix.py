"""Every container, codec and oddity of the table, against a plain decode with PyAV from beginning to end."""

import multiprocessing
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from odd_videos import SHORT, TABLE

from mvit_video.data.video.guard import open_reader
from mvit_video.data.video.reader import VideoReader

assert len(TABLE) >= 60 and set(TABLE) >= SHORT
KINDS = [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in TABLE]


def decoded_through(path: Path) -> np.ndarray:
    """By PyAV alone: the default stream, from its first whole frame on, turned as the first says; FFmpeg does not repeat it."""
    with av.open(str(path)) as container:
        streams = [each for each in container.streams.video if not each.disposition & Disposition.attached_pic]
        stream = next((each for each in streams if each.disposition & Disposition.default), streams[0])
        stream.codec_context.thread_count = 1
        frames = [frame for frame in container.decode(stream) if not frame.is_corrupt]
        turns = round(frames[0].rotation / 90)
        return np.stack([np.rot90(frame.to_ndarray(format="rgb24"), turns) for frame in frames])


@pytest.mark.parametrize("kind", KINDS)
def test_the_frames_are_those_of_a_plain_decode_for_any_request(kind, tmp_path):
    path = TABLE[kind](tmp_path)
    expected = decoded_through(path)
    rng = np.random.default_rng(0)
    with VideoReader(path) as reader:
        assert len(reader) == len(expected) == len(reader.times())
        assert 5 < reader.fps <= 100
        assert np.array_equal(np.stack(list(reader.stream())), expected)
        for number in rng.permutation(len(expected)):
            assert np.array_equal(reader.frames([number])[0], expected[number]), number
            with VideoReader(path) as fresh:  # which has learnt nothing from what was read before
                assert np.array_equal(fresh.frames([number])[0], expected[number]), number
        for step in (1, 2, 5):
            numbers = rng.permutation(np.arange(rng.integers(step), len(expected), step))[:8]
            assert np.array_equal(reader.frames(numbers), expected[numbers]), numbers
    VideoReader(path).check()
    with open_reader(path, timeout=60) as guarded:
        assert np.array_equal(np.stack(list(guarded.stream())), expected)
        numbers = rng.permutation(len(expected))[:5]
        assert np.array_equal(guarded.frames(numbers), expected[numbers])
    assert in_a_fork(path, expected)


def in_a_fork(path: Path, expected: np.ndarray) -> bool:
    """Whether a process gives the same that was forked from one that has decoded, as a loader's workers are."""

    def read() -> None:
        with VideoReader(path) as reader:
            right = np.array_equal(reader.frames(range(len(expected) - 1, -1, -3)), expected[::-3])
        raise SystemExit(0 if right else 1)

    child = multiprocessing.get_context("fork").Process(target=read)
    child.start()
    child.join(60)
    child.kill()
    return child.exitcode == 0


def test_times_stay_evenly_spaced_when_the_clock_jumps(tmp_path):
    with VideoReader(TABLE["transport stream, joined"](tmp_path)) as reader:
        assert reader.fps == pytest.approx(25)
        assert np.allclose(np.diff([float(time) for time in reader.times()]), 1 / 25)
        assert "its clock jumps before frame 30" in reader.note


def test_a_clock_that_wraps_changes_nothing(tmp_path):
    with VideoReader(TABLE["transport stream, clock wraps"](tmp_path)) as reader:
        assert reader.fps == pytest.approx(25) and reader.note == ""
        assert np.allclose(np.diff([float(time) for time in reader.times()]), 1 / 25)


def test_a_video_that_does_not_begin_with_a_key_frame_has_a_note(tmp_path):
    for name in ("transport stream", "transport stream MPEG-2", "Matroska"):
        folder = tmp_path / name
        folder.mkdir()
        path = TABLE[f"{name}, does not begin with a key frame"](folder)
        for reader in (VideoReader(path), open_reader(path, timeout=60)):
            assert reader.note.startswith("does not begin with a key frame: its first ")
            reader.close()
