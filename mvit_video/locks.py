"""Locks on files and folders: each is one process's, and gone with it however that ends, so none is ever stale.

They are `flock`'s, which NFS passes on to its server. Where a file system takes none, work goes on without, and says so.
"""

import errno
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mvit_video.errors import ConfigError
from mvit_video.paths import remove_unfinished

LOCK = ".mvit_video.lock"  # in an output folder while somebody writes there
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # what file systems say that take none
_held: set[int] = set()


class Busy(Exception):
    """Another process holds the lock; the text says which."""


def _forget() -> None:
    """A forked child holds none of its parent's locks: it may live longer."""
    for handle in _held:
        with suppress(OSError):
            os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _flock(handle: int, wait: bool) -> None:
    import fcntl

    fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


@contextmanager
def locked(path: Path, wait: bool = True, flock: Callable[[int, bool], None] = _flock) -> Iterator[str]:
    """Hold the lock file `path`, which is there meanwhile; yields why the file system takes no locks, or an empty string.

    Raises Busy where another process has it and we do not `wait`, and OSError where the file cannot be made.
    """
    handle, missing = _acquired(path, wait, flock)
    _held.add(handle)
    try:
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}".encode())
        yield missing
    finally:
        if handle in _held:  # not in a child that was forked inside
            if _is_at(handle, path):
                path.unlink()
            _held.discard(handle)
            os.close(handle)


def _acquired(path: Path, wait: bool, flock: Callable[[int, bool], None]) -> tuple[int, str]:
    """The open lock file that lies at `path`, and why it is not locked; one that its last holder has deleted is let go."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            flock(handle, wait)
            if _is_at(handle, path):
                return handle, ""
        except BlockingIOError:
            holder = os.read(handle, 200).decode(errors="replace")
            os.close(handle)
            raise Busy(holder or "another process") from None
        except OSError as reason:
            if reason.errno in NO_LOCKS:
                return handle, reason.strerror or str(reason)
            os.close(handle)
            raise
        os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except OSError:
        return False


@contextmanager
def alone_in(
    folder: str | Path, say: Callable[[str], None], flock: Callable[[int, bool], None] = _flock
) -> Iterator[None]:
    """An output folder that no other process writes to meanwhile; made where it is missing, and gone again if it stays empty.

    What killed calls have left half-written in it is deleted. Raises ConfigError where another process writes there, or
    where it cannot be made. A file system without locks is reported with `say`.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file, expected a folder for the output")
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    with ExitStack() as stack:
        stack.callback(_remove_empty, made)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            missing = stack.enter_context(locked(folder / LOCK, wait=False, flock=flock))
        except Busy as holder:
            raise ConfigError(
                f"{folder}: is being written to by {holder}: wait until it ends, or choose another --output "
                f"(or delete {folder / LOCK} if that process is gone)"
            ) from None
        except OSError as reason:
            raise ConfigError(f"{folder}: cannot be written to ({reason.strerror}): choose another --output") from None
        if missing:
            say(
                f"note: {folder}: its file system does not support locks ({missing}): do not write there from a second process"
            )
        remove_unfinished(folder)
        yield


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder of this user alone, deleted at the end; what killed processes left under this prefix goes first."""
    base = Path(tempfile.gettempdir())
    for place in base.glob(f"{prefix}*"):
        _remove_left(place)
    new = Path(tempfile.mkdtemp(prefix=f".{prefix}"))  # has its last name only once it is locked
    folder = base / f"{prefix}{secrets.token_hex(8)}"
    try:
        with locked(new / LOCK):
            new.rename(folder)
            yield folder
    finally:
        for place in (new, folder):
            shutil.rmtree(place, ignore_errors=True)


def _remove_left(folder: Path) -> None:
    """Delete a scratch folder of this user's that no process has locked."""
    with suppress(OSError, Busy):
        if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != os.getuid():
            return
        with locked(folder / LOCK, wait=False) as missing:
            if not missing:
                shutil.rmtree(folder)
