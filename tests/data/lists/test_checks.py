import os
import re

import pytest
from list_files import write

from mvit_video.config.schema import DataSettings
from mvit_video.data.lists.checks import check_files_exist, missing_text, note_overlap
from mvit_video.data.lists.files import are_missing
from mvit_video.data.lists.read import checked_list, read_videos
from mvit_video.data.lists.selection import training_lists
from mvit_video.errors import AnnotationError
from mvit_video.evaluation.evaluate import true_labels


def three_of_which_one_is_there(tmp_path):
    write(tmp_path / "train.csv", "a.mp4 0\nb.mp4 0\nx/c.mp4 0\n")
    write(tmp_path / "a.mp4")
    return read_videos("train.csv", str(tmp_path))


def test_missing_files_stop_with_their_count_the_first_and_what_to_do(tmp_path):
    with pytest.raises(AnnotationError) as caught:
        check_files_exist(three_of_which_one_is_there(tmp_path), str(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path}/train.csv: 2 of 3 videos are missing, the first is 'b.mp4' (row 2 of train.csv): "
        f"check data.root = {tmp_path}, or pass --allow-missing to continue without them"
    )


@pytest.mark.parametrize(("there", "listed"), [("o\u0308.mp4", "\u00f6.mp4"), ("b.MP4", "B.mp4")])
def test_a_missing_file_whose_name_reads_like_one_that_is_there_says_so(tmp_path, there, listed):
    write(tmp_path / "train.csv", f"{listed} 0\n")
    write(tmp_path / there)
    told = f"its folder contains '{there}', which differs in case or in how its accents are encoded"
    with pytest.raises(AnnotationError, match=re.escape(told)):
        check_files_exist(read_videos("train.csv", str(tmp_path)), str(tmp_path))


@pytest.mark.parametrize("keep", [False, True])
def test_allowed_missing_files_leave_training_and_stay_in_evaluation(tmp_path, keep):
    videos = check_files_exist(three_of_which_one_is_there(tmp_path), str(tmp_path), allow_missing=True, keep=keep)
    assert [record.path for record in videos.records] == (["a.mp4", "b.mp4", "x/c.mp4"] if keep else ["a.mp4"])
    assert missing_text([videos]) == "b.mp4\trow 2 of train.csv\nx/c.mp4\trow 3 of train.csv\n"
    end = "they count as wrong" if keep else "they are left out"
    assert videos.notes == (
        f"{tmp_path}/train.csv: 2 of 3 videos are missing, the first is 'b.mp4' (row 2 of train.csv): {end}, see missing.txt",
    )


def test_a_list_of_which_nothing_is_there_is_never_allowed(tmp_path):
    videos = three_of_which_one_is_there(tmp_path)
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(AnnotationError, match=r"3 of 3 videos are missing, .*: check data.root = [^']*$"):
        check_files_exist(videos, str(tmp_path), allow_missing=True)


def test_a_file_is_no_folder_of_frames(tmp_path):
    write(tmp_path / "train.csv", "clip 5 0\n")
    write(tmp_path / "clip/1.jpg")
    videos = read_videos("train.csv", str(tmp_path))
    for frames in (True, False):
        assert check_files_exist(videos, str(tmp_path), frames) is videos
    write(tmp_path / "train.csv", "a.mp4 0\n")
    write(tmp_path / "a.mp4")
    with pytest.raises(AnnotationError, match=r"it is a file, but data.decoder=frames reads folders"):
        check_files_exist(read_videos("train.csv", str(tmp_path)), str(tmp_path), frames=True)


def test_absent_agrees_with_asking_for_each_file(tmp_path):
    """Links, hidden files, folders in place of files, broken links, any depth."""
    for name in ("a.mp4", "x/b.mp4", "x/.c.mp4", "x/y z/ü#.mp4"):
        write(tmp_path / name)
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "link.mp4").symlink_to("a.mp4")
    (tmp_path / "broken.mp4").symlink_to("nowhere.mp4")
    (tmp_path / "linked").symlink_to("x")
    names = ["a.mp4", "link.mp4", "broken.mp4", "folder.mp4", "x/b.mp4", "x/.c.mp4", "x/y z/ü#.mp4", "linked/b.mp4"]
    names += ["A.mp4", "x/a.mp4", "z/a.mp4", "a.mp4/b.mp4", "x"]
    assert are_missing(names, str(tmp_path), frames=False) == [not (tmp_path / name).exists() for name in names]
    assert are_missing(names, str(tmp_path), frames=True) == [not (tmp_path / name).is_dir() for name in names]


def test_each_folder_is_listed_once_and_no_file_is_asked_for(tmp_path, monkeypatch):
    for place in range(40):
        write(tmp_path / f"{place % 4}/{place}.mp4")
    write(tmp_path / "train.csv", "".join(f"{place % 4}/{place}.mp4 0\n" for place in range(44)))
    videos, listed = read_videos("train.csv", str(tmp_path)), []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: (listed.append(folder), scandir(folder))[1])
    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, lambda *_, **__: pytest.fail("a file was asked for"))
    assert sum(are_missing((record.path for record in videos.records), str(tmp_path), frames=False)) == 4
    assert sorted(listed) == [f"{tmp_path}/{folder}" for folder in range(4)]


def test_a_search_never_looks_into_frame_folders(tmp_path, monkeypatch):
    from mvit_video.data.lists.files import best_match, find_by_name

    for name in range(30):
        write(tmp_path / f"frames/{name}/1.jpg")
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: (listed.append(folder), scandir(folder))[1])
    expected = {str(name) for name in range(5)}
    for frames in (True, False):
        assert find_by_name(str(tmp_path), expected, frames) == {name: [f"frames/{name}/"] for name in expected}
    assert len(listed) == 4  # the root and frames/, twice
    write(tmp_path / "videos/deep/3.webm")
    assert find_by_name(str(tmp_path), expected, frames=True)["3"] == ["frames/3/"]
    places = find_by_name(str(tmp_path), expected, frames=False)["3"]
    assert best_match(places, "") == "videos/deep/3.webm"


def test_repeated_videos_are_counted_with_those_that_have_other_labels(tmp_path):
    write(tmp_path / "train.csv", "a.mp4 0\nb.mp4 1\na.mp4 0\nb.mp4 0\na.mp4 0\n")
    videos = read_videos("train.csv", str(tmp_path))
    assert len(videos) == 5
    assert videos.notes == (
        f"{tmp_path}/train.csv: 3 rows repeat a video, 1 of them with another label; the first is 'a.mp4' (rows 1 and 3)",
    )


def test_videos_that_stand_in_two_splits_are_counted(tmp_path):
    kinetics = "abcdefghijk_000001_000011.mp4"
    write(tmp_path / "train.csv", f"train/a.mp4 0\nb.mp4 1\ntrain/run/{kinetics} 0\ntrain/1.mp4 0\n")
    write(tmp_path / "val.csv", f"val/a.mp4 0\nb.mp4 1\nval/run/{kinetics} 0\nval/1.mp4 0\n")
    train, val = (read_videos(f"{name}.csv", str(tmp_path)) for name in ("train", "val"))
    assert note_overlap(train, val) == (
        f"2 of the 4 videos of {tmp_path}/val.csv are also in {tmp_path}/train.csv, the first is 'b.mp4' "
        "(row 2 of val.csv, row 2 of train.csv): results on them prove little"
    )
    write(tmp_path / "val.csv", "val/a.mp4 0\n")
    assert note_overlap(train, read_videos("val.csv", str(tmp_path))) == ""


def test_several_labels_are_for_evaluation_only(tmp_path):
    write(tmp_path / "train.csv", "a.mp4 0\nb.mp4 1;0\n")
    write(tmp_path / "a.mp4")
    write(tmp_path / "b.mp4")
    settings = DataSettings(root=str(tmp_path), train="train.csv")
    videos = checked_list("train.csv", settings, None, keep_missing=True)
    assert true_labels(videos).tolist() == [[True, False], [True, True]]
    with pytest.raises(AnnotationError, match=r"1 of 2 videos have several labels, the first is 'b.mp4' \(row 2 of"):
        training_lists(settings)


@pytest.mark.parametrize("keep", [False, True])
def test_a_checked_list_follows_the_settings(tmp_path, keep):
    three_of_which_one_is_there(tmp_path)
    settings = DataSettings(root=str(tmp_path))
    with pytest.raises(AnnotationError, match=r"2 of 3 videos are missing"):
        checked_list("train.csv", settings, None, keep)
    allowing = settings.model_copy(update={"allow_missing": True})
    assert len(checked_list("train.csv", allowing, None, keep)) == (3 if keep else 1)
    write(tmp_path / "b.mp4/1.jpg")
    frames = allowing.model_copy(update={"decoder": "frames"})
    assert [record.path for record in checked_list("train.csv", frames, None, False).records] == ["b.mp4"]
