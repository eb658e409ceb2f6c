"""Charades' official lists and PySlowFast's frame lists of it, beside readings of their own."""

import csv
import io
import re

import numpy as np
import pytest
from list_files import write

from mvit_video.data.lists.read import read_videos
from mvit_video.errors import AnnotationError

HEAD = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"
NAMES = [f"Holding some {thing}" for thing in ("clothes", "dishes, or a cup/glass", "food", "sandwich", "door")]
CLASSES = "".join(f"c{number:03} {name}\n" for number, name in enumerate(NAMES))


def charades(folder, rows, classes=CLASSES):
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    write(folder / "Charades_v1_train.csv", HEAD + text.getvalue())
    write(folder / "Charades_v1_classes.txt", classes)


def row(name, actions):
    script = 'A person says "no, no";\nand sits, on a sofa.'
    return (name, "HR43", "Kitchen", 6, 7, "Yes", script, "door;food", "Words, and words;more", actions, "24.83")


def test_the_official_list_is_read_as_the_set_of_each_videos_actions(tmp_path):
    rng, rows = np.random.default_rng(0), []
    for number in range(60):
        classes, times = rng.integers(0, 5, rng.integers(0, 7)), rng.uniform(0, 30, (7, 2))
        spans = (f"c{one:03} {low:.2f} {high:.2f}" for one, (low, high) in zip(classes, times, strict=False))
        rows.append(row(f"V{number:04}", ";".join(spans)))
    charades(tmp_path, rows)
    videos = read_videos("Charades_v1_train.csv", str(tmp_path))
    with (tmp_path / "Charades_v1_train.csv").open(newline="") as file:
        actions = {
            one["id"]: {int(text) for text in re.findall("c([0-9]+)", one["actions"])} for one in csv.DictReader(file)
        }
    wanted = {f"{name}.mp4": labels for name, labels in actions.items() if labels}
    assert {record.path: set(record.labels) for record in videos.records} == wanted and len(wanted) < 60
    assert all(len(set(record.labels)) == len(record.labels) for record in videos.records)
    assert videos.classes == tuple(NAMES)
    assert re.search(
        r"the times of actions are not read.*\n.*: \d+ videos without a label are left out", "\n".join(videos.notes)
    )


@pytest.mark.parametrize(
    ("actions", "classes", "message"),
    [
        ("c009 1 2", CLASSES, r"train.csv: row 3 has the action 'c009 1 2', expected a class of Charades_v1_classes.txt and two"),
        ("c001", CLASSES, "row 3 has the action 'c001', expected"),
        ("c001 1 2", CLASSES.replace("c003", "c004"), "classes.txt: row 4 is 'c004 Holding some sandwich', expected `c003 CLASS`"),
        ("", CLASSES, "train.csv: contains no videos with actions under its header"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_one_sentence(tmp_path, actions, classes, message):
    charades(tmp_path, [row("46GP8", actions)], classes)
    with pytest.raises(AnnotationError, match=message):
        read_videos("Charades_v1_train.csv", str(tmp_path))


def test_the_file_of_classes_must_be_beside_the_list(tmp_path):
    charades(tmp_path, [row("46GP8", "c001 1 2")])
    (tmp_path / "Charades_v1_classes.txt").unlink()
    with pytest.raises(
        AnnotationError, match=r"there is no Charades_v1_classes.txt next to it, which names the classes"
    ):
        read_videos("Charades_v1_train.csv", str(tmp_path))


def test_a_frame_list_is_read_as_the_union_of_the_labels_of_each_videos_frames(tmp_path):
    rng, lines = np.random.default_rng(1), ["original_vido_id video_id frame_id path labels"]
    for video in range(30):
        for frame in range(rng.integers(1, 9)):
            labels = ",".join(map(str, rng.integers(0, 157, rng.integers(0, 4) if video % 5 else 0)))
            lines.append(f'V{video} {video} {frame} V{video}/V{video}-{frame + 1:06}.jpg "{labels}"')
    write(tmp_path / "train.csv", "\n".join(lines))
    videos = read_videos("train.csv", str(tmp_path), [f"class {number}" for number in range(157)], frames=True)
    wanted: dict[str, set[int]] = {}
    for line in lines[1:]:
        name, _, _, _, quoted = line.split(" ")
        wanted.setdefault(name, set()).update(int(text) for text in quoted[1:-1].split(",") if text)
    wanted = {name: labels for name, labels in wanted.items() if labels}
    assert {record.path: set(record.labels) for record in videos.records} == wanted and len(wanted) < 30
    assert videos.notes[0].endswith(f"{30 - len(wanted)} videos without a label are left out")
