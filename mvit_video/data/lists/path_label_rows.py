"""Lists with one row per video: path and label, or MMAction's folder, number of frames and label.

An ambiguous row is an error that shows how to write it.
"""

import os
import re

from mvit_video.data.lists.files import VIDEO_SUFFIXES
from mvit_video.data.lists.formats import Listing, Row
from mvit_video.data.lists.text import EXCEL_SEPARATOR, read_text
from mvit_video.errors import AnnotationError

# Names of a column of paths, ignoring case, spaces and punctuation; if several are present, the first of these counts.
PATHS = (
    "path", "paths", "filepath", "videopath", "file", "filename", "video", "videofile", "videoname", "clip", "clippath", "clipname",
)  # fmt: skip
MAX_CHARACTERS = 10_000  # of a row; a path has 4,096 at most

_SUFFIX = "|".join(sorted(suffix[1:] for suffix in VIDEO_SUFFIXES))
_SEPARATED = r"(?:(\s*[,;\t]\s*| +)(.*))?"
_VIDEO_ROW = re.compile(rf"(.*\.(?:{_SUFFIX})){_SEPARATED}", re.IGNORECASE)
_QUOTED_ROW = re.compile(rf'"((?:[^"]|"")+)"{_SEPARATED}')
_RAW_FRAMES_ROW = re.compile(r"(\S.*?) (\d+) (\d[\d;,]*)")
_HEADER = re.compile(r'(?:.*[\s,;])?"?labels?"?', re.IGNORECASE)
_NUMBERS = re.compile(r"\d+(\s*[,;]\s*\d+)+|\d+(\s+\d+)+")
_COUNTED_ROW = re.compile(rf'("?)(\d+)\1[,;\t](?=\S)("?.*\.(?:{_SUFFIX}).*)', re.IGNORECASE)


class PathLabelRows:
    """Rows of a path and a label, separated by a tab, a comma, a semicolon or the last space. Accepts any file."""

    def matches(self, path: str) -> bool:
        return True

    def read(self, path: str, root: str) -> Listing:
        lines = [line.strip() for line in read_text(path).split("\n")]
        if EXCEL_SEPARATOR.fullmatch(lines[0]):
            lines[0] = ""
        head = next((number for number, line in enumerate(lines) if line), 0)
        if _is_header(lines[head]) or (any(lines[head + 1 :]) and _names_paths(lines[head], root)):
            lines[head] = ""
        notes = _leave_out_counts(lines, path, root)
        rows, counted = [], set()
        for number, line in enumerate(lines, 1):
            if not line.strip(',;\t "'):
                continue
            if len(line) > MAX_CHARACTERS:
                raise AnnotationError(
                    f"{path}: row {number} has {len(line):,} characters, above the limit of {MAX_CHARACTERS:,}"
                )
            row, raw_frames = _row(number, line, f"{path}: row {number}")
            counted.add(raw_frames)
            if len(counted) > 1:
                raise AnnotationError(
                    f"{path}: row {number} is '{line}', but either all rows or none must be `folder num_frames label`: "
                    "quote a path that ends in a number"
                )
            rows.append(row)
        if not rows:
            raise AnnotationError(f"{path}: contains no videos, expected rows of `path label`")
        return Listing(rows, notes=notes)


def column_key(name: str) -> str:
    """A column's name as PATHS has it."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def is_video_path(text: str) -> bool:
    """Whether a text ends in a video suffix."""
    return os.path.splitext(text)[1].lower() in VIDEO_SUFFIXES


def label_text(text: str, mark: str, where: str) -> str:
    """Normalise several numeric labels to `;` between them; `mark`, the column separator, does not separate labels."""
    mark = next((sign for sign in ",;\t" if sign in mark), "")
    text = text.strip()
    if mark:  # empty columns after the label
        text = re.sub(rf'(?:\s*{mark}\s*(?:"")?)+$', "", text)
    quoted = len(text) > 1 and text[0] == text[-1] == '"'
    text = text[1:-1].replace('""', '"').strip() if quoted else text
    if text.isdigit() or not _NUMBERS.fullmatch(text):
        return text
    numbers = re.findall(r"[0-9]+", text)
    signs = set(re.findall(r"[,;]", text))
    if len(signs) != 1 or (mark in signs and not quoted):
        raise AnnotationError(
            f"{where} has '{text}' after the path, which may be several labels, or another column and a label: "
            f"write several labels as {';'.join(numbers) if mark != ';' else ','.join(numbers)}"
        )
    return ";".join(numbers)


def _is_header(line: str) -> bool:
    """Whether a line is a header such as `path label`, and not a video whose class is called label."""
    return bool(_HEADER.fullmatch(line)) and not _VIDEO_ROW.fullmatch(line) and "/" not in line


def _names_paths(line: str, root: str) -> bool:
    """Whether a line is the header of a single column of paths, and not a folder of that name."""
    return column_key(line) in PATHS and not os.path.lexists(os.path.join(root, line.strip('"')))


def _leave_out_counts(lines: list[str], place: str, root: str) -> tuple[str, ...]:
    """Drop a first column that numbers the rows from 0, as pandas writes it, unless a file really has that name."""
    rows = [(number, _COUNTED_ROW.fullmatch(line)) for number, line in enumerate(lines) if line]
    if len(rows) < 2 or any(not match or int(match[2]) != count for count, (_, match) in enumerate(rows)):
        return ()
    first = _VIDEO_ROW.fullmatch(lines[rows[0][0]])
    if first and os.path.lexists(os.path.join(root, first[1])):
        return ()
    for number, match in rows:
        lines[number] = match[3] if match else ""
    return (f"{place}: its first column numbers the rows and is ignored",)


def _row(number: int, line: str, where: str) -> tuple[Row, bool]:
    """Parse a line; also return whether it has a number of frames."""
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
    return Row(number, path.strip(), label_text(label, mark, where)), raw_frames is not None


def _quoted(line: str, where: str) -> tuple[str, str, str]:
    match = _QUOTED_ROW.fullmatch(line)
    if not match:
        raise AnnotationError(f"{where} is '{line}', where the quoted path is not closed before a separator")
    return match[1].replace('""', '"'), match[2] or "", match[3] or ""


def _split(line: str, where: str) -> tuple[str, str, str]:
    """A row whose path has no video suffix: the label is the last field."""
    mark = next((mark for mark in "\t, ;" if mark in line), " ")
    path, _, label = line.rpartition(mark)
    last = path.rpartition(mark)[2].strip()
    if mark != " " and (last.isdigit() or re.fullmatch(r".*\s\d+(,\d+)+", line)):
        raise AnnotationError(
            f"{where} is '{line}', which is ambiguous: "
            'write several labels as 3;17, and a path with commas or spaces and numbers as "path"'
        )
    return (path, mark, label) if path.strip() else (line, "", "")


def _check_raw_frames(line: str, path: str, where: str) -> None:
    if path.rpartition(" ")[2].isdigit():
        raise AnnotationError(
            f"{where} is '{line}', which has more numbers than `folder num_frames label`: write several labels as 3;17 "
            "(lists with an offset column are not read)"
        )
