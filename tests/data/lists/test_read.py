import re

import pytest
from list_files import write

from mvit_video.data.lists.read import read_videos
from mvit_video.errors import AnnotationError


@pytest.mark.parametrize("separator", [" ", ",", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_rows_are_a_path_and_a_label(tmp_path, separator, ending, mark):
    rows = [f"a/one two.mp4{separator}1", f"b/größe#1.mp4{separator}0", ""]
    write(tmp_path / "train.csv", mark + ending.join(rows) + ending)
    videos = read_videos("train.csv", str(tmp_path))
    assert [(record.path, record.label, record.row) for record in videos.records] == [
        ("a/one two.mp4", 1, 1),
        ("b/größe#1.mp4", 0, 2),
    ]
    assert videos.classes == ("b", "a")


def test_a_header_row_is_passed_over(tmp_path):
    write(tmp_path / "train.csv", "path,label\nx.mp4,0\n")
    assert [record.row for record in read_videos("train.csv", str(tmp_path)).records] == [2]


@pytest.mark.parametrize("header", ["path", "Video", '"file_name"'])
def test_the_header_of_a_list_without_labels_is_passed_over(tmp_path, header):
    """As pandas writes a column of paths; unless a folder has that name."""
    write(tmp_path / "list.csv", f"{header}\na.mp4\nb.mp4\n")
    paths = [record.path for record in read_videos("list.csv", str(tmp_path), need_labels=False).records]
    assert paths == ["a.mp4", "b.mp4"]
    (tmp_path / header.strip('"')).mkdir()
    assert len(read_videos("list.csv", str(tmp_path), need_labels=False).records) == 3


def test_a_video_in_place_of_a_list_is_told_apart(tmp_path):
    write(tmp_path / "clip.MKV", b"\x1a\x45\xdf\xa3")
    with pytest.raises(AnnotationError, match=r"clip.MKV: is named as a video, expected a list of videos or a folder$"):
        read_videos("clip.MKV", str(tmp_path))


@pytest.mark.parametrize("label", ["run|jump high", '"run, jump high"', "\"['run', 'jump high']\"", "run / jump high"])
def test_several_labels_in_another_form_are_told_how_to_be_written(tmp_path, label):
    write(tmp_path / "classes.txt", "jump high\nrun\n")
    write(tmp_path / "train.csv", f"path,label\n1.mp4,{label}\n")
    with pytest.raises(AnnotationError, match=r"write several labels as run;jump high$"):
        read_videos("train.csv", str(tmp_path))


def test_classes_come_from_the_caller_then_from_the_file_beside_the_list(tmp_path):
    write(tmp_path / "train.csv", "x/1.mp4,1\ny/2.mp4,0\n")
    assert read_videos("train.csv", str(tmp_path)).classes == ("y", "x")
    write(tmp_path / "classes.txt", "jump high\nrun\n")
    assert read_videos("train.csv", str(tmp_path)).classes == ("jump high", "run")
    assert read_videos("train.csv", str(tmp_path), ["a", "b", "c"]).classes == ("a", "b", "c")


def test_labels_may_be_class_names(tmp_path):
    write(tmp_path / "classes.txt", "jump high\nrun\n")
    write(tmp_path / "train.csv", "1.mp4,run\n2.mp4,jump high\n")
    assert [record.label for record in read_videos("train.csv", str(tmp_path)).records] == [1, 0]


def test_folders_that_do_not_match_the_labels_give_no_names(tmp_path):
    write(tmp_path / "train.csv", "x/1.mp4 0\nx/2.mp4 1\n")
    assert read_videos("train.csv", str(tmp_path)).classes == ("0", "1")


def test_a_folder_of_class_folders_is_a_list(tmp_path):
    for name in ("run/b.mp4", "run/a.MP4", "jump high/c.webm", "run/notes.txt", ".git/x.mp4", "empty/readme"):
        write(tmp_path / "train" / name, b"x")
    videos = read_videos("train", str(tmp_path))
    assert videos.classes == ("jump high", "run")
    assert [(record.path, record.label) for record in videos.records] == [
        ("train/jump high/c.webm", 0),
        ("train/run/a.MP4", 1),
        ("train/run/b.mp4", 1),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.mp4 0\nb.mp4\n", "train.csv: row 2 is 'b.mp4', expected a path and a label"),
        (
            "a.mp4 0\nb.mp4 run\n",
            "train.csv: row 2 has the label 'run', expected a whole number from 0: for labels that are class names, write "
            "these into classes.txt next to the list, one a line, or pass data.classes=FILE",
        ),
        ("a.mp4 -1\n", "row 1 has the label '-1', expected a whole number from 0"),
        ("a.mp4 ²\n", "row 1 has the label '²', expected a whole number from 0"),
        ("\n\n", "contains no videos, expected rows of `path label`"),
        (b"a.mp4 0\n\xff.mp4 1\n", "is not UTF-8 text (byte 8): save it as UTF-8"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, content, message):
    write(tmp_path / "train.csv", content)
    with pytest.raises(AnnotationError) as caught:
        read_videos("train.csv", str(tmp_path))
    assert message in str(caught.value)


def test_a_label_above_the_classes_is_named(tmp_path):
    write(tmp_path / "train.csv", "a.mp4 0\nb.mp4 2\n")
    with pytest.raises(AnnotationError, match=r"row 2 has the label 2, but there are 2 classes, 0 to 1"):
        read_videos("train.csv", str(tmp_path), ["x", "y"])


def test_missing_lists_and_empty_folders_are_named(tmp_path):
    with pytest.raises(AnnotationError, match=r"nowhere.csv: no such file"):
        read_videos("nowhere.csv", str(tmp_path))
    (tmp_path / "train").mkdir()
    with pytest.raises(AnnotationError, match=r"contains no class folders with videos, expected train/CLASS/VIDEO.mp4"):
        read_videos("train", str(tmp_path))


def test_an_unknown_class_folder_is_named(tmp_path):
    write(tmp_path / "val/swim/a.mp4", b"x")
    with pytest.raises(
        AnnotationError, match=r"the video 'val/swim/a.mp4' has the label 'swim', expected one of the 2 class names"
    ):
        read_videos("val", str(tmp_path), ["run", "jump"])


def test_a_list_without_labels_is_for_prediction_only(tmp_path):
    write(tmp_path / "test.txt", "my video.mp4\nb.mp4\nframes/0001\n")
    with pytest.raises(AnnotationError, match=r"test.txt: none of its 3 videos has a label, row"):
        read_videos("test.txt", str(tmp_path))
    videos = read_videos("test.txt", str(tmp_path), ["run", "jump"], need_labels=False)
    assert [record.path for record in videos.records] == ["my video.mp4", "b.mp4", "frames/0001"]
    assert all(record.labels == () and record.label == -1 for record in videos.records)
    assert videos.classes == ("run", "jump")


def test_numbers_that_could_be_names_are_refused(tmp_path):
    write(tmp_path / "train.csv", "a.mp4 1\nb.mp4 0\n")
    with pytest.raises(AnnotationError, match=r"the class '1' has the label 0, so numbers in the list are ambiguous"):
        read_videos("train.csv", str(tmp_path), ["1", "2"])
    assert [r.label for r in read_videos("train.csv", str(tmp_path), ["0", "1"]).records] == [1, 0]


def test_folders_called_by_other_numbers_are_no_class_names(tmp_path):
    write(tmp_path / "train.csv", "1/a.mp4 0\n2/b.mp4 1\n")
    train = read_videos("train.csv", str(tmp_path))
    assert train.classes == ("0", "1") and train.notes == ()
    assert [r.label for r in read_videos("train.csv", str(tmp_path), train.classes).records] == [0, 1]


def test_classes_beside_a_folder_give_the_order_of_its_labels(tmp_path):
    for name in ("run/a.mp4", "jump/b.mp4"):
        write(tmp_path / "train" / name)
    write(tmp_path / "classes.txt", "run\nsit\njump\n")
    videos = read_videos("train", str(tmp_path))
    assert videos.classes == ("run", "sit", "jump") and [record.label for record in videos.records] == [2, 0]


@pytest.mark.parametrize("here", [True, False])
def test_classes_of_a_root_of_class_folders_lie_in_it(tmp_path, monkeypatch, here):
    for name in ("run/a.mp4", "jump/b.mp4"):
        write(tmp_path / "root" / name)
    write(tmp_path / "root/classes.txt", "run\nsit\njump\n")
    write(tmp_path / "classes.txt", "of something else\n")
    monkeypatch.chdir(tmp_path / "root")
    videos = read_videos(".", "." if here else str(tmp_path / "root"))
    assert videos.classes == ("run", "sit", "jump") and [record.label for record in videos.records] == [2, 0]


def test_class_folders_may_spell_the_known_names_with_underscores(tmp_path):
    for name in ("tying_knot_not_on_a_tie/a.mp4", "air drumming/b.mp4"):
        write(tmp_path / "val" / name, b"x")
    known = ["air drumming", "swimming", "tying knot (not on a tie)"]
    assert [record.label for record in read_videos("val", str(tmp_path), known).records] == [0, 2]
    with pytest.raises(AnnotationError, match=r"expected one of the 2 class names"):
        read_videos("val", str(tmp_path), ["air drumming", "AirDrumming"])


def test_one_of_several_spellings_is_never_guessed(tmp_path):
    write(tmp_path / "val/a_b/x.mp4", b"x")
    with pytest.raises(AnnotationError, match=r"has the label 'a_b', expected one of the 2 class names"):
        read_videos("val", str(tmp_path), ["a b", "ab"])


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../b.mp4", "leads out of data.root = {root} through '..': write a path inside it"),
        ("a/../../b.mp4", "leads out of data.root = {root} through '..'"),
        ("..", "leads out of data.root = {root} through '..'"),
        ("/etc/b.mp4", "is outside data.root = {root}: write paths relative to it"),
        ("/etc/../b.mp4", "is outside data.root = {root}"),
        ("http://x.org/b.mp4", "is a URL, not a file under data.root: download it first"),
        ("file://b.mp4", "is a URL"),
        ("rtsp://x.org/b.mp4", "is a URL"),
        ("C:\\videos\\b.mp4", "is on a Windows drive: write paths relative to data.root"),
        ("d:/b.mp4", "is on a Windows drive"),
        (".", "names no file under data.root"),
        ("a/..", "names no file under data.root"),
        ("list.m3u8", "is a playlist, not a video"),
        ("x/y.FFCONCAT", "is a playlist"),
    ],
)  # fmt: skip
def test_a_path_that_may_not_be_read_is_named_with_its_own_reason(tmp_path, path, reason):
    write(tmp_path / "train.csv", f'a.mp4,0\n"{path}",0\nc.mp4,0\n')
    with pytest.raises(AnnotationError) as caught:
        read_videos("train.csv", str(tmp_path))
    assert re.search(r"train.csv: row 2 is '[^']*', which ", str(caught.value))
    assert reason.format(root=tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    videos = read_videos("train.csv", str(tmp_path), keep_refused=True)
    assert [record.path for record in videos.records] == ["a.mp4", "c.mp4"]
    [(record, why)] = videos.refused
    assert record.row == 2 and why.startswith(reason.format(root=tmp_path))


def test_paths_get_one_spelling(tmp_path):
    rows = ["./a/b.mp4", f"{tmp_path}/a/b.mp4", "a//b.mp4", "a/.b.mp4", "a/b.mp4", "x/../a/b.mp4"]
    write(tmp_path / "train.csv", "".join(f"{row} 0\n" for row in rows))
    paths = [record.path for record in read_videos("train.csv", str(tmp_path)).records]
    assert paths == ["a/b.mp4"] * 3 + ["a/.b.mp4"] + ["a/b.mp4"] * 2


def test_a_folder_outside_the_data_root_is_refused(tmp_path):
    write(tmp_path / "train/run/a.mp4", b"x")
    (tmp_path / "root").mkdir()
    for source in ("../train", str(tmp_path / "train")):
        with pytest.raises(AnnotationError, match=r"a video is '\.\./train/run/a.mp4', which leads out of data.root"):
            read_videos(source, str(tmp_path / "root"))
    assert len(read_videos(str(tmp_path / "train"), str(tmp_path))) == 1


def test_labels_without_names_have_a_limit(tmp_path):
    for label in ("99999999", "9" * 5000):
        write(tmp_path / "train.csv", f"a.mp4 {label}\n")
        with pytest.raises(
            AnnotationError, match=r"labels without class names go up to 99999: put classes.txt next to"
        ):
            read_videos("train.csv", str(tmp_path))


def test_gaps_in_the_labels_are_noted(tmp_path):
    write(tmp_path / "train.csv", "a.mp4 1\nb.mp4 2\nc.mp4 4\n")
    videos = read_videos("train.csv", str(tmp_path))
    assert videos.notes == (f"{tmp_path}/train.csv: 2 of the labels 0 to 4 have no video, the first is 0",)


def test_binary_files_are_no_lists(tmp_path):
    write(tmp_path / "train.csv", b"a.mp4\0 1\n")
    with pytest.raises(AnnotationError, match=r"train.csv: contains a zero byte at character 5, so it is not text"):
        read_videos("train.csv", str(tmp_path))


def test_frame_folders_in_class_folders_are_videos_where_frames_are_asked_for(tmp_path):
    for name in ("run/b/1.jpg", "run/a/1.jpg", "jump/c/1.jpg", "jump/notes.txt", "jump/.git/x"):
        write(tmp_path / "train" / name, b"x")
    videos = read_videos("train", str(tmp_path), frames=True)
    assert [(record.path, record.label) for record in videos.records] == [
        ("train/jump/c", 0),
        ("train/run/a", 1),
        ("train/run/b", 1),
    ]
    with pytest.raises(AnnotationError, match=r"contains no class folders with videos, expected train/CLASS/VIDEO.mp4"):
        read_videos("train", str(tmp_path))


def test_a_list_may_come_from_an_address(tmp_path, monkeypatch):
    monkeypatch.setenv("MVIT_VIDEO_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "cache/x.org/train.csv", "a.mp4 0\n")
    assert len(read_videos("https://x.org/train.csv", str(tmp_path))) == 1
