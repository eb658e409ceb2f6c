"""Videos on disk: which there are, found by one listing per folder and never by a question per file."""

import os
from collections.abc import Collection, Iterable

from mvit_video.data.lists.class_names import name_key
from mvit_video.errors import AnnotationError

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".3gp", ".flv", ".ogv"}
)
DEPTH = 4  # folders between the data root and a video of an official list, such as kinetics/videos/train/CLASS


def find_videos(root: str, names: Collection[str], frames: bool) -> dict[str, list[str]]:
    """Where in the tree under `root` videos of these names lie: {name: paths relative to root}, found ones only.

    A video is a file of that name with any video suffix, or a frame folder, whose path ends in a slash; with `frames` a
    folder only. `names` are without suffixes.
    """
    found: dict[str, list[str]] = {}
    _search(root, "", names, frames, found)
    return found


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
        if name.startswith("."):
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


def videos_in(folder: str, frames: bool) -> tuple[list[str], list[str]]:
    """Videos of one class folder, relative to it, sorted: files at any depth, or with `frames` the folders in it.

    With them the other files, which no suffix marks as videos. Hidden files and folders are neither; links to folders
    are followed, each folder once.
    """
    if frames:
        return sorted(name for name, is_folder in list_folder(folder).items() if is_folder and name[0] != "."), []
    videos: list[str] = []
    others: list[str] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        if os.path.realpath(place) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        for name in (name for name in names if name[0] != "."):
            path = os.path.relpath(os.path.join(place, name), folder) if place != folder else name
            (videos if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES else others).append(path)
    return sorted(videos, key=lambda path: path.split(os.sep)), others
