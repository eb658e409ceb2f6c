"""Metrics of a run as JSON lines, one record per step, in full precision.

A log may be damaged: by a kill in its last line, by a disk or a copy anywhere. A broken line is skipped with a warning.
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

from mvit_video.engine.distributed import is_rank_zero
from mvit_video.errors import TrainingError
from mvit_video.paths import write_whole

LONGEST_LINE = 1 << 20  # bytes; a record has hundreds
MAX_STEPS = 10**12
JOINED = re.compile(rb'(?<=\})[^\n]?(?=\{"step": )')  # where a newline was lost


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


STRICT = json.JSONDecoder(parse_constant=_refuse)


class MetricsLog:
    """Appends records to a file, in rank 0 only; written without buffering, so a kill loses none.

    On resuming from step `after`, records of later steps are dropped first. Raises TrainingError if the disk is full or the
    file was moved.
    """

    def __init__(self, path: Path, after: int = 0) -> None:
        self.path, self._file = path, None
        if not is_rank_zero():
            return
        truncate_log(path, after)
        self._file = path.open("ab", buffering=0)

    def write(self, **record: float | str | None) -> None:
        if self._file is None:
            return
        line = (json.dumps(record) + "\n").encode()
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as reason:
            raise disk_error(self.path, reason) from None
        self._check_place()

    def _check_place(self) -> None:
        """Raise TrainingError if the run's folder was deleted or moved, so that records would be lost."""
        assert self._file is not None
        try:
            if os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path)):
                return
        except OSError:
            pass
        raise TrainingError(
            f"{self.path}: was deleted or moved while the run wrote to it: put its folder back and continue with --resume auto"
        )

    def sync(self) -> None:
        """Sync all records to disk, so that a saved state is never ahead of them."""
        if self._file is None:
            return
        try:
            os.fsync(self._file.fileno())
        except OSError as reason:
            raise disk_error(self.path, reason) from None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def disk_error(path: Path, reason: OSError) -> TrainingError:
    """The error for a full or failing disk."""
    return TrainingError(f"{path}: cannot be written ({reason.strerror}): make room, then continue with --resume auto")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read all valid records in order. Broken lines are skipped; `truncate_log` reports them."""
    return [record for record, _ in _read(path).kept]


def truncate_log(path: Path, after: int, every_step: bool = False) -> list[str]:
    """Delete broken lines and records after step `after`; return warnings about broken lines, except a last line cut short by a
    kill, and with `every_step` about steps without a record."""
    content = _read(path)
    lines = [line for record, line in content.kept if record["step"] <= after]
    if not path.exists() or content.joined or sum(len(line) + 1 for line in lines) != path.stat().st_size:
        write_whole(path, b"".join(line + b"\n" for line in lines))
    notes, broken = [], content.broken
    if broken and after:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        which = f"lines {', '.join(map(str, broken[:3]))}{more} are" if len(broken) > 1 else f"line {broken[0]} is"
        notes = [f"{path}: {which} broken and skipped: check the disk"]
    missing = after - len(lines) if every_step else 0
    if missing > len(broken):
        notes.append(f"{path}: has no records of {missing} of the {after} steps done")
    return notes


@dataclass
class _ParsedLog:
    kept: list[tuple[dict[str, Any], bytes]]
    """Valid records with their lines."""
    broken: list[int]
    """Numbers of broken lines, from 1."""
    joined: bool
    """Whether a line contained two records."""


def _read(path: Path) -> _ParsedLog:
    """Parse a log. A record whose step and epoch do not match counts as broken."""
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
    return _ParsedLog(list(kept.values()), sorted(broken), joined)


def _lines(path: Path) -> Iterator[bytes]:
    if not path.exists():
        return
    with path.open("rb") as file:
        while line := file.readline(LONGEST_LINE):
            yield line


def _record(line: bytes) -> dict[str, Any] | None:
    """Parse a line into a record with a step from 1; None if it is invalid."""
    try:
        record = STRICT.decode(line.decode())
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    if type(step) is not int or not 1 <= step <= MAX_STEPS:
        return None
    return None if {list, dict} & set(map(type, record.values())) else record


def _steps_per_epoch(record: dict[str, Any]) -> int | None:
    """Steps per epoch of a record; None if its epoch is not fractional, as for bad videos."""
    epoch = record.get("epoch")
    if not isinstance(epoch, float) or not 0 < record["step"] / MAX_STEPS < epoch < inf:
        return None
    return round(record["step"] / epoch) or None


def write_run_file(path: Path, content: bytes) -> None:
    """Write a file next to the logs; TrainingError if the disk fails."""
    try:
        write_whole(path, content)
    except OSError as reason:
        raise disk_error(path, reason) from None
