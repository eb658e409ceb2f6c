"""Damaged files: the frames that are handed out are right, or the file is refused."""

import numpy as np
import pytest
from mutations import KINDS, accepted, mutated
from odd_videos import TABLE

from mvit_video.data.video.reader import VideoReader
from mvit_video.errors import DecodeError

BASES = [
    "MP4 H.264",
    "Matroska H.264",
    "AVI H.264",
    "AVI MPEG-4, packed B-frames",
    "AVI MJPEG",
    "transport stream H.264",
    "program stream MPEG-2",
    "FLV H.264",
    "ASF WMV2",
    "WebM VP9",
]
SEEDS = 200
SHORT = range(0, SEEDS, 9)  # every base and every kind
LOST = 2  # frames by which numbers may be off where bytes with whole frames are gone: containers do not count them


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Name → (file, frames), made when asked for."""
    made: dict = {}

    def get(name: str):
        if name not in made:
            path = TABLE[name](tmp_path_factory.mktemp("whole"))
            made[name] = (path, list(VideoReader(path).stream()))
        return made[name]

    return get


@pytest.mark.parametrize(
    "seed", [seed if seed in SHORT else pytest.param(seed, marks=pytest.mark.long) for seed in range(SEEDS)]
)
def test_a_damaged_file_gives_right_frames_or_none(seed, whole, tmp_path):
    """Right: what FFmpeg gives that is told to stop at errors, and where it has stopped, what the undamaged file gives."""
    kind = KINDS[seed // len(BASES) % len(KINDS)]
    source, frames = whole(BASES[seed % len(BASES)])
    path = tmp_path / source.name
    path.write_bytes(mutated(source.read_bytes(), kind, seed))
    reference, unstopped = accepted(path)
    given, refused, note = [], "", ""
    try:
        with VideoReader(path) as reader:
            note = reader.note
            given.extend(reader.stream())
        VideoReader(path).check()
    except DecodeError as reason:
        refused = str(reason)
    for number, frame in enumerate(given):
        assert right(number, frame, reference, frames, bool(note)), f"{kind.__name__}: frame {number}; {refused}"
    if unstopped and not refused:
        assert len(given) == len(reference)
    for number in np.random.default_rng(seed).permutation(max(len(given), 1))[:5]:
        try:
            with VideoReader(path) as reader:
                frame = reader.frames([number])[0]
        except DecodeError:
            continue
        if number < len(given):
            assert np.array_equal(frame, given[number]), f"{kind.__name__}: frame {number} alone"


def right(number: int, frame: np.ndarray, reference: list, frames: list, any_place: bool) -> bool:
    if number < len(reference) and np.array_equal(frame, reference[number]):
        return True
    near = frames if any_place else frames[max(number - LOST, 0) : number + LOST + 1]
    return any(np.array_equal(frame, other) for other in near)


def test_most_damage_is_detected_and_not_all_of_it_is_refused(whole, tmp_path):
    """The test above would also pass if everything were refused, or nothing were damaged."""
    source, _ = whole("MP4 H.264")
    refused = 0
    for seed in range(24):
        path = tmp_path / f"{seed}.mp4"
        path.write_bytes(mutated(source.read_bytes(), KINDS[seed % len(KINDS)], seed))
        try:
            list(VideoReader(path).stream())
        except DecodeError:
            refused += 1
    assert 12 <= refused < 24
