"""`data.train=auto`: the lists or folders that lie under data.root, or its class folders split into two lists.

Which videos of a class are for validation follows from hashes of their paths, or of the groups that they belong to: it is
the same on every machine, and videos that are added to a class move none of another class, and few of its own.
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

NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
FORMS = (".csv", ".txt", "")  # a list wins over a folder, which may hold its videos


def found_lists(data: DataSettings) -> DataSettings:
    """The settings with data.train=auto replaced by what lies under data.root; what is set beside it stays.

    That is train, val and test, each a list (csv, txt) or a folder of class folders. Without a train the root itself
    holds class folders.
    """
    if data.train != AUTO:
        return data
    root = Path(data.root)
    if not root.is_dir():
        raise ConfigError(f"data.root = {data.root}: is no folder, which data.train=auto looks into for your videos")
    found = {split: _place(root, names) for split, names in NAMES.items()}
    if found["train"] is None:
        lone = found["val"] or found["test"]
        if lone is not None:
            raise ConfigError(
                f"{data.root}: has {lone} but nothing called train: add train.csv or train/, "
                "or keep class folders alone, which are split for you"
            )
        found["train"] = "."
    return data.model_copy(update={split: found[split] for split in found if getattr(data, split) in (None, AUTO)})


def _place(root: Path, names: Sequence[str]) -> str | None:
    """The first that is there of these lists, or folders that hold folders: one of videos alone is a class of this name."""
    for name in (name + form for name in names for form in FORMS):
        path = root / name
        if path.is_file() or (path.is_dir() and any(child.is_dir() for child in path.iterdir())):
            return name
    return None


def split_videos(videos: VideoList, data: DataSettings) -> tuple[VideoList, VideoList]:
    """The training and the validation part of a list, in which each class has data.val_share of its videos for validation.

    Within a class those with the lowest hashes are for validation, at least one of two and never all. Groups (see
    data.split_group) are never split, so that with them the shares are as near to it as whole groups allow.
    """
    _check_classes(videos)
    groups = _groups(videos, data.split_group)
    held_out = _held_out(Counter(zip(groups, (record.label for record in videos.records), strict=True)), data.val_share)
    parts: tuple[list[VideoRecord], list[VideoRecord]] = ([], [])
    for group, record in zip(groups, videos.records, strict=True):
        parts[group in held_out].append(record)
    if not parts[1]:
        raise AnnotationError(
            f"{videos.source}: none of its {len(videos)} videos can be held out for validation, since each class keeps one to "
            "learn from: add videos, or put them into train/ and val/ yourself"
        )
    notes = (*videos.notes, _in_words(videos, parts, len(set(groups)), data))
    train = replace(videos, records=VideoRecords.of(parts[0]), source=f"{videos.source} (training part)", notes=notes)
    return train, replace(
        train, records=VideoRecords.of(parts[1]), source=f"{videos.source} (validation part)", notes=()
    )


def _held_out(counts: Counter[tuple[str, int]], share: float) -> set[str]:
    """The groups for validation; `counts` are the videos of each (group, label).

    In the order of their hashes groups are taken as long as none of their classes gets more than its share; then, for a
    class that has none, the smallest one that its classes can spare.
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
    """From 0 to 1, evenly spread, and the same on every machine however it writes accents."""
    digest = hashlib.sha256(unicodedata.normalize("NFC", text).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def list_text(videos: VideoList) -> str:
    """A list file of these videos: a path, a tab and a label a row."""
    return "".join(f"{_quoted(record.path)}\t{record.label}\n" for record in videos.records)


def _quoted(path: str) -> str:
    return '"' + path.replace('"', '""') + '"' if '"' in path or "\t" in path else path


def _check_classes(videos: VideoList) -> None:
    labels = {record.label for record in videos.records}
    if len(labels) < 2:
        raise AnnotationError(
            f"{videos.source}: all of its {len(videos)} videos are of the class '{videos.classes[min(labels)]}', "
            "expected at least two classes to tell apart: one folder for each"
        )


def _groups(videos: VideoList, pattern: str | None) -> list[str]:
    """What each video is split by: its path, or what `pattern` finds in its file name (its first group, if it has one)."""
    paths = [record.path for record in videos.records]
    if pattern is None:
        return paths
    matches = [re.search(pattern, path.rpartition("/")[2]) for path in paths]
    missed = [path for path, match in zip(paths, matches, strict=True) if not match]
    if missed:
        raise ConfigError(
            f"data.split_group = {pattern} does not match the file name of {len(missed)} of {len(paths)} videos, "
            f"the first is '{missed[0]}': write one that matches them all, such as ^(.+)_[0-9]+ for film_12.mp4"
        )
    return [match[match.re.groups and 1] or "" for match in matches if match]


def _in_words(
    videos: VideoList, parts: tuple[list[VideoRecord], list[VideoRecord]], num_groups: int, data: DataSettings
) -> str:
    by = f"of {num_groups} groups by {data.split_group}" if data.split_group else "of their paths"
    text = (
        f"{videos.source}: each class split by a hash {by}, in all {len(parts[0])} videos for training and {len(parts[1])} for "
        "validation"
    )
    seen = {record.label for record in parts[1]}
    unseen = [videos.classes[label] for label in sorted({record.label for record in parts[0]} - seen)]
    count = f"{len(unseen)} class{'es' if len(unseen) > 1 else ''}"
    return f"{text}, which has no video of {count}, such as '{unseen[0]}'" if unseen else text
