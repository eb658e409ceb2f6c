"""Folders of class folders: CLASS/VIDEO.mp4, or CLASS/VIDEO/ holding images."""

import os
from pathlib import Path

from mvit_video.data.lists.files import is_hidden, list_folder
from mvit_video.data.lists.formats import Listing, Row
from mvit_video.errors import AnnotationError


class ClassFolders:
    """Folders are the classes, in alphabetical order; if all are numbers, in numerical order."""

    def matches(self, path: str) -> bool:
        return os.path.isdir(path)

    def read(self, path: str, root: str) -> Listing:
        names = sorted(name for name, is_folder in list_folder(path).items() if is_folder and not is_hidden(name))
        if not names:
            raise AnnotationError(
                f"{path}: contains no class folders with videos, expected {Path(path).name}/CLASS/VIDEO.mp4; "
                "`mvit-video pretrain` needs no labels"
            )
        if all(name.isascii() and name.isdigit() for name in names):
            names.sort(key=lambda name: int(name[:1000]))
        inside = Path(os.path.relpath(path, root)).as_posix()
        rows = [Row(0, name if inside == "." else f"{inside}/{name}", name) for name in names]
        return Listing(rows, tuple(names), by_name=True, paths="folders")
