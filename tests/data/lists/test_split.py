"""data.train=auto: what is found under the root, and class folders split by a hash."""

import hashlib
import math

import pytest

from mvit_video.config.load import config_from_dict
from mvit_video.config.schema import DataSettings
from mvit_video.data.lists.read import read_videos
from mvit_video.data.lists.split import list_text, resolve_auto_lists, split_videos, stable_hash
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
    found = resolve_auto_lists(settings(tmp_path))
    assert (found.train, found.val, found.test) == (train, val, test)


def test_what_is_set_is_not_looked_for(tmp_path):
    touch(tmp_path, "train/a/1.mp4", "val/a/2.mp4", "test/a/3.mp4")
    found = resolve_auto_lists(settings(tmp_path, val="test"))
    assert (found.train, found.val, found.test) == ("train", "test", "test")
    named = DataSettings(root=str(tmp_path), train="mine.csv")
    assert resolve_auto_lists(named) is named


def test_a_root_that_cannot_be_meant_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"^data.root = .*nowhere: no such folder, which data.train=auto searches"):
        resolve_auto_lists(settings(tmp_path / "nowhere"))
    touch(tmp_path, "val/a/1.mp4")
    with pytest.raises(ConfigError, match=r"has val but no train: add train.csv or train/, or keep only class"):
        resolve_auto_lists(settings(tmp_path))


def test_the_hash_is_the_first_eight_bytes_of_sha256_on_every_machine():
    digest = hashlib.sha256(b"a/1.mp4").digest()
    assert stable_hash("a/1.mp4") == sum(byte / 256 ** (place + 1) for place, byte in enumerate(digest[:8]))
    assert stable_hash("caf\u00e9") == stable_hash("cafe\u0301")


@pytest.mark.parametrize("share", [0.1, 0.2, 0.4])
def test_every_video_is_on_one_side_and_each_class_has_the_share_that_is_asked_for(tmp_path, share):
    sizes = {"a": 100, "b": 40, "c": 15, "d": 8, "e": 4, "f": 2, "g": 1}
    videos = {f"{name}/{number}.mp4" for name, size in sizes.items() for number in range(size)}
    touch(tmp_path, *videos)
    train, val, note = split(tmp_path, val_share=share)
    assert train | val == videos and not train & val
    for name, size in sizes.items():
        own = sum(path.startswith(f"{name}/") for path in val)
        assert own == (0 if size == 1 else min(max(1, math.floor(share * size + 0.5)), size - 1)), name
    assert note == (
        f"{tmp_path}: each class was split by a hash of path: {len(train)} videos for training, {len(val)} for "
        "validation; the validation part has no video of 'g'"
    )


def test_those_with_the_lowest_hashes_of_a_class_are_held_out(tmp_path):
    touch(tmp_path, *many())
    train, val, _ = split(tmp_path)
    for name in "abc":
        held_out, rest = ([stable_hash(path) for path in part if path.startswith(name)] for part in (val, train))
        assert max(held_out) < min(rest)


@pytest.mark.parametrize(("single", "named"), [("x", "'x'"), ("xy", "'x' and 'y'"), ("vwx", "'v' and 2 more classes")])
def test_classes_without_a_video_for_validation_are_noted(tmp_path, single, named):
    """A class of one video keeps it for training."""
    touch(tmp_path, *many(), *(f"{name}/1.mp4" for name in single))
    train, val, note = split(tmp_path)
    assert {f"{name}/1.mp4" for name in single} <= train
    assert note.endswith(f"{len(val)} for validation; the validation part has no video of {named}")
    assert len(val) == 60


def test_adding_videos_moves_none_of_other_classes_and_few_of_their_own(tmp_path):
    touch(tmp_path, *many())
    before = split(tmp_path)
    touch(tmp_path, *many("cd", 140))
    after = split(tmp_path)
    for name in "ab":
        for part in (0, 1):
            assert {p for p in before[part] if p[0] == name} == {p for p in after[part] if p[0] == name}
    touch(tmp_path, "a/one more.mp4")
    assert len((split(tmp_path)[0] ^ after[0]) - {"a/one more.mp4"}) <= 1


@pytest.mark.parametrize("pattern", [r"^film\d+_", r"^film(\d+)_"])
def test_a_group_is_never_split_over_classes_either(tmp_path, pattern):
    touch(tmp_path, *many())
    train, val, note = split(tmp_path, split_group=pattern)
    films = [{path.split("/")[1].split("_")[0] for path in part} for part in (train, val)]
    assert films[1] and not films[0] & films[1] and len(films[0] | films[1]) == 20
    assert "each class was split by a hash of 20 groups of ^film" in note
    assert len(val) == 60


def test_groups_of_unequal_size_come_as_near_to_the_share_as_they_can(tmp_path):
    sizes = [1, 2, 3, 5, 8, 13]
    touch(
        tmp_path,
        *(f"{name}/film{film}_{n}.mp4" for name in "ab" for film, size in enumerate(sizes) for n in range(size)),
    )
    _, val, _ = split(tmp_path, split_group=r"^film\d+_", val_share=0.25)
    assert {path[0] for path in val} == set("ab") and 0.1 < len(val) / 64 < 0.4


def test_every_class_is_trained_even_where_nearly_all_videos_are_for_validation(tmp_path):
    touch(tmp_path, *many(), "rare/1.mp4", "rarer/1.mp4", "rarer/2.mp4", "rarer/3.mp4")
    train, _, note = split(tmp_path, val_share=0.97)
    assert {path.split("/")[0] for path in train} == {"a", "b", "c", "rare", "rarer"}
    (kept,) = (path for path in train if path.startswith("rarer"))
    assert stable_hash(kept) == max(stable_hash(f"rarer/{number}.mp4") for number in (1, 2, 3))
    assert "no video of 'rare'" in note


def test_a_class_whose_videos_are_of_one_group_keeps_it_for_training(tmp_path):
    touch(
        tmp_path, *(f"a/film{n}_1.mp4" for n in range(9)), "b/film3_1.mp4", "b/film3_2.mp4", "c/x1_1.mp4", "c/x2_1.mp4"
    )
    train, val, _ = split(tmp_path, split_group="^(.+)_", val_share=0.5)
    assert {path[0] for path in train} == set("abc") and {path[0] for path in val} == set("ac")
    assert "b/film3_1.mp4" in train and "a/film3_1.mp4" in train


def test_too_few_videos_or_classes_are_one_sentence(tmp_path):
    touch(tmp_path, "a/1.mp4", "b/1.mp4")
    with pytest.raises(
        AnnotationError,
        match=r"none of its 2 videos can be held out for validation, since each class keeps one for training: add videos",
    ):
        split(tmp_path)
    touch(tmp_path / "one", "a/1.mp4", "a/2.mp4")
    with pytest.raises(
        AnnotationError, match=r"all of its 2 videos are of the class 'a', expected at least two classes"
    ):
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
