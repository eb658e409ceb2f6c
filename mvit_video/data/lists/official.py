"""The official lists of Kinetics, Something-Something v2, UCF101 and HMDB51, as their owners publish them.

They name videos, not files; the files are searched for under the data root: in class folders or flat, with any video
suffix, or as frame folders.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mvit_video.data.lists.class_names import PUBLISHED, published_classes, without_brackets
from mvit_video.data.lists.formats import Listing, Row
from mvit_video.data.lists.text import delimiter_of, first_line, read_json, read_text, table_rows
from mvit_video.errors import AnnotationError, did_you_mean

UCF_LIST = re.compile(r"(train|test)list\d*\.txt")
HMDB_LIST = re.compile(r"(train|test)_split(\d)")


class Kinetics:
    """Kinetics-400, 600 or 700: columns label, youtube_id, time_start, time_end, split, and any others.

    A video is `<youtube_id>_<start>_<end>` with the seconds in six digits. A test list may have no labels.
    """

    def matches(self, path: str) -> bool:
        head = first_line(path)
        return "youtube_id" in _columns(head.split(delimiter_of(head)))

    def read(self, path: str, root: str) -> Listing:
        rows, split = _kinetics_rows(path)
        return replace(
            with_published_names(rows, path, "kinetics400"), paths="names", usual="{label}/{name}.mp4", split=split
        )


def _kinetics_rows(place: str) -> tuple[list[Row], str]:
    lines = table_rows(place)
    columns = _columns(next(lines)[1])
    lacking = [name for name in ("youtube_id", "time_start", "time_end") if name not in columns]
    if lacking:
        raise AnnotationError(
            f"{place}: has no column {lacking[0]}, expected label,youtube_id,time_start,time_end,split"
        )
    rows, split = [], ""
    for number, fields in lines:
        values = dict(zip(columns, fields, strict=True))
        rows.append(Row(number, _kinetics_name(values, f"{place}: row {number}"), values.get("label", "").strip()))
        split = values.get("split", split)
    if not rows:
        raise AnnotationError(f"{place}: contains no videos under its header")
    return rows, split


def _columns(names: Sequence[str]) -> list[str]:
    return [name.strip().lower() for name in names]


def _kinetics_name(values: dict[str, str], where: str) -> str:
    try:
        start, end = (round(float(values[name])) for name in ("time_start", "time_end"))
    except (ValueError, OverflowError):
        raise AnnotationError(
            f"{where} has the times '{values['time_start']}' and '{values['time_end']}', expected seconds"
        ) from None
    if not values["youtube_id"].strip():
        raise AnnotationError(f"{where} has no youtube_id")
    return f"{values['youtube_id'].strip()}_{start:06d}_{end:06d}"


def with_published_names(rows: list[Row], place: str, dataset: str) -> Listing:
    """Use the dataset's published class names if they include all labels, else the labels themselves, sorted."""
    labels, published = {row.label for row in rows if row.label}, published_classes(dataset)
    if not labels:
        return Listing(rows, by_name=True)
    if labels <= set(published):
        few = f"{place}: its {len(labels)} labels are among the {len(published)} class names of {PUBLISHED[dataset]}"
        note = f"{few}, which are used" if len(labels) < len(published) else ""
        return Listing(rows, published, note, True, dataset, dataset == "ssv2")
    note = f"{place}: the classes are its own {len(labels)} labels in alphabetical order"
    return Listing(rows, tuple(sorted(labels)), note, True, label_ids=dataset == "ssv2")


class Something:
    """Something-Something v2: a list of {id, template, ...}; a test list has no template. Videos are named by id."""

    def matches(self, path: str) -> bool:
        return Path(path).suffix.lower() == ".json"

    def read(self, path: str, root: str) -> Listing:
        return replace(with_published_names(_something_rows(path), path, "ssv2"), paths="names", usual="{name}.webm")


def _something_rows(place: str) -> list[Row]:
    items = read_json(place)
    if not isinstance(items, list) or not items:
        raise AnnotationError(f"{place}: expected a list of objects with id and template")
    rows = []
    for number, item in enumerate(items, 1):
        name = item.get("id", "") if isinstance(item, dict) else ""
        if name == "" or isinstance(name, bool) or not isinstance(name, str | int):
            raise AnnotationError(f"{place}: entry {number} has no id, expected objects with id and template")
        template = item.get("template", "")
        if not isinstance(template, str):
            raise AnnotationError(f"{place}: entry {number} (id {name}) has the template {template!r}, expected text")
        rows.append(Row(number, str(name), without_brackets(template)))
    return rows


class Ucf101:
    """UCF101's trainlist (`CLASS/VIDEO.avi 1`, labels from 1) or testlist (no labels: the folder is the class)."""

    def matches(self, path: str) -> bool:
        prepared = Path(path).with_name("classes.txt").is_file()  # a list of this name written by `prepare`
        return bool(UCF_LIST.fullmatch(Path(path).name)) and not prepared

    def read(self, path: str, root: str) -> Listing:
        index = Path(path).with_name("classInd.txt")
        if not index.is_file():
            raise AnnotationError(
                f"{path}: there is no classInd.txt next to it, which defines the labels: put it there"
            )
        names = _class_index(str(index))
        lines = enumerate(read_text(path).replace("\\", "/").split("\n"), 1)
        rows = [_ucf_row(line.strip(), number, names, path) for number, line in lines if line.strip()]
        if not rows:
            raise AnnotationError(f"{path}: contains no videos, expected rows of `CLASS/VIDEO.avi label`")
        return Listing(rows, tuple(names.values()), by_name=True, paths="names", usual="{label}/{name}.avi")


def _ucf_row(line: str, number: int, names: Mapping[str, str], place: str) -> Row:
    path, _, label = line.partition(" ")
    folder, _, file = path.rpartition("/")
    if folder not in names.values():
        raise AnnotationError(
            f"{place}: row {number} is '{line}', expected CLASS/VIDEO.avi with a class from classInd.txt"
            f"{did_you_mean(folder, names.values())}"
        )
    if label and names.get(label.strip()) != folder:
        raise AnnotationError(
            f"{place}: row {number} has the label '{label.strip()}', "
            f"which is {names.get(label.strip(), 'unknown')} in classInd.txt, but is in the folder '{folder}'"
        )
    return Row(number, file.rpartition(".")[0] or file, folder)


def _class_index(path: str) -> dict[str, str]:
    """Read {"1": name, ...} from rows `1 ApplyEyeMakeup`, which must count from 1."""
    names: dict[str, str] = {}
    for row, line in enumerate(read_text(path).split("\n"), 1):
        number, _, name = line.strip().partition(" ")
        if not line.strip():
            continue
        if number != str(len(names) + 1) or not name.strip() or name.strip() in names.values():
            raise AnnotationError(
                f"{path}: row {row} is '{line.strip()}', expected `{len(names) + 1} CLASS` with a different class in each row"
            )
        names[number] = name.strip()
    return names


class Hmdb51:
    """HMDB51: a file CLASS_test_split1.txt per class, rows `VIDEO.avi 1` (training), 2 (test) or 0 (neither)."""

    def matches(self, path: str) -> bool:
        return bool(HMDB_LIST.fullmatch(Path(path).name)) and not Path(path).exists()

    def read(self, path: str, root: str) -> Listing:
        folder, (part, _, number) = Path(path).parent, Path(path).name.partition("_split")
        ending = f"_test_split{number}.txt"
        files = sorted(folder.glob(f"*{ending}"))
        if not files:
            raise AnnotationError(
                f"{folder}: contains no CLASS{ending} for {part}_split{number}: name the folder of HMDB51's splits"
            )
        names = tuple(file.name.removesuffix(ending) for file in files)
        mark = {"train": "1", "test": "2"}[part]
        rows = [row for file, name in zip(files, names, strict=True) for row in _hmdb_rows(file, name, mark)]
        return Listing(rows, names, by_name=True, paths="names", usual="{label}/{name}.avi")


def _hmdb_rows(file: Path, name: str, mark: str) -> Iterator[Row]:
    for row, line in enumerate(read_text(str(file)).split("\n"), 1):
        video, _, use = line.strip().rpartition(" ")
        if line.strip() and (use not in ("0", "1", "2") or not video.strip()):
            raise AnnotationError(f"{file}: row {row} is '{line.strip()}', expected VIDEO.avi and 0, 1 or 2")
        if use == mark:
            yield Row(0, video.strip().rpartition(".")[0], name)
