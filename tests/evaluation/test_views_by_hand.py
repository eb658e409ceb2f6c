"""The views of each published protocol against a plain loop, pixel by pixel; no network is involved."""

import math
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
from plain_views import all_frames, scaled

from mvit_video.config.schema import InputSettings
from mvit_video.data.dataset import ViewDataset
from mvit_video.data.lists.records import VideoList, VideoRecord
from mvit_video.data.synthetic import write_video
from mvit_video.data.video.reader import VideoReader
from mvit_video.data.video.source import VideoFiles
from mvit_video.evaluation.protocols import NAMED

SAMPLED = {"num_frames": 6, "sampling_rate": 8}
INPUTS = {
    "kinetics-5x1": InputSettings(**SAMPLED),
    "kinetics-5x3": InputSettings(**SAMPLED, short_side=312, crop_size=312, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)),
    "ssv2-1x3": InputSettings(num_frames=6, sampling="segment", short_side=224),
}
VIDEOS = {  # frames, height, width, frames a second: wide, upright and odd when scaled, shorter than a clip
    "wide.mp4": (71, 66, 90, 25),
    "tall.mp4": (59, 102, 70, Fraction(30000, 1001)),
    "short.mp4": (20, 64, 64, 30),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    for name, (count, height, width, fps) in VIDEOS.items():
        coarse = rng.integers(0, 255, (count, height // 2, width // 2, 3), np.uint8)
        write_video(folder / name, coarse.repeat(2, 1).repeat(2, 2), fps)
    return folder


def taken(name, count, fps):
    """Which frames each clip of a protocol has, by the formulas of the paper's code."""
    if name == "ssv2-1x3":  # the middle frame of each of six parts, whose borders are rounded
        borders = [round(part * (count - 1) / 6) for part in range(7)]
        return [[(first + last) // 2 for first, last in pairwise(borders)]]
    window = 6 * 8 * fps / 30
    starts = [clip * math.floor(max(count - window, 0) / 4) for clip in range(5)]
    return [[min(int(start + place * (window - 1) / 5), count - 1) for place in range(6)] for start in starts]


def cut(picture, size, part):
    """A crop at 0 (left or top), 1 (centre) or 2 (right or bottom) of the longer side."""
    height, width = picture.shape[:2]
    rooms = height - size, width - size
    top, left = (math.ceil(room / 2) for room in rooms)
    if part != 1:
        top, left = (part // 2 * rooms[0], left) if height > width else (top, part // 2 * rooms[1])
    return picture[top : top + size, left : left + size]


@pytest.mark.parametrize("video", VIDEOS)
@pytest.mark.parametrize("name", NAMED)
def test_the_views_of_a_published_protocol_are_those_of_a_plain_loop(root, name, video, monkeypatch):
    protocol, inputs = NAMED[name], INPUTS[name]
    protocol.check(inputs)
    calls, read = [], VideoReader.frames
    monkeypatch.setattr(VideoReader, "frames", lambda reader, expected: calls.append(1) or read(reader, expected))
    videos = VideoList((VideoRecord(video, 0, 1),), ("a",), "list.csv")
    views = ViewDataset(videos, VideoFiles(str(root), timeout=0), inputs, protocol.clips, protocol.crops, "return")[0][
        "video"
    ].numpy()
    assert len(calls) == 1, "one decode for all views"

    frames, fps = all_frames(root / video), float(VIDEOS[video][3])
    size, crops = inputs.crop_hw[0], [1] if protocol.crops == 1 else [0, 1, 2]
    expected = taken(name, len(frames), fps)
    assert len({tuple(numbers) for numbers in expected}) == (len(expected) if video != "short.mp4" else 1)
    shape = (protocol.clips * protocol.crops, 3, 6, size, size)
    assert views.shape == shape
    for row, numbers in enumerate(expected):
        for place, number in enumerate(numbers):
            big = scaled(frames[number], inputs.short_side)
            for column, part in enumerate(crops):
                picture = (cut(big, size, part) - inputs.mean) / inputs.std
                actual = views[row * len(crops) + column, :, place].transpose(1, 2, 0)
                assert np.abs(actual - picture).max() < 2e-4, (row, place, part)


def test_the_loops_videos_have_the_rates_that_it_counts_on(root):
    for name, (count, _, _, fps) in VIDEOS.items():
        with av.open(str(root / name)) as container:
            assert container.streams.video[0].average_rate == fps and container.streams.video[0].frames == count
