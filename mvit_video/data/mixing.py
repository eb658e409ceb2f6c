"""Mixup and CutMix on a batch of clips, with targets to match. All frames of a clip are mixed alike."""

# B clips, C channels, T frames, H/W pixels, K classes. Clips (B, C, T, H, W); targets (B, K).

from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from mvit_video.config.schema import TrainSettings
from mvit_video.data.draws import generator


class MixParameters(NamedTuple):
    """How a batch is mixed with itself in reverse order: each clip keeps `share`; with a box (top, left, bottom, right),
    the box comes from the other clip, and `share` is the rest of the image."""

    share: float = 1.0
    box: tuple[int, int, int, int] | None = None


class Mixer:
    """Draws a mix for each batch as timm and PySlowFast do; without mixup and cutmix it makes the targets alone.

    Args:
        mixup, cutmix: the alphas of their beta distributions; 0 is off.
        switch: share of the mixed batches that take CutMix where both are on.
        probability: share of the batches that are mixed at all.
        label_smoothing: share of the target that is spread evenly over all classes.
    """

    def __init__(
        self,
        num_classes: int,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        switch: float = 0.5,
        probability: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        self.mixup, self.cutmix, self.switch, self.probability = mixup, cutmix, switch, probability

    def __call__(self, clips: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Clips and labels (B,), or label sets (B, K) -> mixed clips and targets (B, K). The clips given are left as they are."""
        targets = smooth_targets(labels, self.num_classes, self.label_smoothing)
        return apply_mix(clips, targets, self.draw(rng, clips.shape[-2], clips.shape[-1]))

    def draw(self, rng: np.random.Generator, height: int, width: int) -> MixParameters:
        """Nothing, mixup, or cutmix; both alphas above 0 leave the choice to `switch`, the chance of cutmix."""
        mixed, switched = rng.random() < self.probability, rng.random() < self.switch
        if not mixed or not (self.mixup or self.cutmix):
            return MixParameters()
        if self.cutmix and (switched or not self.mixup):
            return draw_box(rng, float(rng.beta(self.cutmix, self.cutmix)), height, width)
        return MixParameters(float(rng.beta(self.mixup, self.mixup)))


def mixer_from(settings: TrainSettings, num_classes: int) -> Mixer:
    mixing = settings.mixup, settings.cutmix, settings.mix_switch, settings.mix_probability
    return Mixer(num_classes, *mixing, settings.label_smoothing)


def mix_generator(seed: int, step: int) -> np.random.Generator:
    """The generator of a step's mix, the same on every rank: each step has one mix, however many share it."""
    return generator("mix", seed, step)


def draw_box(rng: np.random.Generator, share: float, height: int, width: int) -> MixParameters:
    """A box of 1 − `share` of the image about a random centre, cut at the edges; the share is what is left then."""
    side = np.sqrt(1 - share)
    box_h, box_w = int(height * side), int(width * side)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = max(y - box_h // 2, 0), min(y + (box_h + 1) // 2, height)
    left, right = max(x - box_w // 2, 0), min(x + (box_w + 1) // 2, width)
    return MixParameters(1 - (bottom - top) * (right - left) / (height * width), (top, left, bottom, right))


def smooth_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Labels (B,) or label sets (B, K) -> targets (B, K): 1 − `smoothing` for each label, and `smoothing` spread evenly."""
    hot = labels if labels.ndim == 2 else F.one_hot(labels, num_classes)
    return hot.float() * (1 - smoothing) + smoothing / num_classes


def apply_mix(clips: Tensor, targets: Tensor, mix: MixParameters) -> tuple[Tensor, Tensor]:
    """Clips and targets, each mixed with those of the batch in reverse order."""
    if mix.share == 1:
        return clips, targets
    if mix.box is None:
        clips = clips.mul(mix.share).add_(clips.flip(0).mul_(1 - mix.share))
    else:
        top, left, bottom, right = mix.box
        other = clips[..., top:bottom, left:right].flip(0)
        clips = clips.clone()
        clips[..., top:bottom, left:right] = other
    return clips, targets * mix.share + targets.flip(0) * (1 - mix.share)
