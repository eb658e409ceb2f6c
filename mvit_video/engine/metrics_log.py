"""Numbers of a run as JSON lines, one record a step, in full precision."""

import errno
import json
import os
from pathlib import Path

from mvit_video.engine.distributed import is_first
from mvit_video.errors import TrainingError
from mvit_video.paths import write_whole


class MetricsLog:
    """Appends records to a file, in the first process only; each is the system's before `write` returns: a kill loses none.

    On resuming from step `after`, records of later steps are dropped first: they will be made again. Raises
    TrainingError where the disk takes no more.
    """

    def __init__(self, path: Path, after: int = 0) -> None:
        self.path, self._file = path, None
        if not is_first():
            return
        kept = [record for record in read_metrics(path) if record["step"] <= after]
        write_whole(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("ab", buffering=0)

    def write(self, **record: float | str | None) -> None:
        if self._file is None:
            return
        line = (json.dumps(record) + "\n").encode()
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as reason:
            raise _no_room(self.path, reason) from None

    def sync(self) -> None:
        """Have all records on disk, so that a saved state is never ahead of them."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read_metrics(path: Path) -> list[dict]:
    """All whole records; a last line that was cut short by a crash is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def write_or_end_run(path: Path, content: bytes) -> None:
    """A picture or another file beside the records; TrainingError where the disk does not take it."""
    try:
        write_whole(path, content)
    except OSError as reason:
        raise _no_room(path, reason) from None


def _no_room(path: Path, reason: OSError) -> TrainingError:
    return TrainingError(f"{path}: cannot be written ({reason.strerror}): make room, then go on with --resume auto")
