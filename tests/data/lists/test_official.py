"""Official lists, written here as their owners publish them, with empty files for videos."""

import json

import pytest
from list_files import paths_and_labels, write

from mvit_video.data.lists.class_names import published_classes
from mvit_video.data.lists.read import read_videos
from mvit_video.errors import AnnotationError

KINETICS = """label,youtube_id,time_start,time_end,split,is_cc
"air drumming",_dbcJuKJQNs,40,50,train,0
"tying knot (not on a tie)",-3B32lodo2M,59,69.0,train,1
abseiling,0347ZoDXyP0,1095,1105,train,0
"""
NAMES = ("_dbcJuKJQNs_000040_000050", "-3B32lodo2M_000059_000069", "0347ZoDXyP0_001095_001105")
LABELS = [published_classes("kinetics400").index(name) for name in ("air drumming", "tying knot (not on a tie)")] + [0]


@pytest.mark.parametrize("columns", ["with is_cc", "without is_cc"])
@pytest.mark.parametrize(
    "places",
    [
        ("{0}.mp4", "{1}.mkv", "{2}.webm"),
        ("train/{0}.mp4", "train/{1}.mp4", "replacement/deep/{2}.mp4"),
        ("air drumming/{0}.mp4", "tying knot (not on a tie)/{1}.MP4", "abseiling/{2}.mp4"),
        ("train_256/air_drumming/{0}.mp4", "train_256/tying_knot_not_on_a_tie/{1}.mp4", "train_256/abseiling/{2}.mp4"),
    ],
)
def test_kinetics_videos_are_found_flat_or_in_class_folders(tmp_path, places, columns):
    text = KINETICS
    if columns == "without is_cc":
        text = "\r\n".join(row.rpartition(",")[0] for row in KINETICS.splitlines())
    write(tmp_path / "annotations/train.csv", "\ufeff" + text)
    paths = [place.format(*NAMES) for place in places]
    for path in paths:
        write(tmp_path / path)
    videos = read_videos("annotations/train.csv", str(tmp_path))
    assert paths_and_labels(videos) == [(path, (label,)) for path, label in zip(paths, LABELS, strict=True)]
    assert videos.classes == published_classes("kinetics400") and [record.row for record in videos.records] == [2, 3, 4]
    assert videos.notes == (
        f"{tmp_path}/annotations/train.csv: its 3 labels are among the 400 class names of Kinetics-400, which are used",
    )


def test_of_several_places_that_of_the_class_wins_then_that_of_the_split(tmp_path):
    write(tmp_path / "train.csv", KINETICS)
    for path in (
        f"{NAMES[0]}.mp4",
        f"val/air drumming/{NAMES[0]}.mp4",
        f"training/air_drumming/{NAMES[0]}.mp4",
        f"train/drumming/{NAMES[0]}.mp4",
        f"{NAMES[1]}.txt",
        f".hidden/{NAMES[1]}.mp4",
        f"1/2/3/4/{NAMES[2]}.mp4",
        f"1/2/3/4/5/{NAMES[1]}.mp4",
    ):
        write(tmp_path / path)
    assert [record.path for record in read_videos("train.csv", str(tmp_path)).records] == [
        f"training/air_drumming/{NAMES[0]}.mp4",
        f"tying knot (not on a tie)/{NAMES[1]}.mp4",  # not found: the usual place
        f"1/2/3/4/{NAMES[2]}.mp4",
    ]


def test_other_kinetics_have_their_own_classes_in_alphabetical_order(tmp_path):
    rows = [
        f"{label},{'x' * 10}{place},0,10,validate"
        for place, label in enumerate(["zumba", "alligator wrestling", "zumba"])
    ]
    write(tmp_path / "val.csv", "\n".join(["label,youtube_id,time_start,time_end,split", *rows]))
    videos = read_videos("val.csv", str(tmp_path))
    assert videos.classes == ("alligator wrestling", "zumba")
    assert [record.label for record in videos.records] == [1, 0, 1]
    assert videos.notes == (f"{tmp_path}/val.csv: the classes are its own 2 labels in alphabetical order",)
    assert [r.label for r in read_videos("val.csv", str(tmp_path), ["zumba", "x", "alligator wrestling"]).records] == [
        0,
        2,
        0,
    ]


def test_the_datasets_own_classes_win_and_differences_are_told(tmp_path):
    own = [*reversed(published_classes("kinetics400"))]
    write(tmp_path / "train.csv", KINETICS)
    write(tmp_path / "classes.txt", "\n".join(own))
    videos = read_videos("train.csv", str(tmp_path))
    assert videos.classes == tuple(own)
    assert [own[record.label] for record in videos.records] == [
        "air drumming",
        "tying knot (not on a tie)",
        "abseiling",
    ]
    assert videos.notes == (
        f"{tmp_path}/classes.txt: 400 of 400 class names differ from Kinetics-400, the first is class 0, 'zumba' instead of "
        "'abseiling': labels of published weights do not match",
    )
    write(tmp_path / "classes.txt", "\n".join(published_classes("kinetics400")))
    assert read_videos("train.csv", str(tmp_path)).notes == ()


def test_a_kinetics_test_list_has_no_labels(tmp_path):
    write(tmp_path / "test.csv", "youtube_id,time_start,time_end,split\nabcdefghijk,3,13,test\n")
    write(tmp_path / "test/abcdefghijk_000003_000013.mp4")
    with pytest.raises(AnnotationError, match=r"test.csv: none of its 1 videos has a label, row"):
        read_videos("test.csv", str(tmp_path))
    videos = read_videos("test.csv", str(tmp_path), need_labels=False)
    assert paths_and_labels(videos) == [("test/abcdefghijk_000003_000013.mp4", ())]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "abseiling,abc,1,2,train",
            "row 5 has 5 fields, the header has 6: label,youtube_id,time_start,time_end,split,is_cc",
        ),
        ("abseiling,abc,x,2,train,0", "row 5 has the times 'x' and '2', expected seconds"),
        ("abseiling,abc,inf,2,train,0", "row 5 has the times 'inf' and '2', expected seconds"),
        ("abseiling,,1,2,train,0", "row 5 has no youtube_id"),
        (",abc,1,2,train,0", "row 5 is 'abc_000001_000002.mp4', expected a path and a label"),
    ],
)
def test_wrong_kinetics_rows_are_named(tmp_path, row, message):
    write(tmp_path / "train.csv", KINETICS + row)
    with pytest.raises(AnnotationError, match=message):
        read_videos("train.csv", str(tmp_path))


def test_a_kinetics_label_that_is_no_class_is_named(tmp_path):
    write(tmp_path / "val.csv", KINETICS)
    with pytest.raises(
        AnnotationError, match=r"val.csv: row 2 has the label 'air drumming', expected one of the 1 class names"
    ):
        read_videos("val.csv", str(tmp_path), ["abseiling"])


def test_kinetics_columns_that_lack_are_named(tmp_path):
    write(tmp_path / "train.csv", "label,youtube_id,time_start\nx,abc,1\n")
    with pytest.raises(
        AnnotationError, match=r"has no column time_end, expected label,youtube_id,time_start,time_end,split"
    ):
        read_videos("train.csv", str(tmp_path))


SOMETHING = [
    {"id": "78687", "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]},
    {"id": 42326, "label": "x", "template": "Wiping [something] off of [something]", "placeholders": ["a", "b"]},
]


@pytest.mark.parametrize(
    ("files", "frames"),
    [
        (("videos/78687.webm", "videos/42326.webm"), False),
        (("78687.mp4", "deep/down/42326.avi"), False),
        (("frames/78687/1.jpg", "frames/42326/1.jpg"), True),
    ],
)
def test_something_something_videos_are_found_by_their_ids(tmp_path, files, frames):
    write(tmp_path / "labels/train.json", json.dumps(SOMETHING))
    for file in (*files, "frames/78687/1.jpg"):
        write(tmp_path / file)
    videos = read_videos("labels/train.json", str(tmp_path), frames=frames)
    names = published_classes("ssv2")
    paths = [file.rpartition("/")[0] if frames else file for file in files]
    labels = [names.index("Holding something"), names.index("Wiping something off of something")]
    assert paths_and_labels(videos) == [(path, (label,)) for path, label in zip(paths, labels, strict=True)]
    assert videos.classes == names


@pytest.mark.parametrize(
    ("listed", "labels"),
    [
        ("something-something-v2-train.json", "something-something-v2-labels.json"),
        ("something-something-v2-validation.json", "something-something-v2-labels.json"),
        ("validation.json", "labels.json"),
    ],
)
def test_the_labels_beside_a_something_something_list_win(tmp_path, listed, labels):
    write(tmp_path / listed, json.dumps(SOMETHING))
    write(tmp_path / labels, json.dumps({"Wiping something off of something": "0", "Holding [something]": "1"}))
    videos = read_videos(listed, str(tmp_path))
    assert videos.classes == ("Wiping something off of something", "Holding something")
    assert [record.label for record in videos.records] == [1, 0]
    assert videos.notes == (
        f"{tmp_path}/{labels}: 2 classes, but Something-Something v2 has 174, the first is class 0, 'Wiping something off of "
        "something' instead of 'Approaching something with your camera': labels of published weights do not match",
    )


def test_a_something_something_test_list_has_no_labels(tmp_path):
    write(tmp_path / "test.json", json.dumps([{"id": "7"}, {"id": "8"}]))
    write(tmp_path / "videos/7.webm")
    with pytest.raises(AnnotationError, match=r"test.json: none of its 2 videos has a label"):
        read_videos("test.json", str(tmp_path))
    videos = read_videos("test.json", str(tmp_path), need_labels=False)
    assert paths_and_labels(videos) == [("videos/7.webm", ()), ("8.webm", ())]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": 1}', "expected a list of objects with id and template"),
        ("[]", "expected a list of objects with id and template"),
        (
            '[{"id": "1", "template": "a"}, {"template": "b"}]',
            "entry 2 has no id, expected objects with id and template",
        ),
        ('[{"id": "1", "template": "a"}, 5]', "entry 2 has no id"),
        ('[{"id": "1", "template": 5}]', r"entry 1 \(id 1\) has the template 5, expected text"),
        ('[{"id": "1", "template": "a"}, {"id": "2"}]', "row 2 is '2.webm', expected a path and a label"),
        ("[1,", r"is not JSON \(line 1"),
    ],
)
def test_wrong_something_something_entries_are_named(tmp_path, content, message):
    write(tmp_path / "train.json", content)
    with pytest.raises(AnnotationError, match=message):
        read_videos("train.json", str(tmp_path))


def test_a_frame_list_without_labels_takes_those_of_the_json_lists_beside_it(tmp_path):
    rows = [
        f'{name} {place} {frame} {name}/{name}_{frame:06d}.jpg ""'
        for place, name in enumerate((42326, 78687))
        for frame in (1, 2)
    ]
    text = "\n".join(["original_vido_id video_id frame_id path labels", *rows])
    write(tmp_path / "lists/train.csv", text)
    write(tmp_path / "frames/78687/78687_000001.jpg")
    root = str(tmp_path / "frames")
    with pytest.raises(AnnotationError, match=r"train.csv: none of its 2 videos has a label"):
        read_videos("../lists/train.csv", root)
    write(tmp_path / "lists/something-something-v2-train.json", json.dumps(SOMETHING))
    write(
        tmp_path / "lists/something-something-v2-labels.json",
        json.dumps({n: i for i, n in enumerate(published_classes("ssv2"))}),
    )
    videos = read_videos("../lists/train.csv", root)
    assert [videos.classes[record.label] for record in videos.records] == [
        "Wiping something off of something",
        "Holding something",
    ]
    assert [record.path for record in videos.records] == ["42326", "78687"]
    assert videos.notes == (
        f"{root}/../lists/train.csv: labels are read from something-something-v2-train.json next to it",
    )


UCF = {
    "splits/classInd.txt": "1 ApplyEyeMakeup\n2 Archery\n",
    "splits/trainlist01.txt": "Archery/v_Archery_g08_c01.avi 2\r\nApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\n",
    "splits/testlist01.txt": "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\nArchery/v_Archery_g01_c02.avi\n",
}


def ucf(tmp_path, **changes):
    for name, text in (UCF | changes).items():
        write(tmp_path / name, text)


@pytest.mark.parametrize(("folder", "suffix"), [("", "avi"), ("UCF-101/", "avi"), ("prepared/", "mp4")])
def test_ucf101_labels_count_from_one_and_its_test_lists_take_the_folder(tmp_path, folder, suffix):
    ucf(tmp_path)
    for name in ("Archery/v_Archery_g08_c01", "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01", "Archery/v_Archery_g01_c02"):
        write(tmp_path / f"{folder}{name}.{suffix}")
    train, test = (read_videos(f"splits/{part}list01.txt", str(tmp_path)) for part in ("train", "test"))
    assert train.classes == test.classes == ("ApplyEyeMakeup", "Archery")
    assert paths_and_labels(train) == [
        (f"{folder}Archery/v_Archery_g08_c01.{suffix}", (1,)),
        (f"{folder}ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.{suffix}", (0,)),
    ]
    assert paths_and_labels(test) == [
        ("ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi", (0,)),  # not there: the usual place
        (f"{folder}Archery/v_Archery_g01_c02.{suffix}", (1,)),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "splits/trainlist01.txt",
            "Archery/v.avi 1\n",
            "row 1 has the label '1', which is ApplyEyeMakeup in classInd.txt, but is",
        ),
        ("splits/trainlist01.txt", "Archery/v.avi 0\n", "row 1 has the label '0', which is unknown in classInd.txt"),
        ("splits/trainlist01.txt", "Arhcery/v.avi 2\n", r"with a class from classInd.txt \(did you mean 'Archery'\?\)"),
        ("splits/trainlist01.txt", "\n", "contains no videos, expected rows of `CLASS/VIDEO.avi label`"),
        ("splits/classInd.txt", "0 A\n1 B\n", "classInd.txt: row 1 is '0 A', expected `1 CLASS`"),
        (
            "splits/classInd.txt",
            "1 A\n2 A\n",
            "classInd.txt: row 2 is '2 A', expected `2 CLASS` with a different class",
        ),
    ],
)
def test_wrong_ucf101_rows_are_named(tmp_path, name, text, message):
    ucf(tmp_path, **{name: text})
    with pytest.raises(AnnotationError, match=message):
        read_videos("splits/trainlist01.txt", str(tmp_path))


def test_ucf101_lists_need_their_class_file(tmp_path):
    ucf(tmp_path)
    (tmp_path / "splits/classInd.txt").unlink()
    with pytest.raises(AnnotationError, match=r"trainlist01.txt: there is no classInd.txt next to it"):
        read_videos("splits/trainlist01.txt", str(tmp_path))


def hmdb(tmp_path):
    write(tmp_path / "splits/wave_test_split1.txt", "#20_wave (1)!.avi 1 \nb_wave.avi 2 \nc_wave.avi 0 \n")
    write(tmp_path / "splits/brush_hair_test_split1.txt", "a_hair.avi 2 \nd_hair.avi 1 \n")
    write(tmp_path / "splits/wave_test_split2.txt", "c_wave.avi 1 \n")
    for name in ("wave/#20_wave (1)!", "wave/b_wave", "wave/c_wave", "brush_hair/a_hair", "brush_hair/d_hair"):
        write(tmp_path / f"hmdb51_org/{name}.avi")


def test_hmdb51_splits_are_read_from_a_file_per_class(tmp_path):
    hmdb(tmp_path)
    train, test = (read_videos(f"splits/{part}_split1", str(tmp_path)) for part in ("train", "test"))
    assert train.classes == test.classes == ("brush_hair", "wave")
    assert paths_and_labels(train) == [
        ("hmdb51_org/brush_hair/d_hair.avi", (0,)),
        ("hmdb51_org/wave/#20_wave (1)!.avi", (1,)),
    ]
    assert paths_and_labels(test) == [("hmdb51_org/brush_hair/a_hair.avi", (0,)), ("hmdb51_org/wave/b_wave.avi", (1,))]
    assert [record.path for record in read_videos("splits/train_split2", str(tmp_path)).records] == [
        "hmdb51_org/wave/c_wave.avi"
    ]


def test_wrong_hmdb51_splits_are_named(tmp_path):
    hmdb(tmp_path)
    with pytest.raises(AnnotationError, match=r"splits: contains no CLASS_test_split3.txt for train_split3"):
        read_videos("splits/train_split3", str(tmp_path))
    write(tmp_path / "splits/wave_test_split1.txt", "a.avi 1\nb.avi 3\n")
    with pytest.raises(
        AnnotationError, match=r"wave_test_split1.txt: row 2 is 'b.avi 3', expected VIDEO.avi and 0, 1 or 2"
    ):
        read_videos("splits/train_split1", str(tmp_path))


def test_videos_of_one_name_are_each_taken_from_the_folder_of_their_class(tmp_path):
    write(tmp_path / "classInd.txt", "1 jump\n2 run\n3 walk\n")
    write(tmp_path / "trainlist01.txt", "jump/001.avi 1\nrun/001.avi 2\nwalk/001.avi 3\n")
    for path in ("videos/jump/001.avi", "videos/run/001.mp4"):
        write(tmp_path / path)
    videos = read_videos("trainlist01.txt", str(tmp_path))
    expected = [("videos/jump/001.avi", (0,)), ("videos/run/001.mp4", (1,)), ("walk/001.avi", (2,))]
    assert paths_and_labels(videos) == expected and videos.notes == ()
    for name in ("jump", "run"):
        write(tmp_path / f"splits/{name}_test_split1.txt", "001.avi 1\n")
    assert paths_and_labels(read_videos("splits/train_split1", str(tmp_path))) == expected[:2]


def test_a_kinetics_video_of_two_classes_that_lies_flat_is_of_both(tmp_path):
    row = "_dbcJuKJQNs,40,50,train"
    write(tmp_path / "train.csv", f"label,youtube_id,time_start,time_end,split\nabseiling,{row}\nzumba,{row}\n")
    write(tmp_path / f"train/{NAMES[0]}.mp4")
    videos = read_videos("train.csv", str(tmp_path))
    assert [record.path for record in videos.records] == [f"train/{NAMES[0]}.mp4"] * 2
    assert "1 rows repeat a video, 1 of them with another label" in videos.notes[-1]


@pytest.mark.parametrize("number", ["null", "[1]", "true", '""'])
def test_an_id_that_is_none_is_named_by_its_entry(tmp_path, number):
    write(tmp_path / "train.json", f'[{{"id": "7", "template": "x"}}, {{"id": {number}, "template": "x"}}]')
    with pytest.raises(AnnotationError, match="entry 2 has no id, expected objects with id and template"):
        read_videos("train.json", str(tmp_path))


def test_a_number_of_thousands_of_digits_is_an_error_of_one_sentence(tmp_path):
    write(tmp_path / "train.json", f'[{{"id": {"9" * 5000}, "template": "x"}}]')
    with pytest.raises(AnnotationError, match="contains a number with thousands of digits"):
        read_videos("train.json", str(tmp_path))
