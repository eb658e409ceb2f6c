"""Look through a dataset before training on it: what is found about its videos, and the files about it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mvit_video.config.schema import AUTO, DataSettings
from mvit_video.data.draws import generator
from mvit_video.data.lists.records import VideoList, VideoRecord, VideoRecords
from mvit_video.data.lists.split import groups_of, list_text, resolve_auto_lists, split_videos
from mvit_video.data.prepare.look import Look, look_at_videos
from mvit_video.data.prepare.near_duplicates import near_duplicates, numbers_of_groups
from mvit_video.data.prepare.verify import Decoding, lists_by_split
from mvit_video.evaluation.label_doubt import FOLDS, Doubt, judged, label_doubts
from mvit_video.paths import write_whole
from mvit_video.printable import csv_text

PAGE, UNREADABLE, DUPLICATES = "browse.html", "unreadable.csv", "duplicates.csv"
DOUBTS, DOUBTED, TRUSTED, CLASSES = "doubts.csv", "doubted.csv", "train_trusted.csv", "classes.txt"
FEATURES = "features"
FILES = (PAGE, UNREADABLE, DUPLICATES, DOUBTS, DOUBTED, TRUSTED, CLASSES)


@dataclass(frozen=True)
class Entry:
    """A video of a list; one that is in several lists has an entry for each."""

    split: str
    record: VideoRecord


@dataclass(frozen=True)
class Survey:
    """What is known of a dataset. Places of groups, distances and doubts are those of `entries`, the readable videos that were
    looked at; `unreadable` are (split, record, reason).

    `not_judged` says why some labels have not been looked at; it is empty if there are no features.
    """

    lists: dict[str, VideoList]
    entries: Sequence[Entry]
    looks: dict[str, Look]
    unreadable: Sequence[tuple[str, VideoRecord, str]]
    groups: Sequence[Sequence[int]]
    nearest: np.ndarray
    sampled: bool
    doubts: Sequence[Doubt] | None = None
    not_judged: Sequence[str] = field(default=())

    @property
    def classes(self) -> tuple[str, ...]:
        return next(iter(self.lists.values())).classes

    def label_names(self, entry: Entry) -> str:
        return ", ".join(self.classes[label] for label in entry.record.labels) or "–"

    def splits_of(self, group: Sequence[int]) -> list[str]:
        """The lists that a group is in, in their order."""
        present = {self.entries[place].split for place in group}
        return [split for split in self.lists if split in present]

    @property
    def leaks(self) -> list[Sequence[int]]:
        """The groups that are in several lists."""
        return [group for group in self.groups if len(self.splits_of(group)) > 1]


def dataset_lists(data: DataSettings) -> dict[str, VideoList]:
    """The lists of the settings by split; class folders without a validation list are split as for training."""
    found = resolve_auto_lists(data)
    lists = lists_by_split(found)
    if data.train == AUTO and found.val is None:
        train, val = split_videos(lists["train"], found)
        lists = {"train": train, "val": replace(val, refused=()), **{k: v for k, v in lists.items() if k == "test"}}
    return lists


def look_through(
    lists: dict[str, VideoList],
    decoding: Decoding,
    most: int | None,
    seed: int,
    advance: Callable[[int, str], None],
) -> Survey:
    """Look at the videos of all lists, at most `most` of each, drawn at random."""
    chosen = chosen_entries(lists, most, seed)
    looks, bad = look_at_videos(list(dict.fromkeys(entry.record.path for entry in chosen)), decoding, advance)
    entries = [entry for entry in chosen if entry.record.path in looks]
    refused = [(split, record, reason) for split, videos in lists.items() for record, reason in videos.refused]
    lost = [(entry.split, entry.record, bad[entry.record.path]) for entry in chosen if entry.record.path in bad]
    groups, nearest = same_videos([looks[entry.record.path] for entry in entries])
    sampled = len(chosen) < len(chosen_entries(lists, None, seed))
    return Survey(lists, entries, looks, [*refused, *lost], groups, nearest, sampled)


def same_videos(looks: Sequence[Look]) -> tuple[list[list[int]], np.ndarray]:
    """Groups of near-duplicates by their places, and the distance of each video to the nearest other one."""
    if not looks:
        return [], np.zeros(0, np.float32)
    seconds, fps = np.array([look.seconds for look in looks]), np.array([look.fps for look in looks])
    return near_duplicates(np.stack([look.fingerprint for look in looks]), seconds, fps)


def chosen_entries(lists: dict[str, VideoList], most: int | None, seed: int) -> list[Entry]:
    """Each video of a list once, in its order; of longer lists `most` at random."""
    entries = []
    for split, videos in lists.items():
        first = {record.path: place for place, record in reversed(list(enumerate(videos.records)))}
        places = np.sort(list(first.values()))
        if most is not None and len(places) > most:
            places = np.sort(generator("browse", seed, split).choice(places, most, replace=False))
        entries += [Entry(split, record) for record in videos.records.take(places.tolist())]
    return entries


def readable_videos(survey: Survey) -> VideoList:
    """The videos that were looked at as one list, each once."""
    videos = next(iter(survey.lists.values()))
    records = {entry.record.path: entry.record for entry in survey.entries}
    return replace(videos, records=VideoRecords.of(records.values()), refused=())


def with_doubts(survey: Survey, features: dict[str, np.ndarray], seed: int, split_group: str | None = None) -> Survey:
    """The survey with the labels that features by path cast doubt on; near-duplicates are held out together, and videos of
    one group of data.split_group.

    Left out, and told: videos of several labels, which are right or wrong one by one; those without a label or features; and
    those of classes that are too small.
    """
    single = [len(entry.record.labels) == 1 for entry in survey.entries]
    known = [entry.record.path in features for entry in survey.entries]
    numbers = numbers_of_groups([*survey.groups, *_named_groups(survey, split_group)], len(survey.entries))
    places = np.flatnonzero(np.array(single, bool) & np.array(known, bool)).tolist()
    labels = np.array([survey.entries[place].record.label for place in places], np.int64)
    counts = {
        "without exactly one label": single.count(False),
        "without features": sum(one and not has for one, has in zip(single, known, strict=True)),
        f"of classes with fewer than {FOLDS} different videos": int((~judged(labels, numbers[places])).sum()),
    }
    doubts = list[Doubt]()
    if len(places):
        table = np.stack([features[survey.entries[place].record.path] for place in places])
        found = label_doubts(table, labels, numbers[places], seed)
        doubts = [replace(doubt, place=places[doubt.place]) for doubt in found]
    return replace(survey, doubts=doubts, not_judged=[f"{count} {why}" for why, count in counts.items() if count])


def _named_groups(survey: Survey, split_group: str | None) -> list[list[int]]:
    """Places of the entries of each group of data.split_group; of one path, if that is not set."""
    members: dict[str, list[int]] = {}
    for place, name in enumerate(groups_of([entry.record.path for entry in survey.entries], split_group)):
        members.setdefault(name, []).append(place)
    return list(members.values())


def write_tables(survey: Survey, folder: Path) -> None:
    """The csv files about unreadable videos, near-duplicates and doubtful labels."""
    rows = [(split, record.row or "", record.path, reason) for split, record, reason in survey.unreadable]
    write_whole(folder / UNREADABLE, csv_text([("list", "row", "video", "reason"), *rows]))
    write_whole(
        folder / DUPLICATES, csv_text([("group", "list", "row", "video", "class", "distance"), *_copies(survey)])
    )
    if survey.doubts is not None:
        columns = ("list", "row", "video", "class", "likely", "class_probability", "likely_probability")
        write_whole(folder / DOUBTS, csv_text([columns, *_doubts(survey, survey.doubts)]))
        _write_lists(survey, survey.doubts, folder)


def _copies(survey: Survey) -> list[tuple]:
    return [
        (
            number,
            *_where(survey.entries[place]),
            survey.label_names(survey.entries[place]),
            f"{survey.nearest[place]:.3f}",
        )
        for number, group in enumerate(closest_first(survey), 1)
        for place in group
    ]


def closest_first(survey: Survey) -> list[Sequence[int]]:
    """The groups, leaks first, then by the distance of their nearest two."""
    leaks = {id(group) for group in survey.leaks}
    return sorted(survey.groups, key=lambda group: (id(group) not in leaks, survey.nearest[list(group)].min()))


def _doubts(survey: Survey, doubts: Sequence[Doubt]) -> list[tuple]:
    return [
        (
            *_where(survey.entries[doubt.place]),
            survey.classes[doubt.label],
            survey.classes[doubt.likely],
            f"{doubt.label_probability:.4f}",
            f"{doubt.likely_probability:.4f}",
        )
        for doubt in doubts
    ]


def _where(entry: Entry) -> tuple[str, int | str, str]:
    return entry.split, entry.record.row or "", entry.record.path


def _write_lists(survey: Survey, doubts: Sequence[Doubt], folder: Path) -> None:
    """Lists as training reads them: the doubted videos, and data.train without its own of these."""
    doubted = [survey.entries[doubt.place] for doubt in doubts]
    videos = next(iter(survey.lists.values()))
    records = VideoRecords.of(dict.fromkeys(entry.record for entry in doubted))
    write_whole(folder / CLASSES, "".join(f"{name}\n" for name in survey.classes))
    write_whole(folder / DOUBTED, list_text(replace(videos, records=records)))
    if "train" in survey.lists and all(len(record.labels) == 1 for record in survey.lists["train"].records):
        left_out = {entry.record.path for entry in doubted if entry.split == "train"}
        left_out |= {record.path for split, record, _ in survey.unreadable if split == "train"}
        train = survey.lists["train"]
        kept = VideoRecords.of(record for record in train.records if record.path not in left_out)
        write_whole(folder / TRUSTED, list_text(replace(train, records=kept)))
