"""Prepared copies of every form of list: the new list says what the old one said."""

import json

import pytest
from list_files import write
from numbered_video import write_numbered

from mvit_video.cli import main
from mvit_video.data.lists.read import read_videos
from mvit_video.data.prepare.prepare import prepare_dataset

SOMETHING = [{"id": "1", "template": "Holding [something]"}, {"id": "2", "template": "Dropping [something]"}]
FORMS = {
    "several labels": ("train.csv", {"train.csv": "v/1.avi 1;0\nv/2.avi 1\n"}, ("v/1", "v/2")),
    "no labels": ("test.txt", {"test.txt": "v/1.avi\nv/2.avi\n"}, ("v/1", "v/2")),
    "ssv2": ("train.json", {"train.json": json.dumps(SOMETHING)}, ("v/1", "v/2")),
    "ssv2 test": ("test.json", {"test.json": '[{"id": "1"}, {"id": "2"}]'}, ("v/1", "v/2")),
    "kinetics test": (
        "test.csv",
        {"test.csv": "youtube_id,time_start,time_end,split\nabcdefghijk,1,2,test\n"},
        ("abcdefghijk_000001_000002",),
    ),
    "ucf101": (
        "lists/trainlist01.txt",
        {"lists/classInd.txt": "1 A b\n2 C\n", "lists/trainlist01.txt": "C/v_1.avi 2\nC/v_2.avi 2\n"},
        ("UCF/C/v_1", "UCF/C/v_2"),
    ),
    "hmdb51": (
        "lists/train_split1",
        {"lists/a_test_split1.txt": "#1.avi 1\n", "lists/b_test_split1.txt": "2.avi 1\n3.avi 2\n"},
        ("hmdb/a/#1", "hmdb/b/2"),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_prepared_list_has_the_same_labels_and_classes(tmp_path, form, capsys):
    source, lists, videos = FORMS[form]
    root = tmp_path / "root"
    for name, text in lists.items():
        write(root / name, text)
    for name in videos:
        write(root / f"{name}.avi")
        write_numbered(root / f"{name}.avi", 4, codec="mpeg4")
    done = prepare_dataset(str(root / source), str(root), tmp_path / "new", 48, 1, pytest.fail)
    old = read_videos(source, str(root), need_labels=False)
    new = read_videos(str(done.list_file.relative_to(tmp_path / "new")), str(tmp_path / "new"), need_labels=False)
    assert [record.path for record in new.records] == [f"{name}.mp4" for name in videos]
    assert [record.labels for record in new.records] == [record.labels for record in old.records]
    assert new.classes == old.classes
    assert main(["verify", "--annotations", str(root / source), "--root", str(root)]) == 0
    capsys.readouterr()
