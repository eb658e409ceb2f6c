"""Resolve the paths of a list under the data root: names are searched for, folders are listed."""

import os
from collections.abc import Sequence
from dataclasses import replace

from mvit_video.data.lists.files import (
    EMPTY,
    OUTSIDE_CLASSES,
    FolderVideos,
    best_match,
    find_by_name,
    in_class,
    videos_of_folder,
)
from mvit_video.data.lists.formats import Listing, Row
from mvit_video.data.lists.path_label_rows import is_video_path
from mvit_video.errors import AnnotationError


def resolve_paths(listing: Listing, place: str, root: str, frames: bool, follow_links: bool) -> Listing:
    """Resolve rows to files (with `frames`: frame folders) relative to the root."""
    if listing.paths == "names":
        return replace(listing, rows=_resolve_names(listing, root, frames), paths="files")
    if listing.paths == "folders":
        return _list_folders(listing, place, root, frames, follow_links)
    return listing


def _resolve_names(listing: Listing, root: str, frames: bool) -> list[Row]:
    """Resolve names of videos; a name that several classes share is never taken from another class's folder."""
    usual = listing.usual.rpartition(".")[0] or listing.usual if frames else listing.usual
    classes: dict[str, set[str]] = {}
    for row in listing.rows:
        classes.setdefault(row.path, set()).add(row.label)
    places = find_by_name(root, classes, frames)

    def path(row: Row) -> str:
        found, others = places.get(row.path, []), classes[row.path] - {row.label}
        own = [place for place in found if not any(in_class(place, other) for other in others)] if others else found
        return best_match(own, row.label, listing.split) or usual.format(label=row.label, name=row.path).lstrip("/")

    return [row._replace(path=path(row)) for row in listing.rows]


def _list_folders(listing: Listing, place: str, root: str, frames: bool, follow_links: bool) -> Listing:
    """List class folders; a class is a folder with at least one video."""
    rows: list[Row] = []
    everything = FolderVideos()
    for folder in listing.rows:
        found = videos_of_folder(os.path.join(root, folder.path), frames, None if follow_links else root)
        rows += [Row(0, f"{folder.path}/{video}", folder.label) for video in found.videos]
        for reason, names in found.left_out.items():
            everything.leave_out([f"{folder.label}/{name}" for name in names], reason)
        if not found.videos:
            everything.leave_out([folder.label], EMPTY)
    if not rows:
        wanted = "CLASS/VIDEO/ of images" if frames else "CLASS/VIDEO.mp4"
        raise AnnotationError(
            f"{place}: contains no class folders with videos, expected {os.path.basename(place)}/{wanted}; "
            "`mvit-video pretrain` needs no labels"
            + (f" ({everything.note(place).partition(': ')[2]})" if everything.left_out else "")
        )
    beside = [] if frames else _videos_next_to(place)
    if beside:
        everything.leave_out(beside, OUTSIDE_CLASSES)
    classes = tuple(dict.fromkeys(row.label for row in rows))
    note = everything.note(place)
    return replace(
        listing, rows=rows, classes=classes, notes=(*listing.notes, *([note] if note else [])), paths="files"
    )


def _videos_next_to(place: str) -> Sequence[str]:
    with os.scandir(place) as entries:
        return [
            entry.name for entry in entries if is_video_path(entry.name) and entry.name[0] != "." and entry.is_file()
        ]
