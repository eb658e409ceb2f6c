"""Videos on disk: which there are, found by one listing per folder and never by a question per file."""

import os
from collections.abc import Iterable, Mapping

from mvit_video.data.class_names import name_key

VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".3gp"})
DEPTH = 4  # folders between the data root and a video of an official list, such as kinetics/videos/train/CLASS


def find_videos(root: str, wanted: Mapping[str, str], frames: bool, split: str = "") -> dict[str, str]:
    """Where in the tree under `root` the videos of these names lie: {name: path relative to root}, found ones only.

    `wanted` is {file name without suffix: class name}. A video is a file of that name with any video suffix, or a frame
    folder of that name; with `frames` a folder only. Of several, a file wins, one in a folder of its class, of its split.
    """
    found: dict[str, list[str]] = {}
    _search(root, "", wanted, frames, found)
    return {
        name: (
            paths[0] if len(paths) == 1 else min(paths, key=lambda path: _distance(path, wanted[name], split))
        ).rstrip("/")
        for name, paths in found.items()
    }


def _search(root: str, folder: str, wanted: Mapping[str, str], frames: bool, found: dict[str, list[str]]) -> None:
    """Look into `folder` and below. Where frame folders lie, nothing lies deeper: there may be 200,000 of them."""
    deeper, among_frames = [], False
    for name, is_folder in sorted(list_folder(os.path.join(root, folder)).items()):
        if name.startswith("."):
            continue
        stem, suffix = (name, "") if is_folder else os.path.splitext(name)
        if stem in wanted:
            among_frames |= is_folder
            if is_folder or (suffix.lower() in VIDEO_SUFFIXES and not frames):
                found.setdefault(stem, []).append(f"{folder}{name}{'/' if is_folder else ''}")
        elif is_folder:
            deeper.append(f"{folder}{name}/")
    if not among_frames and folder.count("/") < DEPTH:
        for inner in deeper:
            _search(root, inner, wanted, frames, found)


def _distance(path: str, class_name: str, split: str) -> tuple:
    """Smaller for the better of several places of one video; a folder's ends in a slash."""
    folders = path.rstrip("/").split("/")[:-1]
    in_class = bool(class_name) and name_key(class_name) in map(name_key, folders)
    in_split = bool(split) and any(folder.casefold().startswith(split.casefold()[:3]) for folder in folders)
    return (path.endswith("/"), not in_class, not in_split, len(folders), path)


def list_folder(folder: str) -> dict[str, bool]:
    """{name: whether it is a folder} of what lies in `folder`; empty where there is no such folder."""
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name: entry.is_dir() for entry in entries if _leads_somewhere(entry)}
    except (FileNotFoundError, NotADirectoryError):
        return {}


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


def videos_in(folder: str, frames: bool) -> list[str]:
    """Videos of one class folder, relative to it, sorted: files at any depth, or with `frames` the folders in it."""
    if frames:
        return sorted(name for name, is_folder in list_folder(folder).items() if is_folder and name[0] != ".")
    paths = []
    for place, _, names in os.walk(folder):
        inside = [name for name in names if name[0] != "." and os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES]
        paths += [os.path.relpath(os.path.join(place, name), folder) if place != folder else name for name in inside]
    return sorted(paths, key=lambda path: path.split(os.sep))
