"""What can be wrong with lists as a whole: videos that stand twice or in two splits, and files that are not there."""

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import compress
from pathlib import Path

from mvit_video.data.lists.files import absent
from mvit_video.data.lists.records import VideoList, VideoRecord, VideoRecords
from mvit_video.errors import AnnotationError

MISSING = "missing.txt"  # in an output folder: the videos that were not there
_KINETICS_NAME = re.compile(r"[\w-]{11}_\d{6}_\d{6}")


def repeats(records: VideoRecords, source: str) -> list[str]:
    """A note with the count where videos stand more than once in one list."""
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


def shared_videos(first: VideoList, second: VideoList) -> str:
    """A note with the count of videos that stand in both lists; empty where there are none."""
    names = set(map(_identity, first.records.paths()))
    both = [record for record in second.records if _identity(record.path) in names]
    if not both:
        return ""
    there = next(record for record in first.records if _identity(record.path) == _identity(both[0].path))
    return (
        f"{len(both)} of the {len(second)} videos of {second.source} stand in {first.source} too, the first is "
        f"'{both[0].path}' ({second.where(both[0])}, {first.where(there)}): results on them say little"
    )


def _identity(path: str) -> str:
    """The path, or for a Kinetics video its name: id and times make it the same in any folder."""
    name = os.path.splitext(path.rpartition("/")[2])[0]
    return name if _KINETICS_NAME.fullmatch(name) else path


def check_files_exist(
    videos: VideoList, root: str, frames: bool = False, allow_missing: bool = False, keep: bool = False
) -> VideoList:
    """The list, all of whose videos (with `frames`: folders) are there; AnnotationError with count and first row if not.

    With `allow_missing` they are counted in a note and listed as `missing` instead, and leave the records unless `keep`:
    a video that is evaluated stays, and counts as wrong.
    """
    gone = absent(videos.records.paths(), root, frames)
    missing = tuple(compress(videos.records, gone))
    if not missing:
        return videos
    text = (
        f"{videos.source}: {len(missing)} of {len(videos)} videos are missing, the first is '{missing[0].path}' "
        f"({videos.where(missing[0])})"
    )
    if not allow_missing or len(missing) == len(videos):
        raise AnnotationError(f"{text}: {_cure(missing[0], root, frames, len(missing) == len(videos))}")
    there = videos.records if keep else VideoRecords.of(compress(videos.records, (not one for one in gone)))
    note = f"{text}: {'they count as wrong' if keep else 'they are left out'}, see {MISSING}"
    return replace(videos, records=there, notes=(*videos.notes, note), missing=missing)


def _cure(record: VideoRecord, root: str, frames: bool, all_missing: bool) -> str:
    place = Path(root) / record.path
    if place.is_file() and frames:
        return "that is a file, but data.decoder=frames reads folders"
    return f"check data.root, which is '{root}'" + ("" if all_missing else ", or go on without them by --allow-missing")


def missing_text(lists: Iterable[VideoList]) -> str:
    """What missing.txt holds: a line for each missing video, its path and where it is listed; empty without any."""
    return "".join(f"{record.path}\t{videos.where(record)}\n" for videos in lists for record in videos.missing)


def refuse_several_labels(videos: VideoList) -> None:
    """AnnotationError where videos have several labels, which training does not take: none is lost in silence."""
    several = videos.with_several_labels
    if several:
        raise AnnotationError(
            f"{videos.source}: {len(several)} of {len(videos)} videos have several labels, the first is '{several[0].path}' "
            f"({videos.where(several[0])}): training takes one label a video, so leave one in each row"
        )
