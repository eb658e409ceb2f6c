"""Videos on disk: which there are, found by one listing per folder and never by a question per file.

`videos_of_folder` is the one answer to what the videos of a folder are, for predict, training, verify and features.
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

COPIES = {"annotated.mp4": "timeline.json", "explain.mp4": "explain.json"}  # what we draw, and what lies beside it
Reason = tuple[str, str]  # why something is left out: of one, of several

NO_VIDEO: Reason = ("file that is no video by its name", "files that are no videos by their names")
LEFTOVER: Reason = ("hidden file or leftover of macOS", "hidden files or leftovers of macOS")
COPY: Reason = (
    "copy that an earlier `predict --timeline` or `explain` has drawn",
    "copies that earlier calls of `predict --timeline` and `explain` have drawn",
)
BROKEN: Reason = ("link that leads nowhere", "links that lead nowhere")
OUTSIDE: Reason = (
    "link to a place outside of data.root, since data.follow_links=false",
    "links to places outside of data.root, since data.follow_links=false",
)
AGAIN: Reason = ("link to a folder that is already among them", "links to folders that are already among them")
UNREADABLE: Reason = ("folder that cannot be listed", "folders that cannot be listed")
NO_FILE: Reason = ("entry that is neither a file nor a folder", "entries that are neither files nor folders")
NO_FOLDER: Reason = ("file beside the folders of images", "files beside the folders of images")
NO_CLASS: Reason = ("video beside the class folders", "videos beside the class folders")
EMPTY: Reason = ("class folder without videos", "class folders without videos")
_SILENT: Reason = ("", "")  # what nobody takes for a video: .DS_Store, .git


def places_of_names(root: str, names: Collection[str], frames: bool) -> dict[str, list[str]]:
    """Where in the tree under `root` videos of these names lie: {name: paths relative to root}, found ones only.

    A video is a file of that name with any video suffix, or a frame folder, whose path ends in a slash; with `frames` a
    folder only. `names` are without suffixes.
    """
    found: dict[str, list[str]] = {}
    _search(root, "", names, frames, found)
    return found


def is_leftover(name: str) -> bool:
    """Hidden files and folders, and what macOS puts into archives (`._a.mp4`, `__MACOSX`): never videos."""
    return name.startswith(".") or name == "__MACOSX"


def best_place(paths: Iterable[str], class_name: str, split: str = "") -> str | None:
    """The one of a video's places that is most likely meant: a file, in a folder of its class, of its split."""
    best = min(paths, key=lambda path: _distance(path, class_name, split), default=None)
    return best and best.rstrip("/")


def in_class(path: str, class_name: str) -> bool:
    """Whether a folder above `path` is called as the class, give or take spaces and signs."""
    return bool(class_name) and name_key(class_name) in map(name_key, path.rstrip("/").split("/")[:-1])


def _search(root: str, folder: str, names: Collection[str], frames: bool, found: dict[str, list[str]]) -> None:
    """Look into `folder` and below. Where frame folders lie, nothing lies deeper: there may be 200,000 of them."""
    deeper, among_frames = [], False
    for name, is_folder in sorted(list_folder(os.path.join(root, folder)).items()):
        if is_leftover(name):
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


def _distance(path: str, class_name: str, split: str) -> tuple:
    """Smaller for the better of several places of one video; a folder's ends in a slash."""
    folders = path.rstrip("/").split("/")[:-1]
    in_split = bool(split) and any(folder.casefold().startswith(split.casefold()[:3]) for folder in folders)
    return (path.endswith("/"), not in_class(path, class_name), not in_split, len(folders), path)


def list_folder(folder: str) -> dict[str, bool]:
    """{name: whether it is a folder} of what lies in `folder`; empty where there is no such folder."""
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name: entry.is_dir() for entry in entries if _leads_somewhere(entry)}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as reason:
        raise AnnotationError(f"{folder}: cannot be listed ({reason.strerror})") from None


def _leads_somewhere(entry: os.DirEntry) -> bool:
    """Only links cost a question of their own."""
    return not entry.is_symlink() or os.path.exists(entry.path)


def lies_inside(place: str, root: str) -> bool:
    """Whether a place lies in the folder `root` when all links are followed."""
    real, inside = os.path.realpath(place), os.path.realpath(root)
    return real == inside or real.startswith(inside.rstrip("/") + "/")


def absent(paths: Iterable[str], root: str, frames: bool) -> list[bool]:
    """For each path, whether nothing (with `frames`: no folder) of that name lies under `root`."""
    folders: dict[str, dict[str, bool]] = {}
    answers = []
    for path in paths:
        folder, _, name = path.rpartition("/")
        if folder not in folders:
            folders[folder] = list_folder(os.path.join(root, folder))
        is_folder = folders[folder].get(name)
        answers.append(not is_folder if frames else is_folder is None)
    return answers


def links_out(root: str) -> Callable[[str], bool]:
    """What tells of a path under `root` whether it is, lies behind or holds (a frame folder) a link to a place outside."""
    known: dict[str, tuple[bool, set[str]]] = {}

    def look(folder: str) -> tuple[bool, set[str]]:
        """Whether the folder lies outside, and which of its entries are links that lead there."""
        if folder not in known:
            place, links = os.path.join(root, folder), set[str]()
            with suppress(OSError), os.scandir(place) as entries:
                links = {entry.name for entry in entries if entry.is_symlink() and not lies_inside(entry.path, root)}
            known[folder] = not lies_inside(place, root), links
        return known[folder]

    def leads_out(path: str) -> bool:
        folder, _, name = path.rpartition("/")
        behind, links = look(folder)
        return behind or name in links or (os.path.isdir(os.path.join(root, path)) and bool(look(path)[1]))

    return leads_out


@dataclass
class FolderVideos:
    """The videos of a folder, relative to it, in order of name; and what else lies there, by the reason it is left out."""

    videos: list[str] = field(default_factory=list)
    left_out: dict[Reason, list[str]] = field(default_factory=dict)

    def leave_out(self, names: Iterable[str], reason: Reason) -> None:
        self.left_out.setdefault(reason, []).extend(names)

    def note(self, folder: str) -> str:
        """How many are left out for which reason, and an example of each, in a sentence; empty where nothing is."""
        parts = []
        for (one, several), names in self.left_out.items():
            parts.append(
                f"{len(names)} {several}, such as '{min(names)}'" if len(names) > 1 else f"1 {one}, '{names[0]}'"
            )
        return f"{folder}: left out: {'; '.join(parts)}" if parts else ""


def videos_of_folder(folder: str, frames: bool = False, inside: str | None = None) -> FolderVideos:
    """Files at any depth whose suffix marks them as videos, or with `frames` the folders that lie in `folder` itself.

    Links are followed, and each folder is looked into once; with `inside`, links that lead out of that folder are left out.
    Hidden files, what macOS puts into archives, and copies that we have drawn ourselves are no videos.
    """
    found = FolderVideos()
    waiting, behind_links, seen = [""], list[str](), set[str]()
    while waiting or behind_links:  # links last, so that a folder that is reached both ways keeps its own name
        place = waiting.pop() if waiting else behind_links.pop(0)
        real = os.path.realpath(os.path.join(folder, place))
        if real in seen:
            found.leave_out([place.rstrip("/")], AGAIN)
            continue
        seen.add(real)
        for entry in _entries(folder, place, found):
            path, reason = f"{place}{entry.name}", _why_not(entry, frames, inside)
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


def _why_not(entry: os.DirEntry, frames: bool, inside: str | None) -> Reason | None:
    """Why an entry is neither a video nor a folder to look into; None where it is."""
    is_video = os.path.splitext(entry.name)[1].lower() in VIDEO_SUFFIXES
    if is_leftover(entry.name):
        return LEFTOVER if is_video or not entry.name.startswith(".") else _SILENT
    kind = _kind(entry)
    if kind == "nothing":
        return BROKEN if entry.is_symlink() else NO_FILE
    if inside is not None and entry.is_symlink() and not lies_inside(entry.path, inside):
        return OUTSIDE
    if kind == "folder":
        return None
    if frames:
        return NO_FOLDER
    if entry.name in COPIES and os.path.exists(os.path.join(os.path.dirname(entry.path), COPIES[entry.name])):
        return COPY
    return None if is_video else NO_VIDEO


def _kind(entry: os.DirEntry) -> str:
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "nothing"
    except OSError:  # a link to itself
        return "nothing"
