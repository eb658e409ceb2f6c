"""`data.train=auto`: find lists or folders under data.root, or split its class folders into training and validation.

A hash of each video's path, or of its group, decides which videos of a class are held out: the split is the same on every
machine, and adding videos to a class moves none of another class and few of its own.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mvit_video.config.schema import AUTO, DataSettings
from mvit_video.data.lists.records import VideoList, VideoRecord, VideoRecords
from mvit_video.errors import AnnotationError, ConfigError

SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
LIST_SUFFIXES = (".csv", ".txt", "")  # a list takes precedence over a folder, which may contain its videos


def resolve_auto_lists(data: DataSettings) -> DataSettings:
    """Replace data.train=auto by what is found under data.root; lists that are set stay.

    These are train, val and test, each a list (csv, txt) or a folder of class folders. Without a train, the root itself is
    the folder of class folders.
    """
    if data.train != AUTO:
        return data
    root = Path(data.root)
    if not root.is_dir():
        raise ConfigError(f"data.root = {data.root}: no such folder, which data.train=auto searches for videos")
    found = {split: _place(root, names) for split, names in SPLIT_NAMES.items()}
    if found["train"] is None:
        lone = found["val"] or found["test"]
        if lone is not None:
            raise ConfigError(
                f"{data.root}: has {lone} but no train: add train.csv or train/, or keep only class folders, which are then "
                "split automatically"
            )
        found["train"] = "."
    return data.model_copy(update={split: found[split] for split in found if getattr(data, split) in (None, AUTO)})


def _place(root: Path, names: Sequence[str]) -> str | None:
    """First existing list of these names, or folder of folders: a folder of videos would be a class of that name."""
    for name in (name + form for name in names for form in LIST_SUFFIXES):
        path = root / name
        if path.is_file() or (path.is_dir() and any(child.is_dir() for child in path.iterdir())):
            return name
    return None


def split_videos(videos: VideoList, data: DataSettings) -> tuple[VideoList, VideoList]:
    """Split a list into training and validation parts, the latter with data.val_share of each class's videos.

    Within a class the videos with the lowest hashes are held out, at least one of two and never all. Groups (see
    data.split_group) are never split, so with them the share is approximate.
    """
    _check_classes(videos)
    groups = groups_of(list(videos.records.paths()), data.split_group)
    held_out = _held_out(Counter(zip(groups, (record.label for record in videos.records), strict=True)), data.val_share)
    parts: tuple[list[VideoRecord], list[VideoRecord]] = ([], [])
    for group, record in zip(groups, videos.records, strict=True):
        parts[group in held_out].append(record)
    if not parts[1]:
        raise AnnotationError(
            f"{videos.source}: none of its {len(videos)} videos can be held out for validation, since each class keeps one for "
            "training: add videos, or sort them into train/ and val/ yourself"
        )
    notes = (*videos.notes, _split_note(videos, parts, len(set(groups)), data))
    train = replace(videos, records=VideoRecords.of(parts[0]), source=f"{videos.source} (training part)", notes=notes)
    return train, replace(
        train, records=VideoRecords.of(parts[1]), source=f"{videos.source} (validation part)", notes=()
    )


def _held_out(counts: Counter[tuple[str, int]], share: float) -> set[str]:
    """Choose the groups for validation; `counts` are the videos of each (group, label).

    Groups are taken in hash order unless one of their classes would get more than its share; then each class without any
    takes the smallest group that its classes can spare.
    """
    members: dict[str, Counter[int]] = {}
    for (group, label), count in counts.items():
        members.setdefault(group, Counter())[label] += count
    totals = sum(members.values(), Counter())
    order = sorted(members, key=lambda group: (stable_hash(group), group))
    held_out: set[str] = set()
    taken: Counter[int] = Counter()

    def fits(group: str, most: dict[int, float]) -> bool:
        return all(taken[label] + count <= most[label] for label, count in members[group].items())

    def take(group: str) -> None:
        held_out.add(group)
        taken.update(members[group])

    all_but_one = {label: float(total - 1) for label, total in totals.items()}
    shares = {label: min(share * total + 0.5, all_but_one[label]) for label, total in totals.items()}
    for group in order:
        if fits(group, shares):
            take(group)
    for label in sorted(totals):
        own = [group for group in order if members[group][label] and fits(group, all_but_one)]
        if own and not taken[label]:
            take(min(own, key=lambda group: members[group].total()))
    return held_out


def stable_hash(text: str) -> float:
    """Hash a text to a uniform number from 0 to 1; Unicode-normalised, so the same on every machine."""
    digest = hashlib.sha256(unicodedata.normalize("NFC", text).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def list_text(videos: VideoList) -> str:
    """Write a list file: one row per video, path and labels separated by a tab."""
    return "".join(f"{_quoted(record.path)}\t{';'.join(map(str, record.labels))}\n" for record in videos.records)


def _quoted(path: str) -> str:
    return '"' + path.replace('"', '""') + '"' if '"' in path or "\t" in path else path


def _check_classes(videos: VideoList) -> None:
    labels = {record.label for record in videos.records}
    if len(labels) < 2:
        raise AnnotationError(
            f"{videos.source}: all of its {len(videos)} videos are of the class '{videos.classes[min(labels)]}', "
            "expected at least two classes: one folder for each"
        )


def groups_of(paths: Sequence[str], pattern: str | None) -> list[str]:
    """Group of each video, which no split separates (data.split_group): its path, or what `pattern` (or its first group) matches
    in its file name.

    ConfigError where it does not match all of them.
    """
    if pattern is None:
        return list(paths)
    matches = [re.search(pattern, path.rpartition("/")[2]) for path in paths]
    missed = [path for path, match in zip(paths, matches, strict=True) if not match]
    if missed:
        raise ConfigError(
            f"data.split_group = {pattern} does not match the file name of {len(missed)} of {len(paths)} videos, "
            f"the first is '{missed[0]}': write one that matches all of them, such as ^(.+)_[0-9]+ for movie_12.mp4"
        )
    return [match[match.re.groups and 1] or "" for match in matches if match]


def _split_note(
    videos: VideoList, parts: tuple[list[VideoRecord], list[VideoRecord]], num_groups: int, data: DataSettings
) -> str:
    by = f"{num_groups} groups of {data.split_group}" if data.split_group else "path"
    text = (
        f"{videos.source}: each class was split by a hash of {by}: {len(parts[0])} videos for training, {len(parts[1])} for "
        "validation"
    )
    seen = {record.label for record in parts[1]}
    unseen = [videos.classes[label] for label in sorted({record.label for record in parts[0]} - seen)]
    if not unseen:
        return text
    named = (
        [f"'{name}'" for name in unseen] if len(unseen) < 3 else [f"'{unseen[0]}'", f"{len(unseen) - 1} more classes"]
    )
    return f"{text}; the validation part has no video of {' and '.join(named)}"
