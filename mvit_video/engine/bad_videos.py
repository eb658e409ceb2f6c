"""Bad videos in training: each one recorded, then refused, passed over or replaced, as `data.on_error` says."""

from collections.abc import Callable
from pathlib import Path

from mvit_video.engine.metrics_log import MetricsLog, read_metrics
from mvit_video.errors import DecodeError, TrainingError

EVENTS = "events.jsonl"


def handle_bad_videos(batch: dict, on_error: str, events: MetricsLog, step: int, epoch: int) -> None:
    """Record the bad videos of a step's batch: step (from 1), epoch (from 0), id, where, reason, substitute or null.

    Raises DecodeError where the run is to stop at the first one, and TrainingError where no clip is left.
    """
    for bad in batch["bad"]:
        events.write(step=step, epoch=epoch, id=bad.path, where=bad.where, reason=bad.reason, substitute=bad.substitute)
    for bad in batch["bad"] if on_error == "stop" else []:
        raise DecodeError(
            f"{bad.reason} ({bad.where}): repair the file, take its row out of the list, or set data.on_error"
        )
    if "video" not in batch:
        raise TrainingError(
            f"step {step}: none of the {len(batch['bad'])} videos tried could be decoded ({batch['bad'][0].reason}): "
            "check data.root and the files"
        )


def events_summary(run: Path, say: Callable[[str], None]) -> None:
    """Say how often a run went on without a video, if it did."""
    events = read_metrics(run / EVENTS)
    if events:
        replaced = sum(event["substitute"] is not None for event in events)
        say(
            f"{len({event['id'] for event in events})} training videos could not be decoded: {len(events)} times, "
            f"{replaced} of them replaced by another video; all in {run / EVENTS}"
        )
