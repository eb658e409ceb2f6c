"""The videos of a folder: one answer for predict, training, verify and features."""

import os
import random

import pytest
from list_files import write

from mvit_video.data.lists.files import OWN_OUTPUTS, VIDEO_SUFFIXES, is_inside, outside_links, videos_of_folder
from mvit_video.data.lists.read import annotated_list, read_videos
from mvit_video.inference.predictor import expand_paths


@pytest.fixture
def clips(tmp_path):
    """root/clips/jump with videos, links, leftovers and other things, and elsewhere/ outside of root."""
    folder = tmp_path / "root/clips/jump"
    for name in (
        "b.mp4",
        "c/d.WEBM",
        "._b.mp4",
        "__MACOSX/._b.mp4",
        "__MACOSX/e.mp4",
        ".cache/f.mp4",
        "notes.txt",
        ".DS_Store",
    ):
        write(folder / name, b"x")
    write(tmp_path / "elsewhere/a.mp4", b"x")
    write(tmp_path / "elsewhere/deep/z.mkv", b"x")
    os.symlink(tmp_path / "elsewhere", folder / "linked")
    os.symlink("../c", folder / "c/round")  # to itself
    os.symlink("b.mp4", folder / "again.mp4")
    os.symlink("nowhere.mp4", folder / "broken.mp4")
    os.symlink("loop.mp4", folder / "loop.mp4")
    os.mkfifo(folder / "pipe.mp4")
    return folder


WANTED = ["again.mp4", "b.mp4", "c/d.WEBM", "linked/a.mp4", "linked/deep/z.mkv"]


def test_predict_training_verify_and_features_find_the_same_videos_in_a_folder(clips, tmp_path):
    root = tmp_path / "root"
    assert videos_of_folder(str(clips)).videos == WANTED
    assert list(expand_paths([str(clips)])) == [f"{clips}/{name}" for name in WANTED]
    for videos in (read_videos("clips", str(root)), annotated_list("clips", str(root))[0]):
        assert [record.path for record in videos.records] == [f"clips/jump/{name}" for name in WANTED]


def test_what_is_left_out_is_said_with_the_reason(clips, tmp_path):
    expected = (
        "skipped 2 hidden or macOS metadata files, such as {0}._b.mp4'; 2 broken links, such as {0}broken.mp4'; "
        "1 file without a video suffix, {0}notes.txt'; 1 entry that is neither a file nor a folder, {0}pipe.mp4'; "
        "1 link to a folder that is already included, {0}c/round'"
    )
    told = []
    list(expand_paths([str(clips)], told.append))
    assert told == [f"{clips}: {expected.format(chr(39))}"]
    [note] = read_videos("clips", str(tmp_path / "root")).notes
    assert note == f"{tmp_path}/root/clips: " + expected.format("'jump/")
    write(tmp_path / "plain/a.mp4")
    write(tmp_path / "plain/.DS_Store")
    assert videos_of_folder(str(tmp_path / "plain")).note("plain") == "", "nobody takes it for a video"


def test_without_follow_links_those_that_lead_out_are_left_out(clips, tmp_path):
    root = str(tmp_path / "root")
    found = videos_of_folder(str(clips), inside=root)
    assert found.videos == ["again.mp4", "b.mp4", "c/d.WEBM"]
    assert "1 link out of data.root (data.follow_links=false), 'linked'" in found.note("x")
    assert len(read_videos("clips", root, follow_links=False)) == 3


def test_a_folder_that_is_reached_by_its_own_name_and_a_link_keeps_its_name(tmp_path):
    write(tmp_path / "z/a.mp4")
    os.symlink("z", tmp_path / "a")
    assert videos_of_folder(str(tmp_path)).videos == ["z/a.mp4"]


def test_folders_of_pictures_are_the_folders_themselves(tmp_path):
    for name in ("1/1.jpg", "__MACOSX/1.jpg", ".x/1.jpg", "list.txt"):
        write(tmp_path / name)
    write(tmp_path.parent / f"{tmp_path.name}_other/1.jpg")
    os.symlink(tmp_path.parent / f"{tmp_path.name}_other", tmp_path / "2")
    found = videos_of_folder(str(tmp_path), frames=True)
    assert found.videos == ["1", "2"] and "1 file outside the frame folders, 'list.txt'" in found.note("x")
    assert videos_of_folder(str(tmp_path), True, inside=str(tmp_path)).videos == ["1"]


@pytest.mark.parametrize("copy", OWN_OUTPUTS)
def test_copies_that_we_have_drawn_are_left_out_where_what_they_show_lies_beside_them(tmp_path, copy):
    write(tmp_path / copy)
    assert videos_of_folder(str(tmp_path)).videos == [copy]
    write(tmp_path / OWN_OUTPUTS[copy])
    found = videos_of_folder(str(tmp_path))
    assert (
        found.videos == []
        and f"1 file written by an earlier `predict --timeline` or `explain`, '{copy}'" in found.note("")
    )


def test_a_folder_that_may_not_be_read_is_said_and_ends_nothing(tmp_path, monkeypatch):
    write(tmp_path / "a.mp4")
    write(tmp_path / "locked/b.mp4")
    scandir = os.scandir

    def locked(folder):
        if str(folder).endswith("locked/"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", locked)  # root may read any folder
    found = videos_of_folder(str(tmp_path))
    assert found.videos == ["a.mp4"] and found.note("x") == "x: skipped 1 folder that cannot be listed, 'locked'"


def test_folders_of_any_depth_are_read(tmp_path):
    folder = tmp_path
    for _ in range(400):
        folder /= "d"
    os.makedirs(folder)
    write(folder / "a.mp4")
    assert videos_of_folder(str(tmp_path)).videos == ["d/" * 400 + "a.mp4"]


@pytest.mark.parametrize("seed", range(8))
def test_random_trees_give_what_a_plain_walk_over_real_files_gives(tmp_path, seed):
    rng = random.Random(seed)
    folders = [""]
    for number in range(12):
        folders.append(f"{rng.choice(folders)}f{number}/")
        os.makedirs(tmp_path / folders[-1])
    expected = []
    for number in range(40):
        suffix = rng.choice([*VIDEO_SUFFIXES, ".txt", "", ".MP4"])
        path = f"{rng.choice(folders)}v{number}{suffix}"
        write(tmp_path / path)
        expected += [path] if suffix.lower() in VIDEO_SUFFIXES else []
    for number in range(6):  # links among the folders add names, never videos
        os.symlink(tmp_path / rng.choice(folders[1:]), tmp_path / rng.choice(folders) / f"l{number}")
    actual = videos_of_folder(str(tmp_path)).videos
    assert sorted(os.path.realpath(tmp_path / path) for path in actual) == sorted(
        str(tmp_path / path) for path in expected
    )
    assert actual == sorted(actual, key=lambda path: path.split("/"))


def test_links_out_are_told_for_files_folders_and_pictures(tmp_path):
    root = tmp_path / "root"
    for name in ("a.mp4", "x/b.mp4", "frames/1.jpg", "mixed/1.jpg"):
        write(root / name)
    write(tmp_path / "out/c.mp4")
    os.symlink("a.mp4", root / "inside.mp4")
    os.symlink(tmp_path / "out/c.mp4", root / "x/link.mp4")
    os.symlink(tmp_path / "out", root / "folder")
    os.symlink(tmp_path / "out/c.mp4", root / "mixed/2.jpg")
    os.symlink(root, tmp_path / "root_by_link")
    for place in (root, tmp_path / "root_by_link"):
        leads_out = outside_links(str(place))
        told = {name: leads_out(name) for name in ("a.mp4", "x/b.mp4", "inside.mp4", "frames", "none.mp4", "no/no.mp4")}
        assert not any(told.values()), told
        assert all(map(leads_out, ("x/link.mp4", "folder/c.mp4", "folder/none.mp4", "mixed")))
    assert is_inside(str(root / "x"), str(root)) and not is_inside(str(tmp_path / "rooted"), str(root))


def test_a_list_may_name_links_unless_they_are_not_followed(tmp_path):
    root = tmp_path / "root"
    write(tmp_path / "disk/a.mp4")
    write(root / "train.csv", "linked/a.mp4 0\nb.mp4 1\n")
    write(root / "b.mp4")
    os.symlink(tmp_path / "disk", root / "linked")
    assert len(read_videos("train.csv", str(root))) == 2
    videos = read_videos("train.csv", str(root), follow_links=False, keep_refused=True)
    [(record, reason)] = videos.refused
    assert (record.path, record.row, len(videos)) == ("linked/a.mp4", 1, 1)
    assert reason.startswith("is, contains or is below a symbolic link out of data.root")
    assert reason.endswith("which is not followed: set data.follow_links=true")
