"""PySlowFast's lists with one row per frame."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mvit_video.data.lists.charades import left_out
from mvit_video.data.lists.class_names import without_brackets
from mvit_video.data.lists.formats import Listing, Row
from mvit_video.data.lists.official import with_published_names
from mvit_video.data.lists.text import first_line, open_text, read_json
from mvit_video.errors import AnnotationError


class FrameList:
    """Reads lists of frames: a video is the folder of its frames, with all labels of its rows.

    The columns are original_vido_id, video_id, frame_id, path, labels; `""` means no label. A list without labels, as for
    Something-Something v2, gets those of the json lists next to it; of one with labels, as for Charades, videos without are
    left out, with a note.
    """

    def matches(self, path: str) -> bool:
        return first_line(path).startswith(("original_vido_id ", "original_video_id "))

    def read(self, path: str, root: str) -> Listing:
        rows = _videos(path)
        labelled = [row for row in rows if row.label]
        if not labelled:
            return _labelled_beside(rows, path)
        return Listing(labelled, notes=left_out(len(rows) - len(labelled), path))


def _videos(place: str) -> list[Row]:
    videos: dict[str, tuple[int, str]] = {}
    labels: dict[str, dict[str, None]] = {}
    for number, name, path, label in _frame_rows(place):
        folder = path.rpartition("/")[0]
        if not folder or videos.setdefault(name, (number, folder))[1] != folder:
            raise AnnotationError(
                f"{place}: row {number} has the frame '{path}' of '{name}', expected all frames of a video in one folder"
                + (f" ('{videos[name][1]}' in row {videos[name][0]})" if name in videos else "")
            )
        if label:
            labels.setdefault(name, {}).update(dict.fromkeys(label.split(",")))
    if not videos:
        raise AnnotationError(f"{place}: contains no frames under its header")
    return [Row(number, folder, ";".join(labels.get(name, ()))) for name, (number, folder) in videos.items()]


def _frame_rows(place: str) -> Iterator[tuple[int, str, str, str]]:
    """Yield (row, video, path, labels) of each frame, line by line: there may be ten million."""
    number = 1
    try:
        with open_text(place) as lines:
            next(lines)
            for number, line in enumerate(lines, 2):
                fields = line.split()
                if len(fields) == 5:
                    yield number, fields[0], fields[3].replace("\\", "/"), fields[4].strip('"')
                elif fields:
                    raise AnnotationError(
                        f"{place}: row {number} has {len(fields)} fields, "
                        "expected original_vido_id video_id frame_id path labels"
                    )
    except UnicodeError:
        raise AnnotationError(f"{place}: is not UTF-8 text after row {number}: save it as UTF-8") from None


def _labelled_beside(rows: list[Row], place: str) -> Listing:
    templates: dict[str, str] = {}
    files = [file for file in sorted(Path(place).parent.glob("*.json")) if not file.stem.endswith("labels")]
    for file in files:
        items = read_json(str(file))
        for item in items if isinstance(items, list) else ():
            if isinstance(item, dict) and isinstance(item.get("template"), str):
                templates[str(item.get("id"))] = without_brackets(item["template"])
    labelled = [Row(row.number, row.path, templates.get(row.path.rpartition("/")[2], "")) for row in rows]
    if not any(row.label for row in labelled):
        return Listing(rows)
    note = f"{place}: labels are read from {', '.join(file.name for file in files)} next to it"
    return replace(with_published_names(labelled, place, "ssv2"), notes=(note,))
