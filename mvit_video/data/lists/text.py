"""Read lists and class names as text: UTF-8 with or without a byte order mark, or Excel's UTF-16; any line ending."""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TextIO

from mvit_video.download import local_file
from mvit_video.errors import AnnotationError

HEAD_CHARACTERS = 4000
EXCEL_SEPARATOR = re.compile(r"sep=.{0,2}")  # a first line that tells Excel how columns are separated


def open_text(path: str, errors: str = "strict") -> TextIO:
    """Open a list as text, with universal newlines."""
    file = local_file(path, AnnotationError)
    return file.open(encoding=_encoding(file), errors=errors)


def read_text(path: str) -> str:
    """Read a whole list. Raises AnnotationError with the position of what is not text."""
    try:
        with open_text(path) as file:
            text = file.read()
    except UnicodeError as reason:
        raise AnnotationError(
            f"{path}: is not UTF-8 text (byte {getattr(reason, 'start', 0)}): save it as UTF-8 ('CSV UTF-8' in Excel)"
        ) from None
    if "\0" in text:
        raise AnnotationError(
            f"{path}: contains a zero byte at character {text.index(chr(0))}, so it is not text: save it as UTF-8"
        )
    return text


def first_line(path: str) -> str:
    """First non-empty line (its beginning), by which a list's format is recognised; empty if there is no file."""
    if not path.startswith(("http://", "https://")) and not Path(path).is_file():
        return ""
    with open_text(path, errors="replace") as file:
        lines = [line.strip() for line in file.read(HEAD_CHARACTERS).split("\n")]
    return next((line for line in lines if line and not EXCEL_SEPARATOR.fullmatch(line)), "")


def delimiter_of(line: str) -> str:
    """Column separator of a header: a comma, a semicolon (Excel in many countries) or a tab."""
    return max(",;\t", key=line.count)


def table_rows(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (number, fields) of each row of a table, the header first; empty rows are skipped.

    Raises AnnotationError for rows with another number of fields than the header.
    """
    text, columns = read_text(path), list[str]()
    lines = csv.reader(io.StringIO(text), delimiter=delimiter_of(first_line(path)))
    try:
        for fields in lines:
            if not any(map(str.strip, fields)) or (not columns and EXCEL_SEPARATOR.fullmatch(",".join(fields))):
                continue
            while columns and len(fields) > len(columns) and not fields[-1].strip():
                fields.pop()
            if columns and len(fields) != len(columns):
                raise AnnotationError(
                    f"{path}: row {lines.line_num} has {len(fields)} fields, the header has {len(columns)}: {','.join(columns)}"
                )
            columns = columns or fields
            yield lines.line_num, fields
    except csv.Error as reason:
        raise AnnotationError(f"{path}: row {lines.line_num} is not csv ({reason})") from None


def lines_of(pipe: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a pipe as they come, without a byte order mark; UTF-16 is converted to UTF-8."""
    first = pipe.readline()
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = (first + pipe.read()).decode("utf-16", "replace")
        yield from (line.encode() for line in text.splitlines())
        return
    yield first.removeprefix(codecs.BOM_UTF8)
    yield from pipe


def read_json(path: str) -> object:
    """Read a JSON file; AnnotationError with line and column if it is invalid."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as reason:
        raise AnnotationError(
            f"{path}: is not JSON (line {reason.lineno}, column {reason.colno}: {reason.msg.lower()})"
        ) from None
    except RecursionError:
        raise AnnotationError(f"{path}: is nested too deeply to be a list of videos") from None
    except ValueError:
        raise AnnotationError(
            f"{path}: contains a number with thousands of digits, so it is not a list of videos"
        ) from None


def _encoding(file: Path) -> str:
    with file.open("rb") as content:
        start = content.read(2)
    return "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
