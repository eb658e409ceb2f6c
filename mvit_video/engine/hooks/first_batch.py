"""Image of the first batch, so that a wrong crop, colour order, label or flip is seen before a day of training."""

# B clips, C=3 channels RGB, T frames, H/W pixels, K classes. Clips float32 (B, C, T, H, W); targets (B, K).

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mvit_video.config.schema import InputSettings
from mvit_video.engine.distributed import is_rank_zero
from mvit_video.engine.loop import Hook, Loop
from mvit_video.engine.metrics_log import write_run_file
from mvit_video.figures import frame_strips, png

FIRST_BATCH = "first_batch.png"
MAX_CLIPS, MAX_FRAMES = 8, 8

MixStep = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class DrawFirstBatch(Hook):
    """Draws clips of the first batch with their labels, as they enter the step and after mixing; rank 0 only.

    `step_mixer(step)` mixes a step's clips and labels; see `Trainer.step_mixer`.
    """

    def __init__(
        self, run: Path, classes: Sequence[str], input: InputSettings, step_mixer: Callable[[int], MixStep]
    ) -> None:
        self.path, self.classes, self.input, self.step_mixer = run / FIRST_BATCH, classes, input, step_mixer

    def before_step(self, loop: Loop) -> None:
        if is_rank_zero() and len(loop.batch["video"]) and not self.path.exists():
            mix = self.step_mixer(loop.done)
            write_run_file(self.path, png(batch_figure(loop.batch, self.classes, self.input, mix)))


def batch_figure(batch: dict[str, Any], classes: Sequence[str], input: InputSettings, mix: MixStep) -> Figure:
    """Draw a strip of frames per clip, and if mixing changes them a second one with its target."""
    clips, labels, names = batch["video"], batch["label"], batch["video_name"]
    count = min(MAX_CLIPS, len(clips))
    strips = [
        (denormalised_frames(clips[place], input), f"{label_text(labels[place], classes)}   ({names[place]})")
        for place in range(count)
    ]
    mixed, targets = mixed_ends(clips, labels, count, mix)
    where = "as it enters the step: cropped and augmented, with mean and std undone"
    if not torch.equal(mixed[:count], clips[:count]):
        where += "; below, the same clips mixed, with their targets"
        strips += [
            (denormalised_frames(clip, input), target_text(target, classes, 2 * labels.ndim))
            for clip, target in zip(mixed[:count], targets[:count], strict=True)
        ]
    shown = f"{min(MAX_FRAMES, clips.shape[2])} of {clips.shape[2]} frames, {clips.shape[4]}×{clips.shape[3]} pixels"
    return frame_strips(strips, f"First batch {where} ({shown})")


def label_text(label: Tensor, classes: Sequence[str]) -> str:
    """The name of a label (), or of each of a label set (K,)."""
    places = label.nonzero().flatten().tolist() if label.ndim else [int(label)]
    return ", ".join(classes[place] for place in places)


def mixed_ends(clips: Tensor, labels: Tensor, count: int, mix: MixStep) -> tuple[Tensor, Tensor]:
    """Mix only the first `count` clips and targets of a batch.

    Clip i is mixed with clip B − 1 − i, so only the two ends of the batch are needed.
    """
    if len(clips) > 2 * count:
        clips, labels = (torch.cat([part[:count], part[-count:]]) for part in (clips, labels))
    mixed, targets = mix(clips, labels)
    return mixed[:count], targets[:count]


def denormalised_frames(clip: Tensor, input: InputSettings) -> np.ndarray:
    """Undo the normalisation: (C, T, H, W) -> uint8 (T', H, W, C), T' frames evenly spaced over the clip."""
    chosen = np.unique(np.linspace(0, clip.shape[1] - 1, MAX_FRAMES).round().astype(int))
    mean, std = (np.array(values, np.float32) for values in (input.mean, input.std))
    frames = clip[:, chosen].float().cpu().permute(1, 2, 3, 0).numpy() * std + mean
    return (frames.clip(0, 1) * 255).round().astype(np.uint8)


def target_text(target: Tensor, classes: Sequence[str], most: int = 2) -> str:
    """The `most` largest parts of a target, `0.63 clap + 0.28 wave`; only one if the others are label smoothing."""
    best = target.topk(min(most, len(target)))
    return " + ".join(
        f"{value:.2f} {classes[place]}"
        for rank, (value, place) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True))
        if not rank or value > float(target.min())
    )
