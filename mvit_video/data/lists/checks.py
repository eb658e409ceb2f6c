"""Checks of whole lists: duplicate videos, videos in two splits, and missing files."""

import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from itertools import compress
from pathlib import Path

from mvit_video.data.lists.files import are_missing
from mvit_video.data.lists.records import VideoList, VideoRecord, VideoRecords
from mvit_video.errors import AnnotationError

MISSING = "missing.txt"  # in an output folder: the missing videos
_KINETICS_NAME = re.compile(r"[\w-]{11}_\d{6}_\d{6}")


def note_duplicates(records: VideoRecords, source: str) -> list[str]:
    """Note how many rows repeat a video of the same list."""
    if len(set(records.paths())) == len(records):
        return []
    first: dict[str, VideoRecord] = {}
    again = [record for record in records if first.setdefault(record.path, record) is not record]
    unlike = sum(set(record.labels) != set(first[record.path].labels) for record in again)
    rows = f"rows {first[again[0].path].row} and {again[0].row}" if again[0].row else "with two labels"
    return [
        f"{source}: {len(again)} rows repeat a video, {unlike} of them with another label; "
        f"the first is '{again[0].path}' ({rows})"
    ]


def note_overlap(first: VideoList, second: VideoList) -> str:
    """Note how many videos are in both lists; an empty string if none is."""
    names = set(map(_identity, first.records.paths()))
    both = [record for record in second.records if _identity(record.path) in names]
    if not both:
        return ""
    there = next(record for record in first.records if _identity(record.path) == _identity(both[0].path))
    return (
        f"{len(both)} of the {len(second)} videos of {second.source} are also in {first.source}, the first is "
        f"'{both[0].path}' ({second.where(both[0])}, {first.where(there)}): results on them prove little"
    )


def _identity(path: str) -> str:
    """The path, or for a Kinetics video its file name, whose id and times identify it in any folder."""
    name = os.path.splitext(path.rpartition("/")[2])[0]
    return name if _KINETICS_NAME.fullmatch(name) else path


def check_files_exist(
    videos: VideoList, root: str, frames: bool = False, allow_missing: bool = False, keep: bool = False
) -> VideoList:
    """Check that all videos (with `frames`: frame folders) of a list exist; AnnotationError with count and first row if not.

    With `allow_missing` a note counts them instead; they go to `missing`, and leave the records unless `keep`: evaluation
    keeps them and counts them as wrong.
    """
    gone = are_missing(videos.records.paths(), root, frames)
    missing = tuple(compress(videos.records, gone))
    if not missing:
        return videos
    text = (
        f"{videos.source}: {len(missing)} of {len(videos)} videos are missing, the first is '{missing[0].path}' "
        f"({videos.where(missing[0])})"
    )
    if not allow_missing or len(missing) == len(videos):
        raise AnnotationError(f"{text}: {_advice(missing[0], root, frames, len(missing) == len(videos))}")
    there = videos.records if keep else VideoRecords.of(compress(videos.records, (not one for one in gone)))
    note = f"{text}: {'they count as wrong' if keep else 'they are left out'}, see {MISSING}"
    return replace(videos, records=there, notes=(*videos.notes, note), missing=missing)


def _advice(record: VideoRecord, root: str, frames: bool, all_missing: bool) -> str:
    place = Path(root) / record.path
    if place.is_file() and frames:
        return "it is a file, but data.decoder=frames reads folders"
    if alike := _look_alike(place):
        return f"its folder contains '{alike}', which differs in case or in how its accents are encoded: rename one of them"
    return f"check data.root = {root}" + ("" if all_missing else ", or pass --allow-missing to continue without them")


def missing_text(lists: Iterable[VideoList]) -> str:
    """Content of missing.txt: a line with path and row for each missing video."""
    return "".join(f"{record.path}\t{videos.where(record)}\n" for videos in lists for record in videos.missing)


def refuse_several_labels(videos: VideoList, cure: str = "leave one in each row") -> None:
    """Raise AnnotationError for videos with several labels."""
    several = videos.with_several_labels
    if several:
        raise AnnotationError(
            f"{videos.source}: {len(several)} of {len(videos)} videos have several labels, the first is '{several[0].path}' "
            f"({videos.where(several[0])}): one label per video is needed: {cure}"
        )


def _look_alike(place: Path) -> str:
    """A name in the same folder that reads the same: in other case, or decomposed, as macOS writes accents."""
    names = os.listdir(place.parent) if place.parent.is_dir() else []
    return next((name for name in names if _as_read(name) == _as_read(place.name)), "")


def _as_read(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
