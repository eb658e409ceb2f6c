"""Normalise the paths of lists, relative to the data root, and refuse those that are unsafe or outside it."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mvit_video.data.lists.files import outside_links
from mvit_video.data.lists.formats import Row
from mvit_video.errors import AnnotationError, clipped

MAX_CHARACTERS = 4096
PLAYLISTS = frozenset({".m3u8", ".m3u", ".pls", ".ffconcat", ".concat", ".mpd", ".sdp", ".xspf", ".asx", ".smil"})
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


@dataclass(frozen=True)
class Refusal:
    """A path that may not be read, and why, as a clause after "which"."""

    path: str
    reason: str

    def __str__(self) -> str:
        return self.path


def checked_paths(
    rows: Sequence[Row], root: str, place: str, follow_links: bool, written: bool
) -> tuple[Iterator[str | Refusal], str]:
    """Return each row's path relative to the root, or a Refusal; and a note if backslashes were replaced.

    URLs, playlists, Windows drives, absolute paths outside the root, and `..` out of it are refused; without
    `follow_links`, symbolic links out of it too. `written`: the paths were written by a person or program, so backslashes
    may be Windows separators; otherwise they are names found on disk. Raises AnnotationError for a name that is not UTF-8.
    """
    turn = written and _has_backslashes(rows, root)
    leads_out = None if follow_links else outside_links(root)
    inside = _PathsInside(root)

    def checked(row: Row) -> str | Refusal:
        if not row.path.isascii():
            _refuse_other_bytes(row.path, place)
        path = inside(row.path.replace("\\", "/") if turn else row.path)
        if leads_out is not None and isinstance(path, str) and leads_out(path):
            return Refusal(
                path,
                f"is, contains or is below a symbolic link out of data.root = {root}, which is not followed: "
                "set data.follow_links=true",
            )
        return path

    return map(checked, rows), f"{place}: backslashes in its paths are read as /" if turn else ""


def _has_backslashes(rows: Sequence[Row], root: str) -> bool:
    """Whether backslashes separate folders: some row has one, and no file has that name."""
    first = next((row.path for row in rows if "\\" in row.path), None)
    return first is not None and not os.path.lexists(os.path.join(root, first))


class _PathsInside:
    """Normalises paths relative to the root, and refuses those outside it."""

    def __init__(self, root: str) -> None:
        self.root, self._roots = root, (os.path.abspath(root), os.path.realpath(root))

    def __call__(self, text: str) -> str | Refusal:
        plain = text[:1] not in "/." and text[-1:] != "/" and not any(sign in text for sign in ("//", "/.", ":", "\0"))
        if not plain:
            if (reason := self._refusal_reason(text)) is not None:
                return Refusal(text, reason)
            text = self._relative(text)
        if len(text) > MAX_CHARACTERS:
            return Refusal(clipped(text), f"is longer than {MAX_CHARACTERS:,} characters, the limit of paths")
        if os.path.splitext(text)[1].lower() in PLAYLISTS:
            return Refusal(text, "is a playlist, not a video")
        return text

    def _refusal_reason(self, text: str) -> str | None:
        if _ADDRESS.match(text):
            return "is a URL, not a file under data.root: download it first"
        if _DRIVE.match(text):
            return f"is on a Windows drive: write paths relative to data.root = {self.root}"
        if "\0" in text:
            return "contains a zero byte, which no file name may have"
        relative = self._relative(text)
        if relative in ("", "."):
            return "names no file under data.root"
        if os.path.isabs(text) and relative.split("/")[0] == "..":
            return f"is outside data.root = {self.root}: write paths relative to it, or set another data.root"
        if relative.split("/")[0] == "..":
            return f"leads out of data.root = {self.root} through '..': write a path inside it"
        return None

    def _relative(self, text: str) -> str:
        path = os.path.normpath(text)
        if not os.path.isabs(path):
            return path
        ways = [os.path.relpath(path, root) for root in self._roots]
        return next((way for way in ways if way.split("/")[0] != ".."), ways[0])


def _refuse_other_bytes(path: str, place: str) -> None:
    """Refuse names that are not UTF-8: Python can read them, but lists, results and states cannot be written with them."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        shown = path.encode("utf-8", "backslashreplace").decode()
        raise AnnotationError(f"{place}: the file name '{shown}' is not UTF-8: rename the file") from None
