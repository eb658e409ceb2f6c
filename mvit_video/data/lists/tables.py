"""Tables with a header, as pandas and Excel write them, with columns in any order."""

import csv
from collections.abc import Sequence

from mvit_video.data.lists.formats import Listing, Row
from mvit_video.data.lists.path_label_rows import PATHS, column_key, is_video_path, label_text
from mvit_video.data.lists.text import delimiter_of, first_line, table_rows
from mvit_video.errors import AnnotationError

# Column names as PATHS has them; if several are present, the first of these counts.
LABELS = (
    "label", "labels", "class", "classname", "classlabel", "classid", "labelname", "labelid", "category", "action", "activity", "target",
)  # fmt: skip


class Table:
    """Rows under a header with a column of paths, and usually one of labels. Other columns are ignored, with a note."""

    def matches(self, path: str) -> bool:
        head = first_line(path)
        names = next(csv.reader([head], delimiter=delimiter_of(head)), [])
        keys = [column_key(name) for name in names]
        if len(names) < 2 or any(map(is_video_path, names)) or not set(keys) & set(PATHS):
            return False
        return bool(set(keys) & set(LABELS)) or "" in keys or "index" in keys or "split" in keys

    def read(self, path: str, root: str) -> Listing:
        lines = table_rows(path)
        columns = next(lines)[1]
        paths, labels = _place(columns, PATHS), _place(columns, LABELS)
        if paths is None:
            raise AnnotationError(f"{path}: has no column of paths, expected one named path")
        rows = []
        for number, fields in lines:
            label = "" if labels is None else fields[labels]
            rows.append(Row(number, fields[paths].strip(), label_text(label, "", f"{path}: row {number}")))
        if not rows:
            raise AnnotationError(f"{path}: contains no videos under its header")
        return Listing(rows, notes=_notes(path, columns, paths, labels))


def _place(columns: Sequence[str], names: Sequence[str]) -> int | None:
    """Index of the first of these names that is a column."""
    keys = [column_key(name) for name in columns]
    return next((keys.index(name) for name in names if name in keys), None)


def _notes(path: str, columns: Sequence[str], paths: int, labels: int | None) -> tuple[str, ...]:
    others = [name.strip() or "(unnamed)" for place, name in enumerate(columns) if place not in (paths, labels)]
    if not others:
        return ()
    used = f"'{columns[paths].strip()}'" + ("" if labels is None else f" and '{columns[labels].strip()}'")
    return (f"{path}: columns {used} are read; ignored: {', '.join(others)}",)
