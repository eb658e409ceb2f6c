"""A temporary folder that is gone with its process: if that was killed, with the next one."""

import fcntl
import os
import tempfile
from pathlib import Path
from shutil import rmtree


class OwnFolder:
    """A folder of a random name that begins with `prefix`, for this process alone.

    Folders of that prefix whose processes have been killed are deleted: a process holds a lock on its folder while it lives.
    """

    def __init__(self, prefix: str) -> None:
        for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            _delete_if_left(left)
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        self._lock = os.open(self.path, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def delete(self) -> None:
        rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _delete_if_left(folder: Path) -> None:
    try:
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # it went meanwhile, or is not ours
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        rmtree(folder, ignore_errors=True)
    except OSError:  # its process lives
        pass
    finally:
        os.close(lock)
