"""Paths as lists write them: in one spelling, relative to the data root, and refused where they lead out of it."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mvit_video.data.lists.files import links_out
from mvit_video.data.lists.formats import Row
from mvit_video.errors import AnnotationError, clipped

MOST_LETTERS = 4096
PLAYLISTS = frozenset({".m3u8", ".m3u", ".pls", ".ffconcat", ".concat", ".mpd", ".sdp", ".xspf", ".asx", ".smil"})
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


@dataclass(frozen=True)
class Refusal:
    """A path that may not be read, and why, in words that fit behind "which"."""

    path: str
    reason: str

    def __str__(self) -> str:
        return self.path


def checked_paths(
    rows: Sequence[Row], root: str, place: str, follow_links: bool, written: bool
) -> tuple[Iterator[str | Refusal], str]:
    """Each row's path relative to the root, or why it is refused; and a note on what was read otherwise than it is written.

    Refused are addresses, playlists, drives of Windows, absolute paths outside of the root, `..` that leads out of it, and
    without `follow_links` links that do. `written`: a person or program has written the paths, so that backslashes may be
    Windows' separators; otherwise they are names that were found. Raises AnnotationError for a name that is not UTF-8.
    """
    turn = written and _has_backslashes(rows, root)
    leads_out = None if follow_links else links_out(root)
    inside = _PathsInside(root)

    def checked(row: Row) -> str | Refusal:
        if not row.path.isascii():
            _refuse_other_bytes(row.path, place)
        path = inside(row.path.replace("\\", "/") if turn else row.path)
        if leads_out is not None and isinstance(path, str) and leads_out(path):
            return Refusal(
                path,
                f"is, holds or lies behind a symbolic link to a place outside of the data root '{root}', which is not followed: "
                "set data.follow_links=true",
            )
        return path

    return map(checked, rows), f"{place}: the backslashes in its paths are read as /" if turn else ""


def _has_backslashes(rows: Sequence[Row], root: str) -> bool:
    """Whether backslashes separate folders: some row has one, and no file is called so."""
    first = next((row.path for row in rows if "\\" in row.path), None)
    return first is not None and not os.path.lexists(os.path.join(root, first))


class _PathsInside:
    """Paths without detours, relative to the root."""

    def __init__(self, root: str) -> None:
        self.root, self._roots = root, (os.path.abspath(root), os.path.realpath(root))

    def __call__(self, text: str) -> str | Refusal:
        plain = text[:1] not in "/." and text[-1:] != "/" and not any(sign in text for sign in ("//", "/.", ":", "\0"))
        if not plain:
            if (reason := self._why_not(text)) is not None:
                return Refusal(text, reason)
            text = self._relative(text)
        if len(text) > MOST_LETTERS:
            return Refusal(clipped(text), f"is longer than the {MOST_LETTERS:,} characters that a path may have")
        if os.path.splitext(text)[1].lower() in PLAYLISTS:
            return Refusal(text, "is a playlist, which names other files or addresses: expected a video")
        return text

    def _why_not(self, text: str) -> str | None:
        if _ADDRESS.match(text):
            return "is an address, expected a file under the data root: download it first"
        if _DRIVE.match(text):
            return f"is a path of a Windows drive: write paths relative to the data root '{self.root}'"
        if "\0" in text:
            return "contains a zero byte, which no file name has"
        relative = self._relative(text)
        if relative in ("", "."):
            return "names no file under the data root"
        if os.path.isabs(text) and relative.split("/")[0] == "..":
            return f"is an absolute path outside of the data root '{self.root}': write paths relative to it, or set another data.root"
        if relative.split("/")[0] == "..":
            return f"leads out of the data root '{self.root}' by '..': paths in lists stay below it"
        return None

    def _relative(self, text: str) -> str:
        path = os.path.normpath(text)
        if not os.path.isabs(path):
            return path
        ways = [os.path.relpath(path, root) for root in self._roots]
        return next((way for way in ways if way.split("/")[0] != ".."), ways[0])


def _refuse_other_bytes(path: str, place: str) -> None:
    """Python reads a file name that is not UTF-8, but no list, result or state can be written with it."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        shown = path.encode("utf-8", "backslashreplace").decode()
        raise AnnotationError(f"{place}: the file name '{shown}' is not UTF-8: rename the file") from None
