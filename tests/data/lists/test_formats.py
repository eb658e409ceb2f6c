"""Readers of lists: ours are found by the form of a list, others are added and asked first."""

import json

import pytest
from list_files import write

from mvit_video.data.lists.formats import READERS, Listing, Row, reader_of, register_list_reader
from mvit_video.data.lists.read import read_videos
from mvit_video.errors import AnnotationError, ConfigError


class JsonLines:
    """A form of list that this package does not have: an object a line."""

    def matches(self, path):
        return path.endswith(".jsonl")

    def read(self, path, root):
        with open(path, encoding="utf-8") as file:
            items = [json.loads(line) for line in file]
        return Listing([Row(number, item["video"], item["action"]) for number, item in enumerate(items, 1)], by_name=True,
                       classes=tuple(sorted({item["action"] for item in items})))  # fmt: skip


@pytest.fixture
def json_lines():
    register_list_reader("json lines", JsonLines())
    yield
    READERS.forget(__name__)


def test_a_reader_that_is_added_reads_lists_of_its_form(tmp_path, json_lines):
    lines = [{"video": "x/b.mp4", "action": "sit"}, {"video": "./a.mp4", "action": "run"}]
    write(tmp_path / "train.jsonl", "\n".join(map(json.dumps, lines)))
    videos = read_videos("train.jsonl", str(tmp_path))
    assert [(record.path, record.label, record.row) for record in videos.records] == [
        ("x/b.mp4", 1, 1),
        ("a.mp4", 0, 2),
    ]
    assert videos.classes == ("run", "sit")
    write(tmp_path / "train.jsonl", json.dumps({"video": "../b.mp4", "action": "sit"}))
    with pytest.raises(AnnotationError, match=r"row 1 is '../b.mp4', which leads out of data.root"):
        read_videos("train.jsonl", str(tmp_path))


def test_a_reader_that_is_added_is_asked_before_ours(tmp_path, json_lines):
    write(tmp_path / "a.csv", "a.mp4 0\n")
    assert type(reader_of(str(tmp_path / "x.jsonl"))) is JsonLines
    assert type(reader_of(str(tmp_path / "a.csv"))).__name__ == "PathLabelRows"
    READERS.forget(__name__)
    assert type(reader_of(str(tmp_path / "x.jsonl"))).__name__ == "PathLabelRows"


def test_a_taken_name_is_refused_with_both_owners():
    with pytest.raises(
        ConfigError, match=r"registers the list format 'kinetics', a name that mvit_video itself has taken"
    ):
        register_list_reader("kinetics", JsonLines())


@pytest.mark.parametrize(
    ("name", "content", "reader"),
    [
        ("train_split1", None, "Hmdb51"),
        ("folder/run/a.mp4", b"", "ClassFolders"),
        ("train.json", b"[]", "Something"),
        ("train.csv", b"original_vido_id video_id frame_id path labels\n", "FrameList"),
        ("train.csv", b"\xef\xbb\xbflabel,youtube_id,time_start,time_end\n", "Kinetics"),
        ("list.csv", b"id,subject,script,actions,length\n", "Charades"),
        ("trainlist01.txt", b"A/v.avi 1\n", "Ucf101"),
        ("train.csv", b",path,label\n0,a.mp4,1\n", "Table"),
        ("train.csv", b"path;label\na.mp4;1\n", "Table"),
        ("train.csv", b"a.mp4,1\n", "PathLabelRows"),
        ("train.csv", b"path label\na.mp4 1\n", "PathLabelRows"),
        ("nowhere.csv", None, "PathLabelRows"),
    ],
)
def test_a_list_is_known_by_its_name_or_its_first_line(tmp_path, name, content, reader):
    if content is not None:
        write(tmp_path / name, content)
    assert type(reader_of(str(tmp_path / name.split("/")[0]))).__name__ == reader
