"""Lists as Excel, Windows and pandas write them."""

import csv
import io
import re

import numpy as np
import pytest
from list_files import paths_and_labels, write

from mvit_video.data.lists.read import read_videos
from mvit_video.data.lists.text import lines_of
from mvit_video.errors import AnnotationError

CLIPS = [("jump/a.mp4", (0,)), ("run/b.mp4", (1,)), ("run/größe, 2.mp4", (1,))]


def read(tmp_path, text, **arguments):
    write(tmp_path / "list.csv", text)
    return read_videos("list.csv", str(tmp_path), **arguments)


def written(rows, delimiter=",", quoting=csv.QUOTE_MINIMAL, end="\r\n"):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows(rows)
    return text.getvalue()


PLAIN = [(path, label) for path, (label,) in CLIPS]
BACKSLASHES = [(path.replace("/", "\\"), label) for path, label in PLAIN]
FORMS = {
    "pandas with its index": [["", "path", "label"], *([number, *row] for number, row in enumerate(PLAIN))],
    "pandas with a saved index": [["Unnamed: 0", "path", "label"], *([number, *row] for number, row in enumerate(PLAIN))],
    "pandas without a header": [[number, *row] for number, row in enumerate(PLAIN)],
    "label first": [["label", "path"], *((label, path) for path, label in PLAIN)],
    "more columns": [["Video Path", "seconds", "Class", "split"], *([path, 2.5, label, "train"] for path, label in PLAIN)],
    "backslashes": BACKSLASHES,
    "backslashes under a header": [["id", "filename", "label"], *([number, *row] for number, row in enumerate(BACKSLASHES))],
    "empty columns": [[*row, "", ""] for row in PLAIN],
    "empty rows": [PLAIN[0], ["", ""], *PLAIN[1:], [], ["", ""]],
    "a plain header": [["path", "label"], *PLAIN],
    "a header in capitals": [["Path", "LABEL"], *PLAIN],
}  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le with a mark"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("form", FORMS)
def test_lists_of_spreadsheets_and_data_frames_are_read(tmp_path, form, delimiter, encoding):
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        text = written(FORMS[form], delimiter, quoting)
        mark = "\ufeff" if encoding.endswith("mark") else ""
        write(tmp_path / "list.csv", (mark + text).encode(encoding.split(" ")[0]))
        assert paths_and_labels(read_videos("list.csv", str(tmp_path))) == CLIPS, text


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_line_that_tells_excel_the_separator_is_no_row(tmp_path, end):
    for head in ([], [["path", "label"]], [["nr", "path", "label"]]):
        rows = [[number, *row] if head and len(head[0]) == 3 else row for number, row in enumerate(PLAIN)]
        assert paths_and_labels(read(tmp_path, f"sep=;{end}" + written([*head, *rows], ";", end=end))) == CLIPS


def test_what_is_left_out_or_read_otherwise_is_said(tmp_path):
    def notes(rows):
        return [note.removeprefix(f"{tmp_path}/list.csv: ") for note in read(tmp_path, written(rows)).notes]

    assert notes(FORMS["pandas without a header"]) == ["its first column numbers the rows and is ignored"]
    assert notes(FORMS["backslashes"]) == ["backslashes in its paths are read as /"]
    assert notes(FORMS["more columns"]) == ["columns 'Video Path' and 'Class' are read; ignored: seconds, split"]
    assert notes(FORMS["pandas with its index"]) == ["columns 'path' and 'label' are read; ignored: (unnamed)"]
    assert notes(PLAIN) == []


def test_files_whose_names_look_like_columns_are_files_where_they_are_there(tmp_path):
    for name in ("0,a.mp4", "1,b.mp4", "x\\c.mp4"):
        write(tmp_path / name)
    assert paths_and_labels(read(tmp_path, "0,a.mp4,1\n1,b.mp4,0\n")) == [("0,a.mp4", (1,)), ("1,b.mp4", (0,))]
    assert paths_and_labels(read(tmp_path, "x\\c.mp4 0\nx\\d.mp4 0\n")) == [("x\\c.mp4", (0,)), ("x\\d.mp4", (0,))]


@pytest.mark.parametrize("text", ["1, a.mp4 0\n2, b.mp4 1\n", "0,a.mp4 0\n2,b.mp4 1\n", "0,a.mp4 0\n"])
def test_numbers_in_front_of_names_that_count_no_rows_stay(tmp_path, text):
    assert [record.path for record in read(tmp_path, text).records] == [
        line.rpartition(" ")[0] for line in text.split("\n")[:-1]
    ]


def test_several_labels_in_a_table(tmp_path):
    text = 'nr;path;labels\n0;a.mp4;"3;17"\n1;b.mp4;3,1\n2;c.mp4;5\n'
    assert [labels for _, labels in paths_and_labels(read(tmp_path, text))] == [(3, 17), (3, 1), (5,)]
    assert paths_and_labels(read(tmp_path, "a.mp4;3,1\nb.mp4;0\n")) == [("a.mp4", (3, 1)), ("b.mp4", (0,))]


def test_class_names_with_quotes_are_those_in_the_quotes(tmp_path):
    classes = ['clap "hands"', "run; fast"]
    text = written([["nr", "path", "label"], [0, "a.mp4", classes[0]], [1, "b.mp4", classes[1]]], ";")
    assert [labels for _, labels in paths_and_labels(read(tmp_path, text, classes=classes))] == [(0,), (1,)]
    text = written([["a.mp4", classes[0]]], quoting=csv.QUOTE_ALL)
    assert paths_and_labels(read(tmp_path, text, classes=classes)) == [("a.mp4", (0,))]


def test_a_table_without_labels_is_for_prediction(tmp_path):
    text = ",path\n0,a.mp4\n1,b.mp4\n"
    assert [record.path for record in read(tmp_path, text, need_labels=False).records] == ["a.mp4", "b.mp4"]
    with pytest.raises(AnnotationError, match="none of its 2 videos has a label"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"nr,path,label\n0,a.mp4\n", "row 2 has 2 fields, the header has 3: nr,path,label"),
        (b"nr,path,label\n", "contains no videos under its header"),
        (b"a.mp4;3;1\n", "row 1 has '3;1' after the path, which may be several labels, or another column .* as 3,1"),
        (b"path,label\na.mp4,3.0\n", "row 2 has the label '3.0', expected a whole number from 0"),
        (b"Datei,Klasse\na.mp4,0\n", "row 1 has the label 'Klasse', expected a whole number from 0"),
        ("größe.mp4,0\n".encode("cp1252"), r"is not UTF-8 text \(byte 2\): save it as UTF-8 \('CSV UTF-8' in Excel\)"),
        ("a.mp4,0\n".encode("utf-16-le"), "contains a zero byte at character 1, so it is not text: save it as UTF-8"),
        (b"\xff\xfea", "is not UTF-8 text"),
        (b'nr,path,label\n0,"a.mp4,0\n', "row .* has 2 fields|is not csv"),
        (b"C:\\data\\a.mp4,0\n", "row 1 is .*, which is on a Windows drive"),
        (b"\\\\server\\share\\a.mp4,0\n", "row 1 is .*, which is outside data.root"),
        (b",,,\n;;\n", "contains no videos"),
        (b"a" * 5_000_000, "row 1 has 5,000,000 characters, above the limit of 10,000"),
        (b'"' + b"a/" * 2500 + b'b.mp4",0\n', "row 1 is '.*', which is longer than 4,096 characters"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_with_its_row(tmp_path, text, message):
    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, text)
    assert re.search(f"list.csv: {message}", str(caught.value)) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_official_lists_that_went_through_excel_are_read(tmp_path):
    rows = [
        ["label", "youtube_id", "time_start", "time_end", "split"],
        ["abseiling", "0347ZoDXyP0", "95", "105", "train"],
    ]
    for delimiter in (",", ";", "\t"):
        for head in ("", f"sep={delimiter}\r\n"):
            write(tmp_path / "list.csv", (head + written(rows, delimiter)).encode("utf-8-sig"))
            [record] = read_videos("list.csv", str(tmp_path)).records
            assert record.path == "abseiling/0347ZoDXyP0_000095_000105.mp4" and record.label == 0
    write(tmp_path / "classInd.txt", "1 ApplyEyeMakeup\r\n")
    write(tmp_path / "trainlist01.txt", "ApplyEyeMakeup\\v_g08_c01.avi 1\r\n")
    [record] = read_videos("trainlist01.txt", str(tmp_path)).records
    assert record.path == "ApplyEyeMakeup/v_g08_c01.avi"


def test_class_names_may_come_from_excel_too(tmp_path):
    write(tmp_path / "classes.txt", "jump high\r\nlaufen über\r\n".encode("utf-16"))
    assert read(tmp_path, "a.mp4,1\nb.mp4,0\n").classes == ("jump high", "laufen über")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_paths_on_standard_input_lose_the_mark_of_windows(encoding):
    pipe = io.BytesIO("größe.mp4\r\nb.mp4\r\n".encode(encoding))
    assert [line.decode().strip() for line in lines_of(pipe) if line.strip()] == ["größe.mp4", "b.mp4"]


def test_bytes_of_names_that_are_no_text_pass_standard_input_as_they_are():
    assert list(lines_of(io.BytesIO(b"gr\xf6.mp4\nb.mp4"))) == [b"gr\xf6.mp4\n", b"b.mp4"]


@pytest.mark.parametrize("seed", range(20))
def test_random_tables_are_read_as_the_csv_module_writes_them(tmp_path, seed):
    """Any columns, separator, quoting, names with signs; backslashes only where no name has them."""
    rng = np.random.default_rng(seed)
    signs = list("abcxyz 0189-_#+äß.,;'\"()&")
    names = ["".join(rng.choice(signs, 8)).strip() or "x" for _ in range(12)]
    paths = [f"{'ab'[number % 2]}/{number}{name.replace('..', '-')}.mp4" for number, name in enumerate(names)]
    labels = rng.integers(0, 9, len(paths)).tolist()
    columns = {"path": paths, "label": labels, "seconds": rng.random(len(paths)).round(3).tolist(), "who": names}
    order = rng.permutation(list(columns)).tolist()
    rows = [order, *zip(*(columns[name] for name in order), strict=True)]
    delimiter, quoting = ",;\t"[rng.integers(3)], (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)[rng.integers(2)]
    text = written(rows, delimiter, quoting)
    assert paths_and_labels(read(tmp_path, text)) == [
        (path, (label,)) for path, label in zip(paths, labels, strict=True)
    ], text
