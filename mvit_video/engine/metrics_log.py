"""Numbers of a run as JSON lines, one record a step, in full precision.

A log may be damaged: by a kill in its last line, by a disk or a copy anywhere. A broken line costs itself and a sentence.
"""

import errno
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from mvit_video.engine.distributed import is_first
from mvit_video.errors import TrainingError
from mvit_video.paths import write_whole

LONGEST_LINE = 1 << 20  # bytes; a record has hundreds
MOST_STEPS = 10**12
JOINED = re.compile(rb'(?<=\})[^\n]?(?=\{"step": )')  # where the end of a line was lost


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


STRICT = json.JSONDecoder(parse_constant=_refuse)


class MetricsLog:
    """Appends records to a file, in the first process only; each is the system's before `write` returns: a kill loses none.

    On resuming from step `after`, records of later steps are dropped first: they will be made again. Raises
    TrainingError where the disk takes no more, or the file is not where it was.
    """

    def __init__(self, path: Path, after: int = 0) -> None:
        self.path, self._file = path, None
        if not is_first():
            return
        cut(path, after)
        self._file = path.open("ab", buffering=0)

    def write(self, **record: float | str | None) -> None:
        if self._file is None:
            return
        line = (json.dumps(record) + "\n").encode()
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as reason:
            raise no_room(self.path, reason) from None
        self._check_place()

    def _check_place(self) -> None:
        """TrainingError where the run's folder was deleted or moved: what is written now would be lost or torn apart."""
        assert self._file is not None
        try:
            if os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path)):
                return
        except OSError:
            pass
        raise TrainingError(
            f"{self.path}: was deleted or moved while the run wrote to it: put its folder back and go on with --resume auto"
        )

    def sync(self) -> None:
        """Have all records on disk, so that a saved state is never ahead of them."""
        if self._file is None:
            return
        try:
            os.fsync(self._file.fileno())
        except OSError as reason:
            raise no_room(self.path, reason) from None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def no_room(path: Path, reason: OSError) -> TrainingError:
    """What ends a run whose disk takes no more."""
    return TrainingError(f"{path}: cannot be written ({reason.strerror}): make room, then go on with --resume auto")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole records, in order. Lines that are broken are left out; `cut` says which."""
    return [record for record, _ in _read(path).kept]


def cut(path: Path, after: int, every_step: bool = False) -> list[str]:
    """Delete what is broken and what is of steps after `after`; sentences on what was broken, but for a last line that a
    kill has cut short, and where `every_step` should have its record on steps that have none."""
    content = _read(path)
    lines = [line for record, line in content.kept if record["step"] <= after]
    if not path.exists() or content.joined or sum(len(line) + 1 for line in lines) != path.stat().st_size:
        write_whole(path, b"".join(line + b"\n" for line in lines))
    told, broken = [], content.broken
    if broken and after:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        which = f"lines {', '.join(map(str, broken[:3]))}{more} are" if len(broken) > 1 else f"line {broken[0]} is"
        told = [f"{path}: {which} broken and left out: is the disk sound?"]
    missing = after - len(lines) if every_step else 0
    if missing > len(broken):
        told.append(f"{path}: has no records of {missing} of the {after} steps done")
    return told


@dataclass
class _Content:
    kept: list[tuple[dict[str, Any], bytes]]
    """Whole records with their lines."""
    broken: list[int]
    """The numbers of broken lines, from 1."""
    joined: bool
    """Whether two records stood in one line."""


def _read(path: Path) -> _Content:
    """The records of a log. Each epoch is the step by the steps of an epoch, so a record in which either has changed is seen."""
    found: list[tuple[int, dict[str, Any], bytes]] = []
    broken, joined, number, line = [], False, 0, b"\n"
    for number, line in enumerate(_lines(path), 1):
        if (record := _record(line)) is not None:
            found.append((number, record, line.strip()))
        else:
            parts = [part for part in JOINED.split(line) if _record(part) is not None]
            found += [(number, _record(part) or {}, part.strip()) for part in parts]
            broken += [] if parts else [number]
            joined |= len(parts) > 1
    if broken and broken[-1] == number and not line.endswith(b"\n"):
        broken.pop()  # cut short by a kill
    steps = Counter(_steps_per_epoch(record) for _, record, _ in found).most_common(1)[0][0] if found else None
    kept: dict[int, tuple[dict[str, Any], bytes]] = {}
    for place, (number, record, line) in enumerate(found):
        if steps is None:
            kept[place] = record, line
        elif record["step"] / steps == record.get("epoch"):
            kept[record["step"]] = record, line  # of two that an older version's two runs at once left, the later one
        else:
            broken.append(number)
    return _Content(list(kept.values()), sorted(broken), joined)


def _lines(path: Path) -> Iterator[bytes]:
    if not path.exists():
        return
    with path.open("rb") as file:
        while line := file.readline(LONGEST_LINE):
            yield line


def _record(line: bytes) -> dict[str, Any] | None:
    """What a line holds, if it is a record: names and values, with the step from 1."""
    try:
        record = STRICT.decode(line.decode())
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    if type(step) is not int or not 1 <= step <= MOST_STEPS:
        return None
    return None if {list, dict} & set(map(type, record.values())) else record


def _steps_per_epoch(record: dict[str, Any]) -> int | None:
    """None of a record whose epoch is no fraction, such as those of bad videos."""
    epoch = record.get("epoch")
    if not isinstance(epoch, float) or not 0 < record["step"] / MOST_STEPS < epoch < inf:
        return None
    return round(record["step"] / epoch) or None


def write_or_end_run(path: Path, content: bytes) -> None:
    """An image or another file beside the records; TrainingError where the disk does not take it."""
    try:
        write_whole(path, content)
    except OSError as reason:
        raise no_room(path, reason) from None
