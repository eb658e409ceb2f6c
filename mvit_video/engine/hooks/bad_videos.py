"""Videos that could not be decoded: recorded, then handled as `data.on_error` says."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mvit_video.config.schema import InputSettings
from mvit_video.data.dataset import BadVideo
from mvit_video.data.lists.records import VideoList, VideoRecords
from mvit_video.data.masking import Window
from mvit_video.engine.distributed import all_gather_int, all_gather_json
from mvit_video.engine.loop import Hook, Loop
from mvit_video.engine.metrics_log import MetricsLog, read_metrics
from mvit_video.errors import DecodeError, TrainingError

EVENTS = "events.jsonl"


class BadVideos(Hook):
    """Records bad videos in events.jsonl: step (from 1), epoch (from 0), id, where, reason, substitute or null.

    All processes stop or continue together: one without clips gets an empty batch. Raises DecodeError if the run is to
    stop at the first bad video, and TrainingError if no process has a clip left.
    """

    def __init__(self, run: Path, input: InputSettings, stop: bool, window: Window | None = None) -> None:
        self.run, self.input, self.stop, self.window = run, input, stop, window

    def before_train(self, loop: Loop) -> None:
        self.events = MetricsLog(self.run / EVENTS, after=loop.done)

    def before_step(self, loop: Loop) -> None:
        bad = loop.batch["bad"]
        if any(all_gather_int(len(bad))):
            self._handle(
                [BadVideo(**values) for part in all_gather_json([asdict(video) for video in bad]) for values in part],
                loop,
            )
        if "video" not in loop.batch:
            loop.batch = empty_batch(self.input, self.window)

    def _handle(self, bad: list[BadVideo], loop: Loop) -> None:
        """Record the bad videos of all processes."""
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
            raise decode_error(bad[0])
        if not any(all_gather_int("video" in loop.batch)):
            raise TrainingError(
                f"step {step}: none of {len(bad)} videos could be decoded ({bad[0].reason}): "
                "check data.root and the files"
            )

    def before_save(self, loop: Loop) -> None:
        self.events.sync()

    def after_train(self, loop: Loop, failure: BaseException | None) -> None:
        self.events.close()


def empty_batch(input: InputSettings, window: Window | None = None) -> dict[str, Any]:
    """An empty batch, for a process whose videos were all bad; with masks of `window` cells."""
    clips = torch.empty(0, 3, input.num_frames, *input.crop_hw)
    names = dict.fromkeys(("video_name", "video_index", "clip_index", "aug_index"), ())
    masks = {"mask": torch.empty(0, *window, dtype=torch.uint8)} if window else {}
    return {"video": clips, "label": torch.empty(0, dtype=torch.int64), **masks, **names}


def decode_error(bad: BadVideo) -> DecodeError:
    """The error that ends a run with data.on_error=stop."""
    return DecodeError(
        f"{bad.reason} ({bad.where}): remove it from the list, or continue without it: data.on_error=skip"
    )


def events_summary(run: Path, say: Callable[[str], None]) -> None:
    """Print how often a run continued without a video."""
    events = read_metrics(run / EVENTS)
    if events:
        replaced = sum(event["substitute"] is not None for event in events)
        say(
            f"{len({event['id'] for event in events})} training videos could not be decoded, in {len(events)} attempts, "
            f"{replaced} of which were substituted: see {run / EVENTS}"
        )


def without_bad_videos(run: Path, train: VideoList) -> VideoList:
    """The training videos without those that the run could not decode."""
    bad = {event["id"] for event in read_metrics(run / EVENTS)}
    return replace(train, records=VideoRecords.of(record for record in train.records if record.path not in bad))
