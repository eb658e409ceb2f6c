"""Find videos on disk, with one listing per folder instead of one system call per file.

`videos_of_folder` defines the videos of a folder for predict, training, verify and features.
"""

import os
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from mvit_video.data.lists.class_names import name_key
from mvit_video.errors import AnnotationError

VIDEO_SUFFIXES = frozenset(
    {
        ".mp4",
        ".m4v",
        ".mov",
        ".3gp",
        ".3g2",
        ".mkv",
        ".webm",
        ".avi",
        ".divx",
        ".mpg",
        ".mpeg",
        ".m2v",
        ".vob",
        ".ts",
        ".mts",
    }
    | {
        ".m2ts",
        ".flv",
        ".f4v",
        ".ogv",
        ".wmv",
        ".asf",
        ".gif",
        ".mxf",
        ".dv",
        ".y4m",
        ".ivf",
        ".h264",
        ".hevc",
        ".h265",
    }
)
DEPTH = 4  # folders between the data root and a video of an official list, such as kinetics/videos/train/CLASS

OWN_OUTPUTS = {
    "annotated.mp4": "timeline.json",
    "explain.mp4": "explain.json",
}  # files that we write, and what is next to them
Reason = tuple[str, str]  # why something is skipped: singular, plural

NOT_A_VIDEO: Reason = ("file without a video suffix", "files without a video suffix")
HIDDEN: Reason = ("hidden or macOS metadata file", "hidden or macOS metadata files")
OWN_OUTPUT: Reason = (
    "file written by an earlier `predict --timeline` or `explain`",
    "files written by earlier `predict --timeline` or `explain` runs",
)
BROKEN_LINK: Reason = ("broken link", "broken links")
OUTSIDE_LINK: Reason = (
    "link out of data.root (data.follow_links=false)",
    "links out of data.root (data.follow_links=false)",
)
REPEATED_LINK: Reason = ("link to a folder that is already included", "links to folders that are already included")
UNREADABLE: Reason = ("folder that cannot be listed", "folders that cannot be listed")
NOT_A_FILE: Reason = ("entry that is neither a file nor a folder", "entries that are neither files nor folders")
NOT_A_FOLDER: Reason = ("file outside the frame folders", "files outside the frame folders")
OUTSIDE_CLASSES: Reason = ("video outside the class folders", "videos outside the class folders")
EMPTY: Reason = ("class folder without videos", "class folders without videos")
_SILENT: Reason = ("", "")  # obviously not videos: .DS_Store, .git


def find_by_name(root: str, names: Collection[str], frames: bool) -> dict[str, list[str]]:
    """Search the tree under `root` for videos by name, without suffix: {name: paths relative to root}.

    A video is a file with any video suffix, or a frame folder, whose path ends in a slash; with `frames` only a folder.
    """
    found: dict[str, list[str]] = {}
    _search(root, "", names, frames, found)
    return found


def is_hidden(name: str) -> bool:
    """Whether a name is hidden, or macOS metadata (`._a.mp4`, `__MACOSX`)."""
    return name.startswith(".") or name == "__MACOSX"


def best_match(paths: Iterable[str], class_name: str, split: str = "") -> str | None:
    """Choose among the paths of a video: a file before a folder, then one in its class folder, then in its split."""
    best = min(paths, key=lambda path: _rank(path, class_name, split), default=None)
    return best and best.rstrip("/")


def in_class(path: str, class_name: str) -> bool:
    """Whether a parent folder of `path` has the class's name, ignoring spaces and punctuation."""
    return bool(class_name) and name_key(class_name) in map(name_key, path.rstrip("/").split("/")[:-1])


def _search(root: str, folder: str, names: Collection[str], frames: bool, found: dict[str, list[str]]) -> None:
    """Search `folder` recursively, but not below frame folders: there may be 200,000 of them."""
    deeper, among_frames = [], False
    for name, is_folder in sorted(list_folder(os.path.join(root, folder)).items()):
        if is_hidden(name):
            continue
        stem, suffix = (name, "") if is_folder else os.path.splitext(name)
        if stem in names:
            among_frames |= is_folder
            if is_folder or (suffix.lower() in VIDEO_SUFFIXES and not frames):
                found.setdefault(stem, []).append(f"{folder}{name}{'/' if is_folder else ''}")
        elif is_folder:
            deeper.append(f"{folder}{name}/")
    if not among_frames and folder.count("/") < DEPTH:
        for inner in deeper:
            _search(root, inner, names, frames, found)


def _rank(path: str, class_name: str, split: str) -> tuple:
    """Sort key of `best_match`, smallest first; a folder's path ends in a slash."""
    folders = path.rstrip("/").split("/")[:-1]
    in_split = bool(split) and any(folder.casefold().startswith(split.casefold()[:3]) for folder in folders)
    return (path.endswith("/"), not in_class(path, class_name), not in_split, len(folders), path)


def list_folder(folder: str) -> dict[str, bool]:
    """List a folder: {name: whether it is a folder}; empty if the folder does not exist."""
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name: entry.is_dir() for entry in entries if _exists(entry)}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as reason:
        raise AnnotationError(f"{folder}: cannot be listed ({reason.strerror})") from None


def _exists(entry: os.DirEntry) -> bool:
    """Whether an entry exists; only links need a system call."""
    return not entry.is_symlink() or os.path.exists(entry.path)


def is_inside(place: str, root: str) -> bool:
    """Whether a path is in the folder `root` after following all links."""
    real, inside = os.path.realpath(place), os.path.realpath(root)
    return real == inside or real.startswith(inside.rstrip("/") + "/")


def are_missing(paths: Iterable[str], root: str, frames: bool) -> list[bool]:
    """Whether each path (with `frames`: folder) is missing under `root`."""
    folders: dict[str, dict[str, bool]] = {}
    answers = []
    for path in paths:
        folder, _, name = path.rpartition("/")
        if folder not in folders:
            folders[folder] = list_folder(os.path.join(root, folder))
        is_folder = folders[folder].get(name)
        answers.append(not is_folder if frames else is_folder is None)
    return answers


def outside_links(root: str) -> Callable[[str], bool]:
    """Return a test of paths under `root`: whether one is, is below or (a frame folder) contains a link out of `root`."""
    known: dict[str, tuple[bool, set[str]]] = {}

    def look(folder: str) -> tuple[bool, set[str]]:
        """Whether the folder is outside, and which of its entries are links out of `root`."""
        if folder not in known:
            place, links = os.path.join(root, folder), set[str]()
            with suppress(OSError), os.scandir(place) as entries:
                links = {entry.name for entry in entries if entry.is_symlink() and not is_inside(entry.path, root)}
            known[folder] = not is_inside(place, root), links
        return known[folder]

    def leads_out(path: str) -> bool:
        folder, _, name = path.rpartition("/")
        behind, links = look(folder)
        return behind or name in links or (os.path.isdir(os.path.join(root, path)) and bool(look(path)[1]))

    return leads_out


@dataclass
class FolderVideos:
    """Videos of a folder, relative to it and sorted by name; and what was skipped, by reason."""

    videos: list[str] = field(default_factory=list)
    left_out: dict[Reason, list[str]] = field(default_factory=dict)

    def leave_out(self, names: Iterable[str], reason: Reason) -> None:
        self.left_out.setdefault(reason, []).extend(names)

    def note(self, folder: str) -> str:
        """Summarise what was skipped, with counts and an example per reason; an empty string if nothing was."""
        parts = []
        for (one, several), names in self.left_out.items():
            parts.append(
                f"{len(names)} {several}, such as '{min(names)}'" if len(names) > 1 else f"1 {one}, '{names[0]}'"
            )
        return f"{folder}: skipped {'; '.join(parts)}" if parts else ""


def videos_of_folder(folder: str, frames: bool = False, inside: str | None = None) -> FolderVideos:
    """Find files with a video suffix at any depth, or with `frames` the folders directly in `folder`.

    Links are followed, but each folder is visited once; with `inside`, links out of that folder are skipped, as are hidden
    files, macOS metadata and annotated copies that we wrote.
    """
    found = FolderVideos()
    waiting, behind_links, seen = [""], list[str](), set[str]()
    while waiting or behind_links:  # links last, so that a folder reached both ways keeps its own name
        place = waiting.pop() if waiting else behind_links.pop(0)
        real = os.path.realpath(os.path.join(folder, place))
        if real in seen:
            found.leave_out([place.rstrip("/")], REPEATED_LINK)
            continue
        seen.add(real)
        for entry in _entries(folder, place, found):
            path, reason = f"{place}{entry.name}", _exclusion_reason(entry, frames, inside)
            if reason is not None:
                found.leave_out([path] if reason != _SILENT else [], reason)
            elif frames or not entry.is_dir():
                found.videos.append(path)
            else:
                (behind_links if entry.is_symlink() else waiting).append(f"{path}/")
    found.videos.sort(key=lambda path: path.split("/"))
    found.left_out = {reason: names for reason, names in found.left_out.items() if names}
    return found


def _entries(folder: str, place: str, found: FolderVideos) -> list[os.DirEntry]:
    try:
        with os.scandir(os.path.join(folder, place)) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        found.leave_out([place.rstrip("/") or "."], UNREADABLE)
        return []


def _exclusion_reason(entry: os.DirEntry, frames: bool, inside: str | None) -> Reason | None:
    """Why an entry is skipped; None for a video, or a folder to visit."""
    is_video = os.path.splitext(entry.name)[1].lower() in VIDEO_SUFFIXES
    if is_hidden(entry.name):
        return HIDDEN if is_video or not entry.name.startswith(".") else _SILENT
    kind = _kind(entry)
    if kind == "nothing":
        return BROKEN_LINK if entry.is_symlink() else NOT_A_FILE
    if inside is not None and entry.is_symlink() and not is_inside(entry.path, inside):
        return OUTSIDE_LINK
    if kind == "folder":
        return None
    if frames:
        return NOT_A_FOLDER
    if entry.name in OWN_OUTPUTS and os.path.exists(os.path.join(os.path.dirname(entry.path), OWN_OUTPUTS[entry.name])):
        return OWN_OUTPUT
    return None if is_video else NOT_A_VIDEO


def _kind(entry: os.DirEntry) -> str:
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "nothing"
    except OSError:  # a link to itself
        return "nothing"
