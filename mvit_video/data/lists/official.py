"""The official lists of Kinetics, Something-Something v2, UCF101 and HMDB51, as their owners publish them.

They name videos, not files, so the tree under the data root is searched for them (`find_videos`): in class folders or
flat, with any video suffix, or as frame folders.
"""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mvit_video.data.lists.class_names import PUBLISHED, published_classes, read_json, read_text, without_brackets
from mvit_video.data.lists.files import best_place, find_videos, in_class
from mvit_video.data.lists.rows import Listing, Row
from mvit_video.errors import AnnotationError, did_you_mean

UCF_LIST = re.compile(r"(train|test)list\d*\.txt")
HMDB_LIST = re.compile(r"(train|test)_split(\d)")


def read_kinetics(text: str, place: str, root: str, frames: bool) -> Listing:
    """Kinetics-400, 600 or 700: rows of label, youtube_id, time_start, time_end, split, whatever other columns there are.

    A video is `<youtube_id>_<start>_<end>` with the seconds in six digits. A test list may have no labels.
    """
    lines = csv.reader(io.StringIO(text))
    columns = [name.strip().lower() for name in next(lines)]
    lacking = [name for name in ("youtube_id", "time_start", "time_end") if name not in columns]
    if lacking:
        raise AnnotationError(f"{place}: has no column {lacking[0]}, wanted label,youtube_id,time_start,time_end,split")
    rows, split = [], ""
    try:
        for fields in lines:
            if fields:
                values = _named(fields, columns, f"{place}: row {lines.line_num}")
                name = _kinetics_name(values, f"{place}: row {lines.line_num}")
                rows.append(Row(lines.line_num, name, values.get("label", "").strip()))
                split = values.get("split", split)
    except csv.Error as reason:
        raise AnnotationError(f"{place}: row {lines.line_num} is not csv ({reason})") from None
    if not rows:
        raise AnnotationError(f"{place}: holds no videos under its header")
    return _official(_found(rows, root, frames, "{label}/{name}.mp4", split), place, "kinetics400")


def _named(fields: Sequence[str], columns: Sequence[str], where: str) -> dict[str, str]:
    if len(fields) != len(columns):
        raise AnnotationError(f"{where} has {len(fields)} fields, the header has {len(columns)}: {','.join(columns)}")
    return dict(zip(columns, fields, strict=True))


def _kinetics_name(values: dict[str, str], where: str) -> str:
    try:
        start, end = (round(float(values[name])) for name in ("time_start", "time_end"))
    except (ValueError, OverflowError):
        raise AnnotationError(
            f"{where} has the times '{values['time_start']}' and '{values['time_end']}', wanted seconds"
        ) from None
    if not values["youtube_id"].strip():
        raise AnnotationError(f"{where} has no youtube_id")
    return f"{values['youtube_id'].strip()}_{start:06d}_{end:06d}"


def _official(rows: list[Row], place: str, dataset: str) -> Listing:
    """Rows with the published names of the dataset where all labels are among them, else with their own, sorted."""
    labels, published = {row.label for row in rows if row.label}, published_classes(dataset)
    if not labels:
        return Listing(rows, by_name=True)
    if labels <= set(published):
        few = f"{place}: its {len(labels)} labels are among the {len(published)} class names of {PUBLISHED[dataset]}"
        note = f"{few}, which are used" if len(labels) < len(published) else ""
        return Listing(rows, published, note, True, dataset, dataset == "ssv2")
    note = f"{place}: the classes are its own {len(labels)} labels in alphabetical order"
    return Listing(rows, tuple(sorted(labels)), note, True, label_ids=dataset == "ssv2")


def read_something(place: str, root: str, frames: bool) -> Listing:
    """Something-Something v2: a list of {id, template, ...}; a test list has no template. Videos are named by id."""
    items = read_json(place)
    if not isinstance(items, list) or not items:
        raise AnnotationError(f"{place}: wanted a list of objects with id and template")
    rows = []
    for number, item in enumerate(items, 1):
        name = item.get("id", "") if isinstance(item, dict) else ""
        if name == "" or isinstance(name, bool) or not isinstance(name, str | int):
            raise AnnotationError(f"{place}: entry {number} has no id, wanted objects with id and template")
        template = item.get("template", "")
        if not isinstance(template, str):
            raise AnnotationError(f"{place}: entry {number} (id {name}) has a template that is no text: {template!r}")
        rows.append(Row(number, str(name), without_brackets(template)))
    return _official(_found(rows, root, frames, "{name}.webm"), place, "ssv2")


def label_frame_list(listing: Listing, place: str) -> Listing:
    """A frame list without labels, as made for Something-Something v2, with those of the json lists beside it."""
    templates: dict[str, str] = {}
    files = [file for file in sorted(Path(place).parent.glob("*.json")) if not file.stem.endswith("labels")]
    for file in files:
        items = read_json(str(file))
        for item in items if isinstance(items, list) else ():
            if isinstance(item, dict) and isinstance(item.get("template"), str):
                templates[str(item.get("id"))] = without_brackets(item["template"])
    rows = [Row(row.number, row.path, templates.get(row.path.rpartition("/")[2], "")) for row in listing.rows]
    if not any(row.label for row in rows):
        return listing
    note = f"{place}: its labels are those of {', '.join(file.name for file in files)} beside it"
    return replace(_official(rows, place, "ssv2"), notes=(note,))


def read_ucf101(text: str, place: str, root: str, frames: bool) -> Listing:
    """UCF101's trainlist (`CLASS/VIDEO.avi 1`, labels from 1) or testlist (no labels: the folder is the class)."""
    index = Path(place).with_name("classInd.txt")
    if not index.is_file():
        raise AnnotationError(f"{place}: has no classInd.txt beside it, which says what its labels mean: put it there")
    names = _class_index(str(index))
    classes = set(names.values())
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        path, _, label = line.strip().partition(" ")
        folder, _, file = path.rpartition("/")
        if folder not in classes:
            raise AnnotationError(
                f"{place}: row {number} is '{line.strip()}', wanted CLASS/VIDEO.avi with a class of classInd.txt"
                f"{did_you_mean(folder, classes)}"
            )
        if label and names.get(label.strip()) != folder:
            raise AnnotationError(
                f"{place}: row {number} has the label '{label.strip()}', "
                f"which is {names.get(label.strip(), 'none')} in classInd.txt, but the folder '{folder}'"
            )
        rows.append(Row(number, file.rpartition(".")[0] or file, folder))
    if not rows:
        raise AnnotationError(f"{place}: holds no videos, wanted rows of `CLASS/VIDEO.avi label`")
    return Listing(_found(rows, root, frames, "{label}/{name}.avi"), tuple(names.values()), by_name=True)


def _class_index(path: str) -> dict[str, str]:
    """{"1": name, ...} of rows `1 ApplyEyeMakeup`, which must count from 1."""
    names: dict[str, str] = {}
    for row, line in enumerate(read_text(path).split("\n"), 1):
        number, _, name = line.strip().partition(" ")
        if not line.strip():
            continue
        if number != str(len(names) + 1) or not name.strip() or name.strip() in names.values():
            raise AnnotationError(
                f"{path}: row {row} is '{line.strip()}', wanted `{len(names) + 1} CLASS` with another class in each row"
            )
        names[number] = name.strip()
    return names


def read_hmdb51(folder: Path, part: str, number: str, root: str, frames: bool) -> Listing:
    """HMDB51: a file CLASS_test_split1.txt per class, rows `VIDEO.avi 1` (training), 2 (test) or 0 (neither)."""
    mark, ending = {"train": "1", "test": "2"}[part], f"_test_split{number}.txt"
    files = sorted(folder.glob(f"*{ending}"))
    if not files:
        raise AnnotationError(
            f"{folder}: holds no CLASS{ending}, which {part}_split{number} is read from: name the folder of HMDB51's splits"
        )
    rows = []
    for file in files:
        for row, line in enumerate(read_text(str(file)).split("\n"), 1):
            video, _, use = line.strip().rpartition(" ")
            if line.strip() and (use not in ("0", "1", "2") or not video.strip()):
                raise AnnotationError(f"{file}: row {row} is '{line.strip()}', wanted VIDEO.avi and 0, 1 or 2")
            if use == mark:
                rows.append(Row(0, video.strip().rpartition(".")[0], file.name.removesuffix(ending)))
    names = tuple(file.name.removesuffix(ending) for file in files)
    return Listing(_found(rows, root, frames, "{label}/{name}.avi"), names, by_name=True)


def _found(rows: Sequence[Row], root: str, frames: bool, usual: str, split: str = "") -> list[Row]:
    """Rows whose path is a video's name, with the path where it lies under `root`, or the usual one where it does not.

    Where videos of several classes have one name, none of them is taken from another one's class folder.
    """
    usual = usual.rpartition(".")[0] if frames else usual
    classes: dict[str, set[str]] = {}
    for row in rows:
        classes.setdefault(row.path, set()).add(row.label)
    places = find_videos(root, classes, frames)

    def path(row: Row) -> str:
        found, others = places.get(row.path, []), classes[row.path] - {row.label}
        own = [place for place in found if not any(in_class(place, other) for other in others)] if others else found
        return best_place(own, row.label, split) or usual.format(label=row.label, name=row.path).lstrip("/")

    return [row._replace(path=path(row)) for row in rows]
