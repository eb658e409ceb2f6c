"""Files and folders that are written: whole or not at all, and nothing over what the user did not name."""

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mvit_video.errors import ConfigError
from mvit_video.printable import json_text

ODD_BYTES = (
    "backslashreplace"  # of file names that are not UTF-8, wherever we write them: in JSON it reads back as the name
)


UNFINISHED = re.compile(
    r"^\..*\.[0-9a-f]{8}\.unfinished$", re.DOTALL
)  # temporary names; those of killed processes stay behind
LONGEST_NAME = 100  # bytes of a name that go into its temporary one


def fresh_folder(
    folder: str | Path, files_to_write: tuple[str, ...], overwrite: bool, option: str = "--output"
) -> Path:
    """An output folder that holds none of the names in `files_to_write`, which are those that the caller is about to write.

    With `overwrite` exactly these are deleted, and nothing else in the folder is touched. Errors name the `option` that
    names the folder.
    """
    folder = Path(folder)
    for path in check_fresh(folder, files_to_write, overwrite, option):
        _delete(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise ConfigError(f"{folder}: cannot be created ({reason.strerror}): choose another {option}") from None
    return folder


def check_fresh(folder: Path, files_to_write: tuple[str, ...], overwrite: bool, option: str = "--output") -> list[Path]:
    """What `fresh_folder` would delete; ConfigError where it would refuse the folder. Changes nothing."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file, expected a folder for the output")
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ConfigError(
            f"{folder}: cannot be written, since no files can be created in {place}: choose another {option}"
        )
    present = [folder / name for name in files_to_write if (folder / name).exists()]
    if present and not overwrite:
        raise ConfigError(
            f"{folder}: already contains {present[0].name} of another run: choose another {option}, or pass --overwrite"
        )
    return present


def output_file(path: str | Path, overwrite: bool = True) -> Path:
    """A file that can be written, found out before the work and not after it: its folder exists, and it is no folder.

    Without `overwrite`, it must not be there either.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder, expected a file to write")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: its folder {path.parent} does not exist: create it first")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: exists: choose another --output, or pass --overwrite")
    return path


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all. Of file names that are not UTF-8, the odd bytes are escaped."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode("utf-8", ODD_BYTES) if isinstance(content, str) else content)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes it, synced, when all has gone well. An OSError names `path`.

    Its permissions are those that the user's umask gives to any new file.
    """
    path = Path(path)
    temporary = unfinished(path)
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except BaseException as reason:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(reason, OSError) and reason.filename in (None, str(temporary)):
            raise OSError(reason.errno, reason.strerror or str(reason), str(path)) from None
        raise
    sync(path.parent)


def unfinished(path: Path) -> Path:
    """A temporary name beside `path`, which `remove_unfinished` knows."""
    return path.with_name(f"{_start(path.name)}{secrets.token_hex(4)}.unfinished")


def _start(name: str) -> str:
    return f".{os.fsdecode(os.fsencode(name)[:LONGEST_NAME])}."


def sync(path: Path) -> None:
    """Have a file's content, or a folder's names, on the disk itself; folders where the file system can do that."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(handle)
    except OSError as reason:
        if not path.is_dir() or reason.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def remove_unfinished(folder: Path, name: str = "") -> None:
    """Delete what killed processes have left half-written in a folder, of the file `name` or of all, while nobody else
    writes there (see locks.py)."""
    start = _start(name) if name else "."
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.startswith(start) and UNFINISHED.match(path.name):
            _delete(path)


def write_json(path: str | Path, content: object) -> None:
    """`content` as JSON with non-ASCII names left readable; whole or not at all. NaN is refused: JSON has none."""
    write_whole(path, json_text(content, indent=2) + "\n")


def file_sha256(file: Path) -> str:
    """sha256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while part := content.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
