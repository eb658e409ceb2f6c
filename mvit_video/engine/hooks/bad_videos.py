"""Videos that could not be decoded: each one recorded, then refused, passed over or replaced, as `data.on_error` says."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mvit_video.config.schema import InputSettings
from mvit_video.data.dataset import BadVideo
from mvit_video.data.lists.records import VideoList, VideoRecords
from mvit_video.engine.distributed import everyones, gathered
from mvit_video.engine.loop import Hook, Loop
from mvit_video.engine.metrics_log import MetricsLog, read_metrics
from mvit_video.errors import DecodeError, TrainingError

EVENTS = "events.jsonl"


class BadVideos(Hook):
    """Records those of a step in events.jsonl: step (from 1), epoch (from 0), id, where, reason, substitute or null.

    All processes stop or go on together: one that is left without a clip gets a batch of none. Raises DecodeError where
    the run is to stop at the first one, and TrainingError where no process has a clip left.
    """

    def __init__(self, run: Path, input: InputSettings, stop: bool) -> None:
        self.run, self.input, self.stop = run, input, stop

    def before_train(self, loop: Loop) -> None:
        self.events = MetricsLog(self.run / EVENTS, after=loop.done)

    def before_step(self, loop: Loop) -> None:
        bad = loop.batch["bad"]
        if any(everyones(len(bad))):
            self._handle(
                [BadVideo(**values) for part in gathered([asdict(video) for video in bad]) for values in part], loop
            )
        if "video" not in loop.batch:
            loop.batch = no_clips(self.input)

    def _handle(self, bad: list[BadVideo], loop: Loop) -> None:
        """Those of all processes."""
        step, epoch = loop.done + 1, loop.done // loop.steps.per_epoch
        for video in bad:
            self.events.write(
                step=step,
                epoch=epoch,
                id=video.path,
                where=video.where,
                reason=video.reason,
                substitute=video.substitute,
            )
        if self.stop:
            raise stop_at(bad[0])
        if not any(everyones("video" in loop.batch)):
            raise TrainingError(
                f"step {step}: none of the {len(bad)} videos tried could be decoded ({bad[0].reason}): "
                "check data.root and the files"
            )

    def before_save(self, loop: Loop) -> None:
        self.events.sync()

    def after_train(self, loop: Loop, failure: BaseException | None) -> None:
        self.events.close()


def no_clips(input: InputSettings) -> dict[str, Any]:
    """A batch of none, for a process whose videos were all bad."""
    clips = torch.empty(0, 3, input.num_frames, *input.crop_hw)
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
    return replace(train, records=VideoRecords.of(record for record in train.records if record.path not in bad))
