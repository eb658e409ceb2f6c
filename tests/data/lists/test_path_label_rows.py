import csv
import os
import re
import sys

import pytest
from list_files import paths_and_labels, write

from mvit_video.config.schema import DataSettings
from mvit_video.data.lists.read import checked_list, read_videos
from mvit_video.errors import AnnotationError


def read(tmp_path, text, **arguments):
    write(tmp_path / "list.csv", text)
    return paths_and_labels(read_videos("list.csv", str(tmp_path), **arguments))


PATHS = ["a.mp4", "two words/b 1.MP4", "größe/行く#1.webm", 'say "hi".avi', "a, b.mov", "x.mp4.y,3 4.mkv", "v.2/c.ts"]


@pytest.mark.parametrize("separator", [",", "\t", " "])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_rows_that_the_csv_module_writes_are_read_back(tmp_path, separator, quoting):
    with open(tmp_path / "list.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=separator, quoting=quoting).writerows(zip(PATHS, range(len(PATHS)), strict=True))
    videos = read_videos("list.csv", str(tmp_path))
    assert paths_and_labels(videos) == [(path, (label,)) for label, path in enumerate(PATHS)]


@pytest.mark.parametrize("separator", [",", "\t", " "])
def test_video_paths_need_no_quotes_whatever_they_hold(tmp_path, separator):
    text = "".join(f"{path}{separator}{label}\n" for label, path in enumerate(PATHS))
    assert read(tmp_path, text) == [(path, (label,)) for label, path in enumerate(PATHS)]


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x1c"])
def test_only_line_ends_end_rows(tmp_path, mark):
    assert read(tmp_path, f"a{mark}b.mp4 0\rc.mp4 1\r\nd.mp4 2\n") == [
        (f"a{mark}b.mp4", (0,)),
        ("c.mp4", (1,)),
        ("d.mp4", (2,)),
    ]


@pytest.mark.parametrize(
    "row", ["a.mp4 3;1;2", "a.mp4,3;1;2", "a.mp4 3,1,2", "a.mp4\t3, 1, 2", 'a.mp4,"3,1,2"', '"a.mp4" "3;1;2;3"']
)
def test_a_row_may_have_several_labels(tmp_path, row):
    assert read(tmp_path, f"{row}\nb.mp4 0\n") == [("a.mp4", (3, 1, 2)), ("b.mp4", (0,))]


def test_several_labels_may_be_class_names(tmp_path):
    classes = ["jump; land", "run", "sit"]
    assert read(tmp_path, "a.mp4,run;sit\nb.mp4,jump; land\n", classes=classes) == [("a.mp4", (1, 2)), ("b.mp4", (0,))]


def test_class_names_with_spaces_follow_a_video_path(tmp_path):
    assert read(tmp_path, "a.mp4 jump high\n", classes=["jump high"]) == [("a.mp4", (0,))]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.mp4,3,1", "row 2 has '3,1' after the path, .* write several labels as 3;1"),
        ("a.mp4 120 5", "row 2 has '120 5' after the path, .* write several labels as 120;5"),
        ("folder,3,1", r"row 2 is 'folder,3,1', which is ambiguous: write several labels as 3;17"),
        ("clip 01,3", "row 2 is 'clip 01,3', which is ambiguous"),
        ('"a.mp4,3', "row 2 is '\"a.mp4,3', where the quoted path is not closed"),
        ("a.mp4 3;x", "row 2 has the label 'x', expected a whole number from 0"),
        ("a.mp4 3;", "row 2 is 'a.mp4', expected a path and a label"),
    ],
)
def test_what_can_mean_two_things_is_an_error_with_its_cure(tmp_path, row, message):
    with pytest.raises(AnnotationError, match=message):
        read(tmp_path, f"first.mp4 0\n{row}\n")


def test_quotation_marks_decide(tmp_path):
    assert read(tmp_path, '"clip 01",3\n"folder,3",1\n') == [("clip 01", (3,)), ("folder,3", (1,))]


def test_raw_frame_lists_give_folders(tmp_path):
    assert read(tmp_path, "some/dir-1 163 1\nother dir/2 122 0\nmany 9 3;1\nmore 9 2,4\n") == [
        ("some/dir-1", (1,)),
        ("other dir/2", (0,)),
        ("many", (3, 1)),
        ("more", (2, 4)),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dir 163 1 3\n", "row 1 is 'dir 163 1 3', which has more numbers than `folder num_frames label`"),
        ("dir 163 1\nwalk 3\n", "row 2 is 'walk 3', but either all rows or none must be `folder num_frames label`"),
        ("walk 3\nwalk 01 3\n", "row 2 is 'walk 01 3', but either all rows or none"),
    ],
)
def test_raw_frame_lists_that_are_not_clear_are_refused(tmp_path, text, message):
    with pytest.raises(AnnotationError, match=message):
        read(tmp_path, text)


FRAME_LIST = """original_vido_id video_id frame_id path labels
0001 0 0 charades/0001/0001-000001.jpg "5,2"
0001 0 1 charades/0001/0001-000002.jpg "2,7"
0002 1 0 charades/0002/0002-000001.jpg "0"
"""


def test_a_frame_list_gives_folders_with_all_labels_of_their_frames(tmp_path):
    assert read(tmp_path, FRAME_LIST) == [("charades/0001", (5, 2, 7)), ("charades/0002", (0,))]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "0002 1 1 elsewhere/2.jpg 0",
            r"row 5 has the frame 'elsewhere/2.jpg' of '0002', expected all .* \('charades/0002'",
        ),
        (
            "0003 1 0 loose.jpg 0",
            "row 5 has the frame 'loose.jpg' of '0003', expected all frames of a video in one folder",
        ),
        ("0003 1 0", "row 5 has 3 fields, expected original_vido_id video_id frame_id path labels"),
        (b"0003 1 0 a/\xff.jpg 0", "is not UTF-8 text after row"),
        ("0003 1 0 a/1.jpg x", "row 5 has the label 'x', expected a whole number"),
    ],
)
def test_wrong_rows_of_a_frame_list_are_named(tmp_path, row, message):
    with pytest.raises(AnnotationError, match=message):
        read(tmp_path, FRAME_LIST.encode() + (row if isinstance(row, bytes) else row.encode()) + b"\n")


@pytest.mark.parametrize("first", ["a.mp4 peeling label", "a.mp4,label", "frames/0001 label", "a.mp4\tlabel"])
def test_a_first_row_whose_class_is_called_label_is_no_header(tmp_path, first):
    classes = ["peeling label", "label", "run"]
    found = read(tmp_path, f"{first}\nb.mp4 run\n", classes=classes)
    path, label = first.replace(",", " ").replace("\t", " ").split(" ", 1)
    assert found == [(path, (classes.index(label),)), ("b.mp4", (2,))]


@pytest.mark.parametrize("label", ["-1", "+3", "1.0"])
def test_numbers_as_class_names_are_read_as_they_stand(tmp_path, label):
    with pytest.raises(
        AnnotationError, match=f"row 1 has the label '{re.escape(label)}', expected a whole number from 0"
    ):
        read(tmp_path, f"a.mp4\t{label}\n", classes=[str(number) for number in range(20)])


def test_several_labels_are_several_where_class_names_are_numbers(tmp_path):
    assert read(tmp_path, "a.mp4 1;5\n", classes=[str(number) for number in range(20)]) == [("a.mp4", (1, 5))]


def test_frame_folders_may_end_in_a_slash(tmp_path):
    assert read(tmp_path, "walk/0001/ 3 0\n") == [("walk/0001", (0,))]


def test_class_folders_are_read_to_the_bottom_and_say_what_they_leave_out(tmp_path):
    for path in (
        "jump/a.mp4",
        "jump/.cache/b.mp4",
        "jump/deep/c.flv",
        "jump/notes.txt",
        "run/d.OGV",
        "run/e.xyz",
        "f.mp4",
    ):
        write(tmp_path / "videos" / path)
    write(tmp_path / "elsewhere/g.mp4")
    os.symlink(tmp_path / "elsewhere", tmp_path / "videos/run/linked")
    os.symlink(tmp_path / "videos/run", tmp_path / "videos/run/round")
    videos = read_videos("videos", str(tmp_path))
    assert [record.path for record in videos.records] == [
        f"videos/{path}" for path in ("jump/a.mp4", "jump/deep/c.flv", "run/d.OGV", "run/linked/g.mp4")
    ]
    assert videos.notes == (
        f"{tmp_path}/videos: skipped 2 files without a video suffix, such as 'jump/notes.txt'; "
        "1 link to a folder that is already included, 'run/round'; 1 video outside the class folders, 'f.mp4'",
    )


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
def test_file_names_that_are_no_text_are_refused(tmp_path):
    write(tmp_path / "jump/a.mp4")
    (tmp_path / "jump" / os.fsdecode(b"gr\xf6.mp4")).touch()
    with pytest.raises(AnnotationError, match=r"the file name 'jump/gr.*\.mp4' is not UTF-8: rename the file"):
        read_videos(".", str(tmp_path))


def test_a_path_that_no_disk_can_hold_is_an_error_of_one_sentence(tmp_path):
    write(tmp_path / "list.csv", f"{'x' * 300}/a.mp4 0\n")
    with pytest.raises(AnnotationError, match=r"cannot be listed \(File name too long\)"):
        checked_list("list.csv", DataSettings(root=str(tmp_path)), None, keep_missing=False)
