"""Files that a user names: local ones, and those of http(s) addresses, which are fetched once and kept in one folder.

What is kept was whole when it came and is no page that a server sent in the file's place; it is compared with its
sha256 at every use. The folder is $MVIT_VIDEO_CACHE, or ~/.cache/mvit_video; a file lies in it at host/path, with its
digest beside it. A file put there by hand is used like a downloaded one, so a machine without a network needs no switch.
"""

import hashlib
import http.client
import os
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from mvit_video.errors import CheckpointError, ConfigError, MvitVideoError
from mvit_video.locks import locked
from mvit_video.paths import file_sha256, remove_unfinished, unfinished, write_whole
from mvit_video.printable import printable

CACHE_VARIABLE = "MVIT_VIDEO_CACHE"
TIMEOUT_SECONDS = 30
BLOCK = 1 << 20
DIGESTS_IN_NAMES = ("download.pytorch.org",)  # hosts whose file names end in the first digits of the sha256
PAGE = re.compile(  # how a page for people starts, or an error in XML
    rb"(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)?<(!doctype html|html|head|title|meta|script|body|\?xml)\b",
    re.IGNORECASE | re.DOTALL,
)
SETTLED_SECONDS = 2.0  # after which a file that changes has another time than before, whatever the file system

Check = Callable[[Path], None]


def any_file(file: Path) -> None:
    """Accept any file that is not a web page."""


@cache
def _manager():
    from iopath.common.file_io import PathHandler, PathManager

    class CachedDownloads(PathHandler):
        """iopath's own handler of http(s) neither checks what it fetched nor says where it belongs."""

        def _get_supported_prefixes(self) -> list[str]:
            return ["http://", "https://"]

        def _get_local_path(self, path: str, force: bool = False, check: Check = any_file, **kwargs: object) -> str:
            self._check_kwargs(kwargs)
            return str(cached_file(path, check))

    manager = PathManager()
    manager.register_handler(CachedDownloads())
    return manager


def local_file(path: str | Path, error: type[MvitVideoError] = ConfigError, check: Check = any_file) -> Path:
    """A file on this machine for a local path or an http(s) address.

    Raises `error` where there is no such file, it is a folder, or the address cannot be fetched. A download of which
    `check` raises is not kept, and its error is raised.
    """
    text = str(path)
    if text.startswith(("http://", "https://")):
        try:
            return Path(_manager().get_local_path(text, check=check))
        except OSError as reason:
            raise error(str(reason)) from None
    if not Path(text).exists():
        raise error(f"{text}: no such file")
    if Path(text).is_dir():
        raise error(f"{text}: is a folder, expected a file{_wanted_in(Path(text), error)}")
    return Path(text)


def _wanted_in(folder: Path, error: type[MvitVideoError]) -> str:
    """What is probably meant by the folder of a run."""
    name = {CheckpointError: "model.safetensors", ConfigError: "config.yaml"}.get(error)
    return f": pass {folder / name}" if name and (folder / name).is_file() else ""


def cache_folder() -> Path:
    """Where downloads are kept: $MVIT_VIDEO_CACHE, else ~/.cache/mvit_video."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/mvit_video").expanduser()


def cache_path(url: str) -> Path:
    """The file of the cache that stands for an address: host/path below `cache_folder()`, never outside it."""
    try:
        parts = urlsplit(url)
    except ValueError:  # a host in half a pair of brackets
        parts = urlsplit("")
    names = [part for part in unquote(parts.path).split("/") if part not in ("", ".")]
    places = [parts.netloc.rpartition("@")[2].replace(":", "_"), *names]
    if not names or not parts.hostname or {".", ".."} & set(places) or "\0" in "".join(places):
        raise OSError(f"{url}: names no file, expected an address such as https://host/folder/file.pyth")
    if parts.query:
        places[-1] = f"{hashlib.sha256(parts.query.encode()).hexdigest()[:8]}_{names[-1]}"
    return cache_folder().joinpath(*places)


def cached_file(url: str, check: Check = any_file) -> Path:
    """The file of an address, fetched if it is not in the cache, and found to be what it was. OSError in one sentence.

    What `check` raises of a file that was fetched goes through, and the file is not kept.
    """
    place = cache_path(url)
    if place.exists():
        if _is_page(place):
            raise OSError(f"{url}: {place} is a web page and not the file: delete it to fetch the file again")
        check_digest(url, place, place)
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise OSError(
            f"{place.parent}: cannot be created for downloads ({reason.strerror}): set {CACHE_VARIABLE} to another folder"
        ) from None
    with (
        _cache_errors(place),
        locked(place.with_name(f"{place.name}.lock")),
    ):  # others wait here for the first one's download
        if not place.exists():
            remove_unfinished(place.parent, place.name)
            _download(url, place, check)
    return place


class _CacheError(OSError):
    """An OSError whose message is a complete sentence."""


@contextmanager
def _cache_errors(place: Path) -> Iterator[None]:
    """What goes wrong inside is the cache's fault."""
    try:
        yield
    except _CacheError:
        raise
    except OSError as reason:
        raise _CacheError(
            f"{place}: cannot be written ({reason.strerror}): make room, or set {CACHE_VARIABLE} to another folder"
        ) from None


def check_digest(url: str, file: Path, place: Path) -> None:
    """Compare `file` with what is known of `place`; OSError in one sentence where they differ.

    Known are the digits in a name such as mvit_v2_s-ae3be167.pth, of a host that promises them, and the digest recorded
    at the first download. Where none is recorded yet, this file's is, unless only others may write to the cache.
    """
    found, record = known_sha256(file), digest_file(place)
    stated = re.search(r"-([0-9a-f]{8,64})\.(?:pth|pt|pyth|safetensors)$", place.name)
    if stated and urlsplit(url).hostname in DIGESTS_IN_NAMES and not found.startswith(stated[1]):
        cure = f"delete {place} and fetch it again" if file == place else "fetch it again"
        raise _CacheError(
            f"{url}: its sha256 starts with {found[:8]}, its name says {stated[1]}: it is damaged or not the "
            f"published file: {cure}"
        )
    if not record.exists():
        if os.access(record.parent, os.W_OK):
            write_whole(record, f"{found}  {place.name}\n")
    elif record.read_text(errors="replace").split(" ")[0] != found:
        cure = f"delete {place} to fetch it again" if file == place else f"delete {record} if the change is meant"
        raise _CacheError(f"{url}: its sha256 starts with {found[:8]}, at the first download it did not: {cure}")


def digest_file(place: Path) -> Path:
    """Where the sha256 of the first download is recorded, in the form that `sha256sum --check` reads."""
    return place.with_name(place.name + ".sha256")


def known_sha256(file: Path) -> str:
    """`file_sha256`, computed once per process while the file does not change."""
    found = file.stat()
    key = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
    if key not in _digests:
        digest = file_sha256(file)
        if found.st_mtime + SETTLED_SECONDS > time.time():
            return digest
        _digests[key] = digest
    return _digests[key]


_digests: dict[tuple[int, int, int, int], str] = {}


def _download(url: str, place: Path, check: Check) -> None:
    """Fetch to a temporary name, compare, then rename: the place holds the whole file or none."""
    temporary = unfinished(place)
    try:
        with temporary.open("xb") as file:
            for block in _fetched(url, place):
                file.write(block)
        if _is_page(temporary):
            raise _not_fetched(url, place, "the server sent a web page instead, perhaps to log in")
        check(temporary)
        check_digest(url, temporary, place)
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


def _fetched(url: str, place: Path) -> Iterator[bytes]:
    """The blocks of the file of an address. OSError in one sentence where they are not the whole of it, as it is."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer, _bytes_bar() as bar:
            encoding = answer.headers.get("Content-Encoding", "identity")
            if encoding.lower() != "identity":  # which is all that was asked for
                raise OSError(f"the server sends it packed, by {encoding}")
            size, taken = int(answer.headers.get("Content-Length") or 0), 0
            task = bar.add_task(printable(Path(urlsplit(url).path).name), total=size or None)
            while block := answer.read(BLOCK):
                yield block
                taken += len(block)
                bar.advance(task, len(block))
        if not taken:
            raise OSError("the server sent nothing")
        if size and taken != size:
            raise OSError(f"the connection ended after {taken:,} of {size:,} bytes")
    except (OSError, http.client.HTTPException, ValueError) as reason:
        raise _not_fetched(url, place, reason or type(reason).__name__) from None


def _not_fetched(url: str, place: Path, reason: object) -> OSError:
    return _CacheError(f"{url}: cannot be fetched ({reason}): download it by other means to {place}, and run again")


def _is_page(file: Path) -> bool:
    with file.open("rb") as content:
        return PAGE.match(content.read(1024)) is not None


def _bytes_bar() -> Progress:
    """On stderr, so that stdout stays for results."""
    columns = (
        TextColumn("fetching {task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))
