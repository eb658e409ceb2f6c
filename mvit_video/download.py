"""Files from http(s), fetched once, kept in one folder and compared with their sha256 at every use.

The folder is $MVIT_VIDEO_CACHE, or ~/.cache/mvit_video; a file lies in it at host/path, with its digest beside it. A file
put there by hand is used like a downloaded one, so a machine without a network needs no switch.
"""

import hashlib
import http.client
import os
import re
import tempfile
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

from iopath.common.file_io import PathHandler, file_lock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from mvit_video.paths import write_whole

CACHE_VARIABLE = "MVIT_VIDEO_CACHE"
TIMEOUT_SECONDS = 30
BLOCK = 1 << 20
DIGESTS_IN_NAMES = ("download.pytorch.org",)  # hosts whose file names end in the first digits of the sha256


class CachedDownloads(PathHandler):
    """iopath's handler for http(s) addresses; its own one neither checks what it fetched nor says where it belongs."""

    def _get_supported_prefixes(self) -> list[str]:
        return ["http://", "https://"]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: object) -> str:
        self._check_kwargs(kwargs)
        return str(cached_file(path))


def cache_folder() -> Path:
    """Where downloads are kept: $MVIT_VIDEO_CACHE, else ~/.cache/mvit_video."""
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/mvit_video").expanduser()


def cache_place(url: str) -> Path:
    """The file of the cache that stands for an address: host/path below `cache_folder()`, never outside it."""
    try:
        parts = urlsplit(url)
    except ValueError:  # a host in half a pair of brackets
        parts = urlsplit("")
    names = [part for part in unquote(parts.path).split("/") if part not in ("", ".")]
    places = [parts.netloc.rpartition("@")[2].replace(":", "_"), *names]
    if not names or not parts.hostname or {".", ".."} & set(places) or "\0" in "".join(places):
        raise OSError(f"{url}: names no file, wanted an address such as https://host/folder/file.pyth")
    if parts.query:
        places[-1] = f"{hashlib.sha256(parts.query.encode()).hexdigest()[:8]}_{names[-1]}"
    return cache_folder().joinpath(*places)


def cached_file(url: str) -> Path:
    """The file of an address, fetched if it is not in the cache, and found to be what it was. OSError in one sentence."""
    place = cache_place(url)
    if place.exists():
        check_digest(url, place, place)
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise OSError(
            f"{place.parent}: cannot be created for downloads ({reason.strerror}): set {CACHE_VARIABLE} to another folder"
        ) from None
    with file_lock(str(place)):  # other processes wait here for the first one's download
        if not place.exists():
            _download(url, place)
    return place


def check_digest(url: str, file: Path, place: Path) -> None:
    """Compare `file` with what is known of `place`; OSError in one sentence where they differ.

    Known are the digits in a name such as mvit_v2_s-ae3be167.pth, of a host that promises them, and the digest recorded
    at the first download. Where none is recorded yet, this file's is, unless only others may write to the cache.
    """
    found, record = sha256(file), digest_file(place)
    stated = re.search(r"-([0-9a-f]{8,64})\.(?:pth|pt|pyth|safetensors)$", place.name)
    if stated and urlsplit(url).hostname in DIGESTS_IN_NAMES and not found.startswith(stated[1]):
        cure = f"delete {place} and fetch it again" if file == place else "fetch it again"
        raise OSError(
            f"{url}: its sha256 starts with {found[:8]}, its name says {stated[1]}: it is damaged or not the "
            f"published file, so {cure}"
        )
    if not record.exists():
        if os.access(record.parent, os.W_OK):
            write_whole(record, f"{found}  {place.name}\n")
    elif record.read_text().split(" ")[0] != found:
        cure = f"delete {place} to fetch it again" if file == place else f"delete {record} if the change is meant"
        raise OSError(f"{url}: its sha256 starts with {found[:8]}, at the first download it did not: {cure}")


def digest_file(place: Path) -> Path:
    """Where the sha256 of the first download is recorded, in the form that `sha256sum --check` reads."""
    return place.with_name(place.name + ".sha256")


def sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _download(url: str, place: Path) -> None:
    """Fetch to a temporary name, compare, then rename: the place holds the whole file or none."""
    handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            try:
                _fetch(url, file)
            except (OSError, http.client.HTTPException, ValueError) as reason:
                raise OSError(
                    f"{url}: cannot be fetched ({reason or type(reason).__name__}): get this file by other means, "
                    f"put it at {place}, and call again"
                ) from None
        check_digest(url, temporary, place)
        temporary.chmod(0o644)
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


def _fetch(url: str, file) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
        size = int(answer.headers.get("Content-Length") or 0)
        with _bytes_bar() as bar:
            task = bar.add_task(Path(urlsplit(url).path).name, total=size or None)
            while block := answer.read(BLOCK):
                file.write(block)
                bar.advance(task, len(block))
    if size and file.tell() != size:
        raise OSError(f"the connection ended after {file.tell():,} of {size:,} bytes")


def _bytes_bar() -> Progress:
    """On stderr, so that stdout stays for results."""
    columns = (
        TextColumn("fetching {task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))
