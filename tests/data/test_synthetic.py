import json
from pathlib import Path

import numpy as np
import pytest

from mvit_video.data.lists.read import read_videos
from mvit_video.data.synthetic import (
    CLASSES,
    FPS,
    PAIRS,
    Pose,
    draw_pair,
    draw_pose,
    draw_scene,
    draw_velocity,
    draw_video,
    move,
    render,
    write_dataset,
)
from mvit_video.data.video.reader import VideoReader
from mvit_video.errors import ConfigError


def bright(frame):
    """The object: it is always brighter than the background."""
    return frame.max(-1) > 130


def middle(frame):
    rows, columns = np.nonzero(bright(frame))
    return rows.mean(), columns.mean()


@pytest.fixture
def scene():
    return draw_scene(np.random.default_rng(3))


def start_and_end(scene, label):
    """A frame of an object in the middle and the one half a second later."""
    pose = Pose(0.5, 0.5, 0.4, 0.1)
    velocity = draw_velocity(np.random.default_rng(0), label)
    return render(scene, pose), render(scene, move(pose, velocity, 0.5))


def test_objects_move_as_their_class_says(scene):
    for name, axis, sign in (
        ("moving left", 1, -1),
        ("moving right", 1, 1),
        ("moving up", 0, -1),
        ("moving down", 0, 1),
    ):
        before, after = start_and_end(scene, CLASSES.index(name))
        shift = np.subtract(middle(after), middle(before))
        assert shift[axis] * sign > 5 and abs(shift[1 - axis]) < 1, name


def test_objects_grow_and_shrink_as_their_class_says(scene):
    for name, larger in (("coming closer", True), ("going away", False)):
        before, after = start_and_end(scene, CLASSES.index(name))
        ratio = bright(after).sum() / bright(before).sum()
        assert ratio > 1.2 if larger else ratio < 0.85, name


def test_objects_turn_as_their_class_says(scene):
    for name, sign in (("turning clockwise", 1), ("turning counter-clockwise", -1)):
        label = CLASSES.index(name)
        turn = draw_velocity(np.random.default_rng(0), label).angle * 0.5  # turns in the half second
        before, after = start_and_end(scene, label)
        assert abs(turn) > 0.05
        errors = {}
        for direction in (1, -1):
            errors[direction] = np.abs(rotated(bright(before), direction * abs(turn)) - bright(after)).mean()
        assert errors[sign] < errors[-sign] * 0.7, name


def rotated(picture, turns):
    """An image turned clockwise about its centre, nearest pixel."""
    height, width = picture.shape
    y, x = np.mgrid[:height, :width] + 0.5
    y, x = y - height / 2, x - width / 2
    angle = 2 * np.pi * turns
    from_x, from_y = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    rows = np.clip((from_y + height / 2).astype(int), 0, height - 1)
    columns = np.clip((from_x + width / 2).astype(int), 0, width - 1)
    return picture[rows, columns].astype(float)


@pytest.mark.parametrize("label", range(len(CLASSES)))
@pytest.mark.parametrize("seconds", [0.0, 2.3])
def test_poses_are_uniform_at_every_time_of_every_class(label, seconds):
    rng = np.random.default_rng(label)
    poses = [move(draw_pose(rng), draw_velocity(rng, label), seconds) for _ in range(3000)]
    for name in ("x", "y", "size", "angle"):
        values = np.sort([getattr(pose, name) for pose in poses])
        distance = np.abs(values - (np.arange(3000) + 0.5) / 3000).max()  # Kolmogorov–Smirnov
        assert distance < 1.95 / np.sqrt(3000), name  # p > .001


def test_only_the_coordinate_of_the_class_moves():
    for label in range(len(CLASSES)):
        velocity = draw_velocity(np.random.default_rng(label), label)
        moving = [name for name in ("x", "y", "size", "angle") if getattr(velocity, name) != 0]
        assert moving == [("x", "y", "size", "angle")[label // 2]]


def test_a_dataset_is_whole_and_the_same_each_time(tmp_path):
    folders = [write_dataset(tmp_path / name, 9, 4, seed=5, workers=1 + place) for place, name in enumerate("ab")]
    for folder in folders:
        train, val = (read_videos(f"{name}.csv", str(folder)) for name in ("train", "val"))
        assert [record.label for record in train.records] == [*range(8), 0] and len(val) == 4
        assert train.classes == CLASSES
        assert {path.name for path in folder.iterdir()} == {
            "train", "val", "train.csv", "val.csv", "classes.txt", "long.mp4", "long.json",
        }  # fmt: skip
    for record in train.records:
        one, other = (VideoReader(record.path, folder).frames(range(36)) for folder in folders)
        assert np.array_equal(one, other)


def test_files_are_what_was_drawn_up_to_compression(tmp_path):
    folder = write_dataset(tmp_path / "data", 2, 1, seed=5, workers=1)
    with VideoReader("train/00001.mp4", folder) as reader:
        assert reader.fps == FPS
        decoded = reader.frames(range(len(reader))).astype(float)
    drawn = draw_video(1, np.random.default_rng([5, 0, 1]))
    assert decoded.shape == drawn.shape
    assert np.abs(decoded - drawn).mean() < 8


def test_the_long_video_lasts_as_long_as_its_segments(tmp_path):
    folder = write_dataset(tmp_path / "data", 1, 1, seed=0, workers=1)
    segments = json.loads((folder / "long.json").read_text())
    reader = VideoReader("long.mp4", folder)
    assert len(segments) == 6 and len({segment["label"] for segment in segments}) == 6
    assert segments[-1]["end"] == pytest.approx(len(reader) / reader.fps)


def test_a_folder_that_holds_a_dataset_is_not_overwritten_unless_told(tmp_path):
    folder = write_dataset(tmp_path / "data", 2, 1, seed=0, workers=1)
    Path(folder / "mine.txt").write_text("keep")
    before = (folder / "train.csv").read_text()
    with pytest.raises(
        ConfigError, match=r"already contains train of another run: choose another --output, or pass --overwrite"
    ):
        write_dataset(folder, 1, 1, seed=0, workers=1)
    assert (folder / "train.csv").read_text() == before
    write_dataset(folder, 1, 1, seed=0, workers=1, overwrite=True)
    assert (folder / "train.csv").read_text() == "train/00000.mp4 0\n"
    assert (folder / "mine.txt").read_text() == "keep"


def test_videos_of_two_motions_show_two_objects_and_have_both_labels(tmp_path):
    assert len(PAIRS) == 24 and all(one // 2 != other // 2 for one, other in PAIRS)
    frames = draw_pair((0, 3), np.random.default_rng(1), 2)
    rng = np.random.default_rng(1)
    first, pose, velocity = draw_scene(rng), draw_pose(rng), draw_velocity(rng, 0)
    alone = render(first, move(pose, velocity, 1 / FPS))
    seen = bright(frames[1])
    assert seen[bright(alone)].all() and seen.sum() > bright(alone).sum(), (
        "the first object is hidden at most by the second"
    )
    write_dataset(tmp_path / "data", num_train=3, num_val=1, seed=0, workers=1, two_motions=True)
    assert [video.labels for video in read_videos("train.csv", str(tmp_path / "data")).records] == [*PAIRS[:3]]
