"""data.train=auto: what is found under the root, and class folders split by a hash."""

import hashlib

import pytest

from mvit_video.config.load import config_from_dict
from mvit_video.config.schema import DataSettings
from mvit_video.data.lists.read import read_videos
from mvit_video.data.lists.split import found_lists, list_text, split_videos, stable_hash
from mvit_video.errors import AnnotationError, ConfigError


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")


def settings(root, **changes):
    return DataSettings(root=str(root), train="auto", **changes)


def split(root, **changes):
    """Paths of the two parts, and the note."""
    data = settings(root, **changes)
    train, val = split_videos(read_videos(".", data.root), data)
    return {record.path for record in train.records}, {record.path for record in val.records}, train.notes[-1]


def many(classes="abc", count=100):
    return [f"{name}/film{number // 5}_{number}.mp4" for name in classes for number in range(count)]


@pytest.mark.parametrize(
    ("files", "train", "val", "test"),
    [
        (("train/a/1.mp4", "val/a/2.mp4", "test/a/3.mp4"), "train", "val", "test"),
        (("train.csv", "train/1.mp4", "validation.txt", "valid/x/1.mp4"), "train.csv", "valid", None),
        (("train.txt", "test.csv"), "train.txt", None, "test.csv"),
        (("a/1.mp4", "b/1.mp4"), ".", None, None),
        (("train/1.mp4", "car/1.mp4", "test/2.mp4"), ".", None, None),  # vehicles: no folder of class folders
    ],
)
def test_lists_and_folders_are_found_by_their_names(tmp_path, files, train, val, test):
    touch(tmp_path, *files)
    found = found_lists(settings(tmp_path))
    assert (found.train, found.val, found.test) == (train, val, test)


def test_what_is_set_is_not_looked_for(tmp_path):
    touch(tmp_path, "train/a/1.mp4", "val/a/2.mp4", "test/a/3.mp4")
    found = found_lists(settings(tmp_path, val="test"))
    assert (found.train, found.val, found.test) == ("train", "test", "test")
    named = DataSettings(root=str(tmp_path), train="mine.csv")
    assert found_lists(named) is named


def test_a_root_that_cannot_be_meant_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"^data.root = .*nowhere: is no folder, which data.train=auto looks into"):
        found_lists(settings(tmp_path / "nowhere"))
    touch(tmp_path, "val/a/1.mp4")
    with pytest.raises(ConfigError, match=r"has val but nothing called train: add train.csv or train/, or keep class"):
        found_lists(settings(tmp_path))


def test_the_hash_is_the_first_eight_bytes_of_sha256_on_every_machine():
    digest = hashlib.sha256(b"a/1.mp4").digest()
    assert stable_hash("a/1.mp4") == sum(byte / 256 ** (place + 1) for place, byte in enumerate(digest[:8]))
    assert stable_hash("caf\u00e9") == stable_hash("cafe\u0301")


def test_every_video_is_on_one_side_and_the_share_is_about_the_one_asked_for(tmp_path):
    touch(tmp_path, *many())
    for share in (0.1, 0.4):
        train, val, note = split(tmp_path, val_share=share)
        assert train | val == set(many()) and not train & val
        assert abs(len(val) / 300 - share) < 0.06
        assert note == (
            f"{tmp_path}: split by a hash of their paths into {len(train)} videos for training and {len(val)} for validation"
        )


@pytest.mark.parametrize(("single", "told"), [("x", "1 class, such as 'x'"), ("xy", "2 classes, such as 'x'")])
def test_classes_without_a_video_for_validation_are_told(tmp_path, single, told):
    """A class of one video keeps it for training."""
    touch(tmp_path, *many(), *(f"{name}/1.mp4" for name in single))
    train, val, note = split(tmp_path)
    assert {f"{name}/1.mp4" for name in single} <= train
    assert note.endswith(f"{len(val)} for validation, which has no video of {told}")


def test_adding_videos_moves_none_of_those_that_were_there(tmp_path):
    touch(tmp_path, *many())
    before = split(tmp_path)
    touch(tmp_path, *many("abcd", 140))
    after = split(tmp_path)
    assert before[0] < after[0] and before[1] < after[1]


@pytest.mark.parametrize("pattern", [r"^film\d+_", r"^film(\d+)_"])
def test_a_group_is_never_split_over_classes_either(tmp_path, pattern):
    touch(tmp_path, *many())
    train, val, note = split(tmp_path, split_group=pattern)
    films = [{path.split("/")[1].split("_")[0] for path in part} for part in (train, val)]
    assert films[1] and not films[0] & films[1] and len(films[0] | films[1]) == 20
    assert "split by a hash of 20 groups by ^film" in note


def test_every_class_is_trained_even_where_its_few_videos_all_hash_into_validation(tmp_path):
    touch(tmp_path, *many(), "rare/1.mp4", "rarer/1.mp4", "rarer/2.mp4", "rarer/3.mp4")
    train, _, note = split(tmp_path, val_share=0.97)
    assert {path.split("/")[0] for path in train} == {"a", "b", "c", "rare", "rarer"}
    (kept,) = (path for path in train if path.startswith("rarer"))
    assert stable_hash(kept) == max(stable_hash(f"rarer/{number}.mp4") for number in (1, 2, 3)) < 0.97
    assert "no video of 1 class, such as 'rare'" in note


def test_too_few_videos_or_classes_are_one_sentence(tmp_path):
    touch(tmp_path, "a/1.mp4", "b/1.mp4")
    with pytest.raises(
        AnnotationError,
        match=r"none of its 2 videos is for validation with data.val_share = 0.2: raise it, add videos, or put them",
    ):
        split(tmp_path)
    touch(tmp_path / "one", "a/1.mp4", "a/2.mp4")
    with pytest.raises(AnnotationError, match=r"all of its 2 videos are of the class 'a', wanted at least two classes"):
        split(tmp_path / "one")


def test_a_pattern_that_fits_not_every_name_or_is_none_is_one_sentence(tmp_path):
    touch(tmp_path, "a/film_1.mp4", "b/other.mp4")
    with pytest.raises(
        ConfigError, match=r"data.split_group = \^film_ does not match the file name of 1 of 2 videos, .*'b/other.mp4'"
    ):
        split(tmp_path, split_group="^film_")
    with pytest.raises(ConfigError, match=r"data.split_group: '\(film' is not a regular expression \(missing \)"):
        config_from_dict({"data": {"split_group": "(film"}}, "here")


def test_a_written_list_is_read_back_as_it_was(tmp_path):
    names = ['a/say "hi".mp4', "a/1, 2 3.mp4", "a/ä ö.mp4", "b/tab\there.mp4", "b/deeper/4 5.mp4", "b/x.mp4"]
    touch(tmp_path, *names)
    data = settings(tmp_path, val_share=0.5)
    for videos in split_videos(read_videos(".", data.root), data):
        (tmp_path / "list.csv").write_text(list_text(videos), encoding="utf-8")
        found = read_videos("list.csv", data.root, videos.classes)
        assert [(r.path, r.label) for r in found.records] == [(r.path, r.label) for r in videos.records]
