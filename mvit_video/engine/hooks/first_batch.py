"""The first batch as an image, so that a wrong crop, colour order, label or flip is seen before a day of training."""

# B clips, C=3 channels RGB, T frames, H/W pixels, K classes. Clips float32 (B, C, T, H, W); targets (B, K).

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mvit_video.config.schema import InputSettings
from mvit_video.engine.distributed import is_first
from mvit_video.engine.loop import Hook, Loop
from mvit_video.engine.metrics_log import write_or_end_run
from mvit_video.figures import frame_strips, png

FIRST_BATCH = "first_batch.png"
MOST_CLIPS, MOST_FRAMES = 8, 8

MixStep = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class PictureFirstBatch(Hook):
    """Draws some clips of a run's first batch as they enter the step, each with its label, and then as they are mixed.

    `mix_of_step(number)` is what mixes a step's clips and labels; see `Trainer.mix_of_step`. In rank 0 only.
    """

    def __init__(
        self, run: Path, classes: Sequence[str], input: InputSettings, mix_of_step: Callable[[int], MixStep]
    ) -> None:
        self.path, self.classes, self.input, self.mix_of_step = run / FIRST_BATCH, classes, input, mix_of_step

    def before_step(self, loop: Loop) -> None:
        if is_first() and len(loop.batch["video"]) and not self.path.exists():
            mix = self.mix_of_step(loop.done)
            write_or_end_run(self.path, png(picture_of_batch(loop.batch, self.classes, self.input, mix)))


def picture_of_batch(batch: dict[str, Any], classes: Sequence[str], input: InputSettings, mix: MixStep) -> Figure:
    """A strip of frames for each of the first clips, and where mixing changes them, a second one with its target."""
    clips, labels, names = batch["video"], batch["label"], batch["video_name"]
    count = min(MOST_CLIPS, len(clips))
    strips = [
        (pictures(clips[place], input), f"{classes[int(labels[place])]}   ({names[place]})") for place in range(count)
    ]
    mixed, targets = mixed_ends(clips, labels, count, mix)
    where = "as it enters the step: cropped and augmented, mean and std undone"
    if not torch.equal(mixed[:count], clips[:count]):
        where += "; below, the same clips mixed, with their targets"
        strips += [
            (pictures(clip, input), target_text(target, classes))
            for clip, target in zip(mixed[:count], targets[:count], strict=True)
        ]
    shown = f"{min(MOST_FRAMES, clips.shape[2])} of {clips.shape[2]} frames, {clips.shape[4]}×{clips.shape[3]} pixels"
    return frame_strips(strips, f"First batch {where} ({shown})")


def mixed_ends(clips: Tensor, labels: Tensor, count: int, mix: MixStep) -> tuple[Tensor, Tensor]:
    """The first `count` of the whole batch's mixed clips and targets, made from its two ends alone.

    Clip i is mixed with clip B − 1 − i, so nothing between the ends has a part in it.
    """
    if len(clips) > 2 * count:
        clips, labels = (torch.cat([part[:count], part[-count:]]) for part in (clips, labels))
    mixed, targets = mix(clips, labels)
    return mixed[:count], targets[:count]


def pictures(clip: Tensor, input: InputSettings) -> np.ndarray:
    """What normalising did is undone: (C, T, H, W) -> uint8 (T', H, W, C) of T' frames spread over the clip."""
    chosen = np.unique(np.linspace(0, clip.shape[1] - 1, MOST_FRAMES).round().astype(int))
    mean, std = (np.array(values, np.float32) for values in (input.mean, input.std))
    frames = clip[:, chosen].float().cpu().permute(1, 2, 3, 0).numpy() * std + mean
    return (frames.clip(0, 1) * 255).round().astype(np.uint8)


def target_text(target: Tensor, classes: Sequence[str]) -> str:
    """The two largest parts of a target: `0.63 clap + 0.28 wave`; one where all others are label smoothing alone."""
    best = target.topk(min(2, len(target)))
    return " + ".join(
        f"{value:.2f} {classes[place]}"
        for rank, (value, place) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True))
        if not rank or value > float(target.min())
    )
