"""Work that is split over machines: `--shard I/N` does every Nth row, and the parts are joined by `mvit-video merge`.

Which rows are a shard's follows from their places in the list alone. A part's folder holds part.json, written last: what
was done, by which shard, and what all parts must have in common.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvit_video.errors import ConfigError
from mvit_video.paths import write_json

PART = "part.json"
FIELDS = {"verb": str, "shard": str, "job": dict, "content": dict}


@dataclass(frozen=True)
class Shard:
    """The `number`-th of `count`, from 1. The whole is 1 of 1."""

    number: int = 1
    count: int = 1

    def places(self, total: int) -> range:
        """Places, from 0, of this shard's rows among all."""
        return range(self.number - 1, total, self.count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


WHOLE = Shard()


@dataclass(frozen=True)
class Part:
    """A finished part: its folder, whose it is, the `job` that it has in common with the others, and the verb's own `content`."""

    folder: Path
    verb: str
    shard: Shard
    job: dict[str, Any]
    content: dict[str, Any]


def parse_shard(text: str) -> Shard:
    """`2/8` -> the second of eight. ConfigError for anything else."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    number, count = (int(group) for group in match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise ConfigError(f"--shard {text}: expected I/N with I from 1 to N, such as 1/8 for the first of eight")
    return Shard(number, count)


def digest(rows: Iterable[object]) -> str:
    """SHA-256 of rows of plain values, by which parts of one list are known."""
    found = hashlib.sha256()
    for row in rows:
        found.update(json.dumps(row).encode() + b"\n")
    return found.hexdigest()


def write_part(folder: Path, verb: str, shard: Shard, job: dict[str, Any], content: dict[str, Any]) -> None:
    """part.json: the part is whole."""
    write_json(folder / PART, {"verb": verb, "shard": str(shard), "job": job, "content": content})


def read_parts(folders: Sequence[str | Path]) -> list[Part]:
    """All parts of one job, in the order of their shards. ConfigError where one is missing, doubled, unfinished or foreign."""
    parts = [_read(Path(folder)) for folder in folders]
    first, places = parts[0], dict[int, Part]()
    for part in parts:
        if (part.verb, part.shard.count) != (first.verb, first.shard.count):
            raise ConfigError(
                f"{part.folder}: is shard {part.shard} of {part.verb}, and {first.folder} is {first.shard} of {first.verb}: "
                "merge parts of one job"
            )
        unlike = [name for name in first.job | part.job if first.job.get(name) != part.job.get(name)]
        if unlike:
            raise ConfigError(f"{part.folder}: has another {unlike[0]} than {first.folder}: merge parts of one job")
        if part.shard.number in places:
            other = places[part.shard.number].folder
            raise ConfigError(f"{part.folder}: is shard {part.shard}, which {other} is too: name each shard once")
        places[part.shard.number] = part
    count = first.shard.count
    missing = [str(number) for number in range(1, count + 1) if number not in places]
    if missing:
        raise ConfigError(f"shard {missing[0]}/{count} is missing ({len(missing)} of {count} are): name all parts")
    return [places[number] for number in sorted(places)]


def _read(folder: Path) -> Part:
    file = folder / PART
    if not file.is_file():
        raise ConfigError(f"{folder}: contains no finished part: run its --shard to the end")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        verb, shard, job, content = (found[name] for name in FIELDS)
        if not all(isinstance(found[name], kind) for name, kind in FIELDS.items()):
            raise TypeError
        return Part(folder, verb, parse_shard(shard), job, content)
    except (ValueError, KeyError, TypeError, ConfigError):
        raise ConfigError(f"{file}: is not what --shard writes: run that shard again") from None
