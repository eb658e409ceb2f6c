import pytest

from mvit_video.data.annotations import check_files_exist, read_classes, read_videos
from mvit_video.errors import AnnotationError


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


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
        ("a.mp4 0\nb.mp4\n", "train.csv: row 2 is 'b.mp4', wanted a path and a label"),
        ("a.mp4 0\nb.mp4 run\n", "train.csv: row 2 has the label 'run', wanted a whole number from 0"),
        ("a.mp4 -1\n", "row 1 has the label '-1', wanted a whole number from 0"),
        ("a.mp4 ²\n", "row 1 has the label '²', wanted a whole number from 0"),
        ("\n\n", "holds no videos, wanted rows of `path label`"),
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
    with pytest.raises(AnnotationError, match="row 2 has the label 2, but there are 2 classes, 0 to 1"):
        read_videos("train.csv", str(tmp_path), ["x", "y"])


def test_missing_lists_and_empty_folders_are_named(tmp_path):
    with pytest.raises(AnnotationError, match=r"nowhere.csv: no such file"):
        read_videos("nowhere.csv", str(tmp_path))
    (tmp_path / "train").mkdir()
    with pytest.raises(AnnotationError, match=r"holds no class folders with videos, wanted train/CLASS/VIDEO.mp4"):
        read_videos("train", str(tmp_path))


def test_an_unknown_class_folder_is_named(tmp_path):
    write(tmp_path / "val/swim/a.mp4", b"x")
    with pytest.raises(AnnotationError, match="the folder 'swim' is none of the 2 known classes"):
        read_videos("val", str(tmp_path), ["run", "jump"])


def test_missing_files_are_counted_and_the_first_is_named(tmp_path):
    write(tmp_path / "train.csv", "a.mp4 0\nb.mp4 0\nc.mp4 0\n")
    write(tmp_path / "a.mp4", b"x")
    with pytest.raises(
        AnnotationError, match=r"2 of 3 videos are missing, the first is 'b.mp4' \(row 2 of train.csv\)"
    ):
        check_files_exist(read_videos("train.csv", str(tmp_path)), str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [("a\n\nb\n", "row 2 is empty"), ("a\nb\na\n", "row 3 repeats the class 'a'"), ("\n", "holds no class names")],
)
def test_a_wrong_class_file_is_named(tmp_path, text, message):
    with pytest.raises(AnnotationError, match=message):
        read_classes(str(write(tmp_path / "classes.txt", text)))
