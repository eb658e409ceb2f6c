"""Numbers of a run as JSON lines, one record a step, in full precision."""

import json
from pathlib import Path

from mvit_video.paths import write_whole


class MetricsLog:
    """Appends records to a file; each is on disk before `write` returns.

    On resuming from step `after`, records of later steps are dropped first: they will be made again.
    """

    def __init__(self, path: Path, after: int = 0) -> None:
        kept = [record for record in read_metrics(path) if record["step"] <= after]
        write_whole(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, **record: float | str | None) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
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
