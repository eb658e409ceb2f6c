"""Locks between processes; other holders are forked children of the test."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager

import pytest

from mvit_video.errors import ConfigError
from mvit_video.locks import LOCK, Busy, alone_in, locked, scratch_folder


def silent(text):
    """For functions that say what they do."""


@contextmanager
def another_process(hold):
    """A forked child that is inside `hold()`, until the block ends."""
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        with hold():
            os.write(ready[1], b"x")
            os.read(go[0], 1)
        os._exit(0)
    assert os.read(ready[0], 1)
    try:
        yield child
    finally:
        os.write(go[1], b"x")
        os.waitpid(child, 0)
        for handle in (*ready, *go):
            os.close(handle)


def test_a_folder_that_another_process_writes_to_is_refused_with_its_name(tmp_path):
    with another_process(lambda: alone_in(tmp_path / "run", silent)) as child:
        told = rf"run: is being written to by process {child} on .* since \d{{4}}-.*: wait until it ends, or choose another"
        with pytest.raises(ConfigError, match=told), alone_in(tmp_path / "run", silent):
            pass
        assert (tmp_path / "run" / LOCK).exists()
    with alone_in(tmp_path / "run", silent):
        pass


def test_a_folder_is_refused_a_second_time_in_one_process_too(tmp_path):
    with (
        alone_in(tmp_path, silent),
        pytest.raises(ConfigError, match="is being written to"),
        alone_in(tmp_path, silent),
    ):
        pass


def test_the_lock_of_a_killed_process_is_no_trouble_and_goes(tmp_path):
    with another_process(lambda: alone_in(tmp_path, silent)) as child:
        os.kill(child, signal.SIGKILL)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert (tmp_path / LOCK).exists()
        with alone_in(tmp_path, silent):
            pass
    assert not list(tmp_path.iterdir())


def test_a_child_that_outlives_its_parent_does_not_keep_its_lock(tmp_path):
    """Such as a loader worker of a run that was killed."""
    with alone_in(tmp_path / "run", silent):
        ready = os.pipe()
        child = os.fork()
        if not child:
            os.read(ready[0], 1)
            os._exit(0)
    try:
        with alone_in(tmp_path / "run", silent):
            pass
    finally:
        os.write(ready[1], b"x")
        os.waitpid(child, 0)


def test_a_child_that_ends_leaves_its_parents_lock_alone(tmp_path):
    with alone_in(tmp_path, silent):
        subprocess.run([sys.executable, "-c", ""], check=True)
        if not (child := os.fork()):
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(ConfigError, match="is being written to"), alone_in(tmp_path, silent):
            pass


def test_who_waits_gets_the_lock_when_it_is_free_and_nobody_has_it_with_them(tmp_path):
    place, inside, most = tmp_path / "lock", [], []

    def work():
        for _ in range(20):
            with locked(place):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 80 and max(most) == 1 and not place.exists()


def test_a_lock_file_that_was_deleted_or_replaced_is_none(tmp_path):
    place = tmp_path / "lock"
    with locked(place):
        place.unlink()
        with locked(place, wait=False):
            pass
    with locked(place):
        place.rename(tmp_path / "moved")
        place.write_text("another's")
    assert place.read_text() == "another's"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_and_used(tmp_path, number):
    def none(handle, wait):
        raise OSError(number, os.strerror(number))

    said = []
    with alone_in(tmp_path, said.append, flock=none):
        pass
    assert len(said) == 1 and f"its file system does not support locks ({os.strerror(number)})" in said[0]
    assert not list(tmp_path.iterdir())


def test_folders_that_were_made_for_the_lock_go_again_where_they_stay_empty(tmp_path):
    with alone_in(tmp_path / "a/b", silent):
        assert (tmp_path / "a/b").is_dir()
    assert not (tmp_path / "a").exists()
    with alone_in(tmp_path / "a/b", silent):
        (tmp_path / "a/b/file").touch()
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["file"]


def test_a_link_in_the_locks_place_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / LOCK).symlink_to(tmp_path / "mine")
    with pytest.raises(ConfigError, match="cannot be written to"), alone_in(tmp_path, silent):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    told = r"run: cannot be written to \(Not a directory\): choose another --output"
    with pytest.raises(ConfigError, match=told), alone_in(tmp_path / "file/run", silent):
        pass


def test_an_error_inside_goes_through(tmp_path):
    with pytest.raises(FileNotFoundError), alone_in(tmp_path, silent):
        raise FileNotFoundError
    with pytest.raises(Busy), alone_in(tmp_path, silent):
        raise Busy


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary folders are."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_scratch_folders_of_killed_processes_go_with_the_next_one_and_others_stay(temporary):
    (temporary / "uploads_mine").write_text("a file")
    (temporary / "elsewhere").mkdir()
    (temporary / "uploads_link").symlink_to(temporary / "elsewhere")
    with another_process(lambda: scratch_folder("uploads_")) as killed:
        os.kill(killed, signal.SIGKILL)
        os.waitid(os.P_PID, killed, os.WEXITED | os.WNOWAIT)
    left = {path for path in temporary.iterdir() if path.is_dir()} - {
        temporary / "elsewhere",
        temporary / "uploads_link",
    }
    assert len(left) == 1
    with another_process(lambda: scratch_folder("uploads_")), scratch_folder("uploads_") as folder:
        (folder / "upload").write_bytes(b"video")
        names = {path.name for path in temporary.iterdir()}
        assert len(names) == 5 and not left & set(temporary.iterdir())
        assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in temporary.iterdir()} == {"uploads_mine", "elsewhere", "uploads_link"}
