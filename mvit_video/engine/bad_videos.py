"""Bad videos in training: each one recorded, then refused, passed over or replaced, as `data.on_error` says."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from mvit_video.config.schema import InputSettings
from mvit_video.data.dataset import BadVideo
from mvit_video.data.lists.records import VideoList
from mvit_video.engine.distributed import everyones, gathered
from mvit_video.engine.metrics_log import MetricsLog, read_metrics
from mvit_video.errors import DecodeError, TrainingError

EVENTS = "events.jsonl"


def handle_bad_videos(batch: dict, on_error: str, events: MetricsLog, step: int, epoch: int) -> None:
    """Record the bad videos of a step's batch: step (from 1), epoch (from 0), id, where, reason, substitute or null.

    Those of all processes, which thus stop or go on together: one that is left without a clip has none in its batch.
    Raises DecodeError where the run is to stop at the first one, and TrainingError where no clip is left.
    """
    if not any(everyones(len(batch["bad"]))):
        return
    listed = [BadVideo(**values) for part in gathered([asdict(bad) for bad in batch["bad"]]) for values in part]
    for bad in listed:
        events.write(step=step, epoch=epoch, id=bad.path, where=bad.where, reason=bad.reason, substitute=bad.substitute)
    for bad in listed if on_error == "stop" else []:
        raise stop_at(bad)
    if not any(everyones("video" in batch)):
        raise TrainingError(
            f"step {step}: none of the {len(listed)} videos tried could be decoded ({listed[0].reason}): "
            "check data.root and the files"
        )


def no_clips(preprocessing: InputSettings) -> dict:
    """A batch of none, for a process whose videos were all bad."""
    clips = torch.empty(0, 3, preprocessing.num_frames, *preprocessing.crop_hw)
    names = dict.fromkeys(("video_name", "video_index", "clip_index", "aug_index"), ())
    return {"video": clips, "label": torch.empty(0, dtype=torch.int64), **names}


def stop_at(bad: BadVideo) -> DecodeError:
    """What data.on_error=stop ends a run with."""
    return DecodeError(
        f"{bad.reason} ({bad.where}): repair the file, take its row out of the list, or set data.on_error"
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


def without_bad_videos(run: Path, train: VideoList) -> VideoList:
    """The training videos but for those that the run could not decode."""
    bad = {event["id"] for event in read_metrics(run / EVENTS)}
    return replace(train, records=tuple(record for record in train.records if record.path not in bad))
