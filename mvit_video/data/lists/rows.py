"""Lists that name files themselves: rows of path and label, MMAction's raw frames, PySlowFast's frame lists, folders.

A reader gives rows as they are written; annotations.py turns labels into numbers. What a row can mean in two ways is
an error that says how to write it.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mvit_video.data.lists.files import VIDEO_SUFFIXES, list_folder, videos_in
from mvit_video.download import local_file
from mvit_video.errors import AnnotationError


class Row(NamedTuple):
    """One video as its list writes it. `label` is a number or a name, several with `;` between, or empty."""

    number: int
    path: str
    label: str


@dataclass(frozen=True)
class Listing:
    """What a reader finds: rows, and class names with a note on where they come from.

    `by_name`: labels are names, never numbers. `published`: the shipped class names that an official list goes with.
    `label_ids`: the dataset's own names are in a labels.json beside the list.
    """

    rows: list[Row]
    classes: tuple[str, ...] = ()
    class_note: str = ""
    by_name: bool = False
    published: str = ""
    label_ids: bool = False
    notes: tuple[str, ...] = ()


_SUFFIX = "|".join(sorted(suffix[1:] for suffix in VIDEO_SUFFIXES))
_VIDEO_ROW = re.compile(rf"(.*\.(?:{_SUFFIX}))(?:(\s*[,\t]\s*| +)(.*))?", re.IGNORECASE)
_QUOTED_ROW = re.compile(r'"((?:[^"]|"")+)"(?:(\s*[,\t]\s*| +)(.*))?')
_RAW_FRAMES_ROW = re.compile(r"(\S.*?) (\d+) (\d[\d;,]*)")
_HEADER = re.compile(r"(?:.*[\s,])?\"?labels?\"?", re.IGNORECASE)
_NUMBERS = re.compile(r"\d+(\s*,\s*\d+)+|\d+(\s+\d+)+")


def read_rows(text: str, place: str) -> Listing:
    """Rows of a path and a label, with a tab, a comma or the last space between; or of folder, num_frames and label."""
    rows, counted = [], set()
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or (number == 1 and _is_header(line)):
            continue
        where = f"{place}: row {number}"
        raw_frames = None
        if line[0] == '"':
            path, mark, label = _quoted(line, where)
        elif match := _VIDEO_ROW.fullmatch(line):
            path, mark, label = match[1], match[2] or "", match[3] or ""
        elif raw_frames := _RAW_FRAMES_ROW.fullmatch(line):
            path, mark, label = raw_frames[1], " ", raw_frames[3]
            _check_raw_frames(line, path, where)
        else:
            path, mark, label = _split(line, where)
        counted.add(raw_frames is not None)
        if len(counted) > 1:
            raise AnnotationError(
                f"{where} is '{line}', but either all rows or none are `folder num_frames label`: "
                "put a path that ends in a number into quotation marks"
            )
        rows.append(Row(number, path.strip(), _label_text(label, mark, where)))
    if not rows:
        raise AnnotationError(f"{place}: holds no videos, wanted rows of `path label`")
    return Listing(rows)


def _is_header(line: str) -> bool:
    """`path label` and the like, but not a video whose class is called label."""
    return bool(_HEADER.fullmatch(line)) and not _VIDEO_ROW.fullmatch(line) and "/" not in line


def _quoted(line: str, where: str) -> tuple[str, str, str]:
    match = _QUOTED_ROW.fullmatch(line)
    if not match:
        raise AnnotationError(f"{where} is '{line}', where the path's quotation mark does not end before a separator")
    return match[1].replace('""', '"'), match[2] or "", match[3] or ""


def _split(line: str, where: str) -> tuple[str, str, str]:
    """A row whose path has no video suffix: the label is the last field."""
    mark = next((mark for mark in ("\t", ",") if mark in line), " ")
    path, _, label = line.rpartition(mark)
    last = path.rpartition(mark)[2].strip()
    if mark != " " and (last.isdigit() or re.fullmatch(r".*\s\d+(,\d+)+", line)):
        raise AnnotationError(
            f"{where} is '{line}', which can be read in two ways: "
            'write several labels as 3;17, and a path with commas or spaces and numbers as "path"'
        )
    return (path, mark, label) if path.strip() else (line, "", "")


def _check_raw_frames(line: str, path: str, where: str) -> None:
    if path.rpartition(" ")[2].isdigit():
        raise AnnotationError(
            f"{where} is '{line}', with more numbers than `folder num_frames label` has: write several labels as 3;17 "
            "(lists with an offset column are not read)"
        )


def _label_text(text: str, mark: str, where: str) -> str:
    """Several numbers come back with `;` between. Commas do that too, except where they separate columns."""
    text = text.strip()
    quoted = len(text) > 1 and text[0] == text[-1] == '"'
    text = text[1:-1].strip() if quoted else text
    if text.isdigit() or not _NUMBERS.fullmatch(text):
        return text
    if "," not in text or (mark.strip() == "," and not quoted):
        raise AnnotationError(
            f"{where} has '{text}' after the path, which may be several labels or another column and a label: "
            f"write several labels as {';'.join(re.findall(r'[0-9]+', text))}"
        )
    return ";".join(part.strip() for part in text.split(","))


def read_frame_list(place: str) -> Listing:
    """PySlowFast's list with a row for each frame: a video is the folder of its frames, with all labels of its rows.

    The columns are original_vido_id, video_id, frame_id, path, labels; `""` stands for no label.
    """
    videos: dict[str, tuple[int, str]] = {}
    labels: dict[str, dict[str, None]] = {}
    for number, name, path, label in _frame_rows(place):
        folder = path.rpartition("/")[0]
        if not folder or videos.setdefault(name, (number, folder))[1] != folder:
            raise AnnotationError(
                f"{place}: row {number} has the frame '{path}' of '{name}', wanted all frames of a video in one folder"
                + (f" ('{videos[name][1]}' in row {videos[name][0]})" if name in videos else "")
            )
        if label:
            labels.setdefault(name, {}).update(dict.fromkeys(label.split(",")))
    if not videos:
        raise AnnotationError(f"{place}: holds no frames under its header")
    return Listing([Row(number, folder, ";".join(labels.get(name, ()))) for name, (number, folder) in videos.items()])


def _frame_rows(place: str) -> Iterator[tuple[int, str, str, str]]:
    """(row, video, path, labels) of each frame, one line after the other: there may be ten million."""
    number = 1
    try:
        with local_file(place, AnnotationError).open(encoding="utf-8-sig") as lines:
            next(lines)
            for number, line in enumerate(lines, 2):
                fields = line.split()
                if len(fields) == 5:
                    yield number, fields[0], fields[3], fields[4].strip('"')
                elif fields:
                    raise AnnotationError(
                        f"{place}: row {number} has {len(fields)} fields, "
                        "wanted original_vido_id video_id frame_id path labels"
                    )
    except UnicodeDecodeError:
        raise AnnotationError(f"{place}: is not UTF-8 text after row {number}: save it as UTF-8") from None


def read_class_folders(folder: Path, root: str, frames: bool) -> Listing:
    """CLASS/VIDEO.mp4 (with `frames`: CLASS/VIDEO/ holding pictures); classes in alphabetical order, numbers in theirs."""
    names = sorted(name for name, is_folder in list_folder(str(folder)).items() if is_folder and name[0] != ".")
    if all(name.isascii() and name.isdigit() for name in names):
        names.sort(key=lambda name: int(name[:1000]))
    inside = Path(os.path.relpath(folder, root)).as_posix()
    rows, others = [], []
    for name in names:
        start = name if inside == "." else f"{inside}/{name}"
        videos, passed_over = videos_in(str(folder / name), frames)
        rows += [Row(0, f"{start}/{video}", name) for video in videos]
        others += [f"{name}/{other}" for other in passed_over]
    if not rows:
        wanted = "CLASS/VIDEO/ of pictures" if frames else "CLASS/VIDEO.mp4"
        raise AnnotationError(f"{folder}: holds no class folders with videos, wanted {folder.name}/{wanted}")
    note = f"{folder}: {len(others)} files in the class folders are no videos by their names, such as '{min(others, default='')}'"
    classes = tuple(dict.fromkeys(row.label for row in rows))
    return Listing(rows, classes, by_name=True, notes=(note,) if others else ())
