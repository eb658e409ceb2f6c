"""Files that are there whole or not at all."""

import errno
import hashlib
import os
import stat

import pytest

from mvit_video.paths import file_sha256, remove_unfinished, unfinished, whole_file, write_json, write_whole


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o002, 0o027])
def test_files_follow_the_umask_as_any_new_file_does(tmp_path, umask, mask):
    umask(mask)
    (tmp_path / "plain").touch()
    write_whole(tmp_path / "text", "secret")
    write_json(tmp_path / "json", {})
    with whole_file(tmp_path / "by another") as temporary:
        temporary.write_bytes(b"secret")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert set(modes.values()) == {0o666 & ~mask}, modes


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "\udcff" * 200, " a\nb.json"])
def test_names_as_long_as_a_file_system_takes_are_written_and_their_leftovers_found(tmp_path, name):
    write_whole(tmp_path / name, "content")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["content"]
    unfinished(tmp_path / name).touch()
    remove_unfinished(tmp_path, name)
    assert os.listdir(tmp_path) == [name]


def test_what_is_there_stays_until_the_new_file_is_whole(tmp_path):
    write_whole(tmp_path / "x", "old")
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x", "old")]


def test_an_error_of_the_disk_names_the_file_and_not_its_temporary_name(tmp_path):
    with pytest.raises(OSError) as caught, whole_file(tmp_path / "x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (caught.value.filename, caught.value.errno) == (str(tmp_path / "x"), errno.ENOSPC)
    with pytest.raises(FileNotFoundError) as missing:
        write_whole(tmp_path / "nowhere/x", "")
    assert missing.value.filename == str(tmp_path / "nowhere/x")
    with pytest.raises(FileNotFoundError) as other, whole_file(tmp_path / "x"):
        (tmp_path / "source").read_text()
    assert other.value.filename == str(tmp_path / "source")


def test_leftovers_of_killed_writers_go_and_nothing_else_does(tmp_path):
    kept = [".hidden", "x", ".x.unfinished", ".x.0123456.unfinished", "x.01234567.unfinished"]
    for name in kept:
        (tmp_path / name).touch()
    unfinished(tmp_path / "y").touch()
    leftover = unfinished(tmp_path / "x")
    leftover.mkdir()
    (leftover / "inside").touch()
    remove_unfinished(tmp_path, "x")
    assert not leftover.exists() and len(list(tmp_path.iterdir())) == len(kept) + 1
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    remove_unfinished(tmp_path / "nowhere")


@pytest.mark.parametrize("size", [0, 5, 1 << 20, (1 << 20) + 7])
def test_the_sha256_of_a_file_is_that_of_its_content(size, tmp_path):
    content = bytes(number % 251 for number in range(size))
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
