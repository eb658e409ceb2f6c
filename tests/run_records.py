"""What must be the same in two runs of the same settings."""

from pathlib import Path

from mvit_video.engine.hooks.speed import SPEED
from mvit_video.engine.metrics_log import read_metrics


def numbers_of_steps(path: Path) -> list[dict]:
    """The records of a metrics.jsonl without their times, which no two runs share."""
    records = read_metrics(path)
    assert all(set(SPEED) <= record.keys() for record in records)
    return [{name: value for name, value in record.items() if name not in SPEED} for record in records]
