"""Paths that a user gives: local or http(s) in, folders out. Nothing is overwritten that the user did not name."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from mvit_video.errors import ConfigError, MvitVideoError

ODD_BYTES = (
    "backslashreplace"  # of file names that are not UTF-8, wherever we write them: in JSON it reads back as the name
)


@cache
def _manager():
    from iopath.common.file_io import PathManager

    from mvit_video.download import CachedDownloads

    manager = PathManager()
    manager.register_handler(CachedDownloads())
    return manager


def local_file(path: str | Path, error: type[MvitVideoError] = ConfigError) -> Path:
    """A file on this machine for a local path or an http(s) address (fetched once: see download.py).

    Raises `error` where there is no such file, it is a folder, or the address cannot be fetched.
    """
    text = str(path)
    if text.startswith(("http://", "https://")):
        try:
            return Path(_manager().get_local_path(text))
        except OSError as reason:
            raise error(str(reason)) from None
    if not Path(text).exists():
        raise error(f"{text}: no such file")
    if Path(text).is_dir():
        raise error(f"{text}: is a folder, wanted a file")
    return Path(text)


def fresh_folder(folder: str | Path, owned: tuple[str, ...], overwrite: bool) -> Path:
    """An output folder that holds none of the names in `owned`, which are those that the caller is about to write.

    With `overwrite` exactly these are deleted, and nothing else in the folder is touched.
    """
    folder = Path(folder)
    for path in check_fresh(folder, owned, overwrite):
        _delete(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise ConfigError(f"{folder}: cannot be created ({reason.strerror}): choose another --output") from None
    return folder


def check_fresh(folder: Path, owned: tuple[str, ...], overwrite: bool) -> list[Path]:
    """What `fresh_folder` would delete; ConfigError where it would refuse the folder. Changes nothing."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file, wanted a folder for the output")
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ConfigError(f"{folder}: cannot be written, since {place} takes no files: choose another --output")
    present = [folder / name for name in owned if (folder / name).exists()]
    if present and not overwrite:
        raise ConfigError(
            f"{folder}: already holds {present[0].name} of another run: choose another --output, or say --overwrite"
        )
    return present


def output_file(path: str | Path, overwrite: bool = True) -> Path:
    """A file that can be written, found out before the work and not after it: its folder exists, and it is no folder.

    Without `overwrite`, it must not be there either.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder, wanted a file to write")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent} to write it to: create it first")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: exists: choose another --output, or say --overwrite")
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
    """A temporary name beside `path` that becomes it, synced, when all has gone well."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, content: object) -> None:
    """`content` as JSON with non-ASCII names left readable; whole or not at all. NaN is refused: JSON has none."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
