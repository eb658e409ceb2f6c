"""Read lists of labelled videos in any format, from `path label` rows to the official lists of datasets."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from mvit_video.config.schema import DataSettings
from mvit_video.data.lists.checks import check_files_exist, note_duplicates
from mvit_video.data.lists.class_names import (
    class_lookup,
    classes_next_to,
    difference_from_published,
    first_difference,
    read_classes,
)
from mvit_video.data.lists.files import VIDEO_SUFFIXES, is_hidden, list_folder, videos_of_folder
from mvit_video.data.lists.formats import Listing, Row, reader_of
from mvit_video.data.lists.locate import resolve_paths
from mvit_video.data.lists.official import HMDB_LIST
from mvit_video.data.lists.path_checks import Refusal, checked_paths
from mvit_video.data.lists.path_label_rows import is_video_path
from mvit_video.data.lists.records import NO_LABEL, VideoList, VideoRecord, VideoRecords
from mvit_video.errors import AnnotationError, clipped

__all__ = ["VIDEO_SUFFIXES", "VideoList", "VideoRecord", "checked_list", "locate_list", "read_videos"]

MAX_CLASSES = 100_000  # of a list whose labels are numbers without names


def read_videos(
    source: str,
    root: str,
    classes: Sequence[str] | None = None,
    frames: bool = False,
    need_labels: bool = True,
    follow_links: bool = True,
    keep_refused: bool = False,
) -> VideoList:
    """Read labelled videos from a list file or a folder, relative to `root`; datasets/README.md shows every format.

    `classes` are known names in label order, such as those of the training list, so that labels mean the same in every
    list. Without them names are the dataset's own (classes.txt or SSv2's labels.json next to the list), else the
    published ones of an official list, else folder names, else the numeric labels.
    `frames`: videos are folders of images. `need_labels=False` accepts lists without labels and folders of videos, for prediction.
    `keep_refused`: rows whose paths may not be read (see `checked_paths`) go to `refused` with the reasons.
    Raises AnnotationError that names the file and the row.
    """
    place = source if source.startswith(("http://", "https://")) else str(Path(root) / source)
    if need_labels or frames or not _holds_only_videos(place):
        read = _read_list(place, root)
        listing, written = resolve_paths(read, place, root, frames, follow_links), read.paths == "files"
    else:
        listing, written = _videos_of(place, root, follow_links), False
    names, notes = _class_names(listing, classes, place, root)
    if need_labels and not any(row.label for row in listing.rows):
        raise AnnotationError(
            f"{place}: none of its {len(listing.rows)} videos has a label, row {listing.rows[0].number} is "
            f"'{clipped(listing.rows[0].path)}', expected a path and a label (prediction and `mvit-video pretrain` need none)"
        )
    to_labels = _labeller(names, listing.by_name, need_labels, place)
    paths, note = checked_paths(listing.rows, root, place, follow_links, written=written)
    notes += [note] if note else []
    records, refused = _records(listing.rows, paths, to_labels, place, keep_refused)
    named = bool(names)
    if not named:
        names, more = _names_from_labels(records, place)
        notes += more
    notes += note_duplicates(records, place)
    return VideoList(records, names, place, (*listing.notes, *notes), named=named, refused=tuple(refused))


def _read_list(place: str, root: str) -> Listing:
    """The rows of a list of any format."""
    if is_video_path(place) and not os.path.isdir(place):
        raise AnnotationError(f"{place}: is named as a video, expected a list of videos or a folder")
    return reader_of(place).read(place, root)


def _records(
    rows: Sequence[Row],
    paths: Iterable[str | Refusal],
    to_labels: Callable[[Row], tuple[int, ...]],
    place: str,
    keep_refused: bool,
) -> tuple[VideoRecords, list[tuple[VideoRecord, str]]]:
    """Make records of rows; those that are refused come separately, with the reasons."""
    refused: list[tuple[VideoRecord, str]] = []

    def kept() -> Iterator[VideoRecord]:
        for row, path in zip(rows, paths, strict=True):
            labels = to_labels(row)
            record = VideoRecord(str(path), labels[0] if labels else NO_LABEL, row.number, labels[1:])
            if not isinstance(path, Refusal):
                yield record
            elif keep_refused:
                refused.append((record, path.reason))
            else:
                where = f"row {row.number}" if row.number else "a video"
                raise AnnotationError(f"{place}: {where} is '{path}', which {path.reason}")

    return VideoRecords.of(kept()), refused


def unlabelled_list(source: str, data: DataSettings, keep_missing: bool = False) -> VideoList:
    """All videos of a list of any format, or of a folder at any depth, without labels; checked as by `checked_list`."""
    frames, place = data.decoder == "frames", str(Path(data.root) / source)
    if os.path.isdir(place) and not frames:
        listing, written = _videos_of(place, data.root, data.follow_links), False
    else:
        read = _read_list(place, data.root)
        listing, written = resolve_paths(read, place, data.root, frames, data.follow_links), read.paths == "files"
    paths, note = checked_paths(listing.rows, data.root, place, data.follow_links, written=written)
    records, _ = _records(listing.rows, paths, lambda row: (), place, keep_refused=False)
    notes = (*listing.notes, *([note] if note else []), *note_duplicates(records, place))
    videos = VideoList(records, (), place, notes, named=False)
    return check_files_exist(videos, data.root, frames, data.allow_missing, keep_missing)


def _holds_only_videos(place: str) -> bool:
    """Whether this is a folder without class folders."""
    return os.path.isdir(place) and not any(
        is_folder and not is_hidden(name) for name, is_folder in list_folder(place).items()
    )


def _videos_of(folder: str, root: str, follow_links: bool) -> Listing:
    found = videos_of_folder(folder, inside=None if follow_links else root)
    note = found.note(folder)
    if not found.videos:
        raise AnnotationError(f"{note or folder}: contains no videos, expected files such as VIDEO.mp4, at any depth")
    inside = Path(os.path.relpath(folder, root)).as_posix()
    start = "" if inside == "." else f"{inside}/"
    return Listing([Row(0, f"{start}{video}", "") for video in found.videos], notes=(note,) if note else ())


def locate_list(annotations: str, root: str) -> str:
    """Locate a list given on the command line: relative to the root, as data.train is, or else to the current folder."""
    if annotations.startswith(("http://", "https://")) or (Path(root) / annotations).exists():
        return annotations
    split = Path(root) / annotations  # of HMDB51, which is not a file
    if HMDB_LIST.fullmatch(split.name) and split.parent.is_dir():
        return annotations
    return str(Path(annotations).resolve())


def annotated_list(annotations: str, root: str) -> tuple[VideoList, bool]:
    """Read the list of `--annotations` (see `locate_list`); also return whether all its videos are folders of images.

    Labels may be missing. Rows that may not be read go to `refused`.
    """
    place = locate_list(annotations, root)
    frames = _holds_frame_folders(str(Path(root) / place))
    return read_videos(place, root, frames=frames, need_labels=False, keep_refused=True), frames


def _holds_frame_folders(place: str) -> bool:
    """Whether class folders contain folders, and no video at any depth."""
    folders = [f"{place}/{name}" for name, is_folder in list_folder(place).items() if is_folder and not is_hidden(name)]
    if any(videos_of_folder(folder).videos for folder in folders):
        return False
    return any(videos_of_folder(folder, frames=True).videos for folder in folders)


def checked_list(source: str, data: DataSettings, classes: Sequence[str] | None, keep_missing: bool) -> VideoList:
    """Read a list for training or evaluation, and check that its files exist.

    Missing files are an error; with data.allow_missing they are noted and, unless `keep_missing`, dropped.
    """
    frames = data.decoder == "frames"
    if classes is not None:
        _check_class_order(source, data, classes)
    videos = read_videos(source, data.root, classes, frames, follow_links=data.follow_links)
    return check_files_exist(videos, data.root, frames, data.allow_missing, keep_missing)


def _check_class_order(source: str, data: DataSettings, classes: Sequence[str]) -> None:
    """Raise AnnotationError if the dataset's own class names differ from `classes`: its labels would mean other classes."""
    if data.classes:
        file = str(Path(data.root) / data.classes)
        own = read_classes(file)
    elif beside := classes_next_to(str(Path(data.root) / source), data.root, label_ids=False):
        own, file = beside
    else:
        return
    if tuple(own) != tuple(classes):
        label, theirs, ours = first_difference(own, classes)
        raise AnnotationError(
            f"{file}: class {label} is '{theirs}' there but '{ours}' in the checkpoint or the training list "
            f"({len(own)} and {len(classes)} classes): use lists with the same classes in the same order"
        )


def _class_names(
    listing: Listing, classes: Sequence[str] | None, place: str, root: str
) -> tuple[tuple[str, ...], list[str]]:
    """Class names to read labels by (empty if unknown), and notes about them for the user."""
    own = None if classes else classes_next_to(place, root, listing.label_ids)
    names = tuple(classes or (own[0] if own else listing.classes))
    notes = [listing.class_note] if listing.class_note and not classes and not own else []
    if listing.published and (other := difference_from_published(names, listing.published)):
        notes.append(f"{own[1] if own else place}: {other}")
    return names, notes


def _labeller(names: Sequence[str], by_name: bool, need_labels: bool, place: str) -> Callable[[Row], tuple[int, ...]]:
    """Return a function from a row to its labels; each text is looked up once."""
    lookup = class_lookup(names)
    if not by_name:
        _refuse_ambiguous_numbers(names, place)
    known: dict[str, tuple[int, ...]] = {} if need_labels else {"": ()}

    def labels(row: Row) -> tuple[int, ...]:
        if row.label not in known:
            whole = by_name or lookup(row.label) is not None  # a class name may hold a semicolon
            texts = [row.label] if whole else row.label.split(";")
            many = (_label(text.strip(), row, lookup, len(names), by_name, place) for text in texts)
            known[row.label] = tuple(dict.fromkeys(many))
        return known[row.label]

    return labels


NAMES_WANTED = "for labels that are class names, write these into classes.txt next to the list, one a line, or pass data.classes=FILE"


def _label(
    text: str, row: Row, lookup: Callable[[str], int | None], num_classes: int, by_name: bool, place: str
) -> int:
    where = f"{place}: row {row.number}" if row.number else f"{place}: the video '{row.path}'"
    if not text:
        raise AnnotationError(
            f"{place}: row {row.number} is '{row.path}', expected a path and a label: add it, or remove the row"
        )
    number = text.isascii() and text.isdigit() and not by_name
    label = int(text) if number and len(text) < 10 else None if number else lookup(text)
    if label is None and not number:
        known = f"one of the {num_classes} class names" if num_classes else ""
        wanted = " or ".join(filter(None, ["" if by_name else "a whole number from 0", known]))
        parts = [part.strip(" '[]()") for part in re.split(r"[,|/+&]", text)]
        several = len(parts) > 1 and all(lookup(part) is not None for part in parts)
        cure = "correct the row, or classes.txt" if num_classes else NAMES_WANTED
        cure = f"write several labels as {';'.join(parts)}" if several else cure
        raise AnnotationError(f"{where} has the label '{clipped(text)}', expected {wanted}: {cure}")
    if label is None or label >= (num_classes or MAX_CLASSES):
        known = f"there are {num_classes} classes, 0 to {num_classes - 1}"
        without = f"labels without class names go up to {MAX_CLASSES - 1}: put classes.txt next to the list"
        raise AnnotationError(f"{where} has the label {text}, but {known if num_classes else without}")
    return label


def _refuse_ambiguous_numbers(names: Sequence[str], place: str) -> None:
    """Refuse classes named '1', '2' ...: a label in a list could be either a name or a number."""
    wrong = next((name for label, name in enumerate(names) if name.isdigit() and name != str(label)), None)
    if wrong is not None:
        raise AnnotationError(
            f"{place}: the class '{wrong}' has the label {names.index(wrong)}, so numbers in the list are ambiguous: "
            "give the classes names that are not numbers"
        )


def _names_from_labels(records: VideoRecords, place: str) -> tuple[tuple[str, ...], list[str]]:
    """Name labels after their folders if these match one to one, else by number; a note if numbers have gaps."""
    used = set(np.unique(records.labels).tolist()) - {NO_LABEL}
    used |= {label for record in records.with_several_labels for label in record.labels}
    count = max(used, default=-1) + 1
    folders = _folders_of_labels(records)
    if len(used) == count == len(set(folders.values())):
        return tuple(folders[label] for label in range(count)), []
    unused = [label for label in range(count) if label not in used]
    gaps = (
        f"{place}: {len(unused)} of the labels 0 to {count - 1} have no video, the first is {min(unused, default='')}"
    )
    return tuple(str(label) for label in range(count)), [gaps] if unused else []


def _folders_of_labels(records: VideoRecords) -> dict[int, str]:
    """{label: folder name of all its videos}; empty if these cannot be names: see `_refuse_ambiguous_numbers`."""
    folders: dict[int, str] = {}
    for path, label in zip(records.paths(), records.labels.tolist(), strict=True):
        folder = path.rpartition("/")[0].rpartition("/")[2]
        if not folder or folders.setdefault(label, folder) != folder:
            return {}
    if records.with_several_labels:
        return {}
    return {} if any(name.isdigit() and name != str(label) for label, name in folders.items()) else folders
