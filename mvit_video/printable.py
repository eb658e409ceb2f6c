"""Names that strangers gave to files and classes, where people see them: on terminals, in tables, spreadsheets, subtitles.

Terminals act on control characters, spreadsheets run cells that begin like a formula, and marks of direction make a name
look like another one. All of these are shown as what they are instead.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence

# Control characters of ASCII and Latin-1, separators of lines, and what turns the order of letters around.
_ACTED_ON = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_FORMULA = tuple("=+-@＝＋－＠")  # how cells begin that a spreadsheet runs
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?%?", re.IGNORECASE | re.ASCII)
_SUBTITLE = str.maketrans("<>{}", "‹›()")  # tags and positions in SubRip, and its arrow


def printable(text: str, keep: str = "") -> str:
    r"""`text` with such characters written as \x1b and \u202e are; those of `keep`, such as a sentence's own "\n", stay.

    >>> printable("a\x1b[2Jb.mp4")
    'a\\x1b[2Jb.mp4'
    """
    return _ACTED_ON.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(letter: str) -> str:
    return f"\\x{ord(letter):02x}" if ord(letter) < 256 else f"\\u{ord(letter):04x}"


def counted(count: int, one: str, more: str = "") -> str:
    """A number and its noun.

    >>> counted(1, "step"), counted(2, "step"), counted(2, "class", "classes")
    ('1 step', '2 steps', '2 classes')
    """
    return f"{count} {one if count == 1 else more or one + 's'}"


def json_text(content: object, indent: int | None = None) -> str:
    """JSON with non-ASCII names left readable, but for characters that a terminal acts on; reads back as it was."""
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    return _ACTED_ON.sub(lambda found: "\n" if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows with commas, a line each; None is an empty cell. A text that a spreadsheet would run has a ' before it."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = printable(value)
    runs = text.lstrip().startswith(_FORMULA) and not _NUMBER.fullmatch(text.strip())
    return f"'{text}" if runs else text


def subtitle(text: str) -> str:
    """A name in one line of SubRip subtitles, which have no way to quote."""
    return printable(" ".join(text.split())).translate(_SUBTITLE)
