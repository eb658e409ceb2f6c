"""Charades' official lists, whose videos have several labels each."""

import re
from collections.abc import Mapping
from pathlib import Path

from mvit_video.data.lists.formats import Listing, Row
from mvit_video.data.lists.text import delimiter_of, first_line, read_text, table_rows
from mvit_video.errors import AnnotationError, clipped

CLASSES = "Charades_v1_classes.txt"
ACTION = re.compile(r"(c\d{3}) \d+(\.\d+)? \d+(\.\d+)?")


class Charades:
    """Charades_v1_train.csv, Charades_v1_test.csv and those of Charades-Ego: columns id, actions and many others.

    The actions of a video are `c092 11.90 21.20;c147 0.00 12.60`, a class and its seconds each. The video has each of these
    classes once, whenever it happens. Names of the classes are in Charades_v1_classes.txt beside the list, rows `c092 NAME`.
    """

    def matches(self, path: str) -> bool:
        head = first_line(path)
        return {"id", "actions"} <= {name.strip() for name in head.split(delimiter_of(head))}

    def read(self, path: str, root: str) -> Listing:
        names = _classes(path)
        numbers = {key: str(label) for label, key in enumerate(names)}
        lines, rows, without = table_rows(path), list[Row](), 0
        columns = [name.strip() for name in next(lines)[1]]
        for number, fields in lines:
            values = dict(zip(columns, fields, strict=True))
            if not values["id"].strip():
                raise AnnotationError(f"{path}: row {number} has no id, expected the name of a video")
            labels = _labels(values["actions"], numbers, f"{path}: row {number}")
            without += not labels
            rows += [Row(number, values["id"].strip(), labels)] if labels else []
        if not rows:
            raise AnnotationError(f"{path}: contains no videos with actions under its header")
        notes = (f"{path}: the times of actions are not read: a video has the labels of all of its actions",)
        return Listing(
            rows, tuple(names.values()), notes=(*notes, *left_out(without, path)), paths="names", usual="{name}.mp4"
        )


def left_out(count: int, place: str) -> tuple[str, ...]:
    """A note on the videos without a label of a list whose videos have several."""
    number = "1 video without a label is" if count == 1 else f"{count} videos without a label are"
    return (f"{place}: {number} left out",) if count else ()


def _classes(place: str) -> dict[str, str]:
    """{"c000": name, ...} in the order of the labels."""
    file = Path(place).with_name(CLASSES)
    if not file.is_file():
        raise AnnotationError(f"{place}: there is no {CLASSES} next to it, which names the classes: put it there")
    names: dict[str, str] = {}
    for row, line in enumerate(read_text(str(file)).split("\n"), 1):
        key, _, name = line.strip().partition(" ")
        if line.strip() and (key != f"c{len(names):03}" or not name.strip() or name.strip() in names.values()):
            raise AnnotationError(
                f"{file}: row {row} is '{clipped(line.strip())}', expected `c{len(names):03} CLASS` with a different class in each row"
            )
        if line.strip():
            names[key] = name.strip()
    return names


def _labels(actions: str, numbers: Mapping[str, str], where: str) -> str:
    """`c092 11.90 21.20;c147 0.00 12.60` -> `92;147`."""
    found: dict[str, None] = {}
    for action in filter(None, map(str.strip, actions.split(";"))):
        match = ACTION.fullmatch(action)
        if not match or match[1] not in numbers:
            raise AnnotationError(
                f"{where} has the action '{clipped(action)}', expected a class of {CLASSES} and two times, such as c000 11.90 21.20"
            )
        found[numbers[match[1]]] = None
    return ";".join(found)
