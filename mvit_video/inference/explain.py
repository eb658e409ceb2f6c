"""Explain a prediction: which regions and moments are evidence for a class, as a heat map over the frames.

Gradient times activation at each place (HiResCAM, arXiv 2011.08891), on the maps that the network names as its evidence (those
that enter the blocks of an MViT's last stage): the gradient of the class's logit times what the activation differs from its
mean over the clip. In each channel only what speaks for the class counts (as in LayerCAM, doi 10.1109/TIP.2021.3089943), and
the channels are summed.
"""

# B clips, C channels, T/H/W clip or token grid, N tokens

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvit_video.config.schema import InputSettings
from mvit_video.data.dataset import view_indices
from mvit_video.errors import ConfigError, did_you_mean
from mvit_video.inference.predictor import Prediction, Predictor, groups, open_video
from mvit_video.inference.windows import SlidingClips, Window, WindowPlan, plan_windows, shown_at
from mvit_video.model.registry import capabilities_of, lacks

FULL_HEAT = 0.99  # the share of a clip's places and moments that are below full heat


@dataclass(frozen=True)
class HeatClip:
    """A clip's heat (T', H', W') from 0 to 1 over the frames `numbers` (T,) of the video, and the class's score in it."""

    numbers: np.ndarray
    heat: np.ndarray
    score: float

    def at(self, number: int) -> np.ndarray:
        """The heat (H', W') at a frame of the video, between the clip's frames by linear interpolation."""
        slices = len(self.heat)
        place = np.interp(number, self.numbers, np.arange(len(self.numbers)))
        place = np.clip((place + 0.5) * slices / len(self.numbers) - 0.5, 0, slices - 1)
        before, share = int(place), place - int(place)
        return (1 - share) * self.heat[before] + share * self.heat[min(before + 1, slices - 1)]


@dataclass(frozen=True)
class Explanation:
    """Heat of the class `label` over a whole video, from clips that follow one another.

    `prediction` is what the predictor says. The heat of a clip is relative to its own hottest hundredth, and fainter where
    the class scores lower than in the best clip: a logit's gradients are no measure between clips. It covers the centre
    crop, `box` (top, left, height, width) of each frame, as shares of the frame's height and width.
    """

    label: str
    prediction: Prediction
    clips: tuple[HeatClip, ...]
    box: tuple[float, float, float, float]
    shown: np.ndarray
    """Seconds from the first frame to each one, and to the end of the last: (frames + 1,)."""

    @property
    def best(self) -> HeatClip:
        """The clip in which the class scores highest."""
        return max(self.clips, key=lambda clip: clip.score)

    def clip_at(self, number: int) -> HeatClip:
        """The clip that shows a frame: the first that does not end before it."""
        place = bisect_left(self.clips, number, key=lambda clip: clip.numbers[-1])
        return self.clips[min(place, len(self.clips) - 1)]


def explain_video(predictor: Predictor, path: str | Path, label: str | None = None) -> Explanation:
    """Compute the heat map of a video for a class, by default the predicted one.

    Raises DecodeError for a file that cannot be decoded, ConfigError for an unknown class and for networks of others.
    """
    model, card = predictor.model, predictor.card
    if capabilities_of(model).evidence is None:
        what = "cannot be explained: it does not expose the maps that its logits depend on"
        raise lacks(card.name, "evidence", what, "use one of our own networks, such as mvitv2_s_16x4")
    if label is not None and label not in card.classes:
        near = did_you_mean(label, card.classes)
        raise ConfigError(f"label '{label}' is not one of the checkpoint's {len(card.classes)} classes{near}")
    [prediction] = predictor(path)
    label = label or prediction.label
    place = card.classes.index(label)
    clips: list[HeatClip] = []
    with open_video(path, predictor.guard, again=True) as reader:
        plan = _whole_video(card.preprocessing, reader.fps, len(reader))
        sliding = SlidingClips(card.preprocessing, plan, last=len(reader) - plan.length)
        windows = (window for number, frame in enumerate(reader.stream()) for window in sliding.push(number, frame))
        for batch in groups(windows, lambda window: 1, predictor.views_at_once):
            clips += _heat_clips(predictor, batch, plan, place)
        height, width = reader.frames([0])[0].shape[:2]
        shown = shown_at(reader)
    best = max(clip.score for clip in clips)
    return Explanation(
        label,
        prediction,
        tuple(_scaled(clip, best) for clip in clips),
        crop_box(card.preprocessing, height, width),
        shown,
    )


def _scaled(clip: HeatClip, best: float) -> HeatClip:
    """Scale heat by the clip's score relative to the best clip's."""
    full = float(np.quantile(clip.heat, FULL_HEAT)) or 1.0
    return HeatClip(clip.numbers, (clip.heat / full).clip(0, 1) * (clip.score / (best or 1.0)), clip.score)


def _heat_clips(predictor: Predictor, windows: list[Window], plan: WindowPlan, label: int) -> Iterator[HeatClip]:
    clips = predictor.normalise.joined([window.pixels[None] for window in windows], predictor.device)
    with predictor.precision.autocast():
        heat, logits = class_heat(predictor.model, clips, label)
    scores = predictor.activation(logits.float())[:, label].tolist()
    for window, one, score in zip(windows, heat.float().cpu().numpy(), scores, strict=True):
        yield HeatClip(window.start + plan.taken, one, score)


def class_heat(model: nn.Module, clips: Tensor, label: int) -> tuple[Tensor, Tensor]:
    """Heat of class number `label`: clips (B, 3, T, H, W) -> heat (B, T', H', W') from 0 up, logits (B, K)."""
    evidence = capabilities_of(model).evidence
    assert evidence is not None
    with torch.enable_grad(), _frozen(model):
        logits, maps = evidence(model, clips)
        gradients = torch.autograd.grad(logits[:, label].sum(), maps)
    heat = [
        _contributions(one.detach().float(), gradient.float()) for one, gradient in zip(maps, gradients, strict=True)
    ]
    finest = heat[0].shape[1:]
    return torch.stack([_spread(one, finest) for one in heat]).sum(0), logits.detach()


def _contributions(grid: Tensor, gradient: Tensor) -> Tensor:
    """Contribution of each position of a map (B, C, T, H, W) to the logit: (B, T, H, W)."""
    added = (grid - grid.mean((2, 3, 4), keepdim=True)) * gradient
    return added.relu().sum(1)


def _spread(heat: Tensor, size: Sequence[int]) -> Tensor:
    """Upsample heat (B, T, H, W) and keep its sum."""
    finer = F.interpolate(heat[:, None], size=tuple(size), mode="trilinear", align_corners=False)[:, 0]
    return finer * (heat[0].numel() / finer[0].numel())


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Disable gradients of parameters, so that nothing before the last block is kept for the backward pass."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _whole_video(settings: InputSettings, fps: float, video_frames: int) -> WindowPlan:
    """Clips that follow one another; for a model that samples whole videos, one."""
    if settings.sampling == "segment":
        return WindowPlan(video_frames, video_frames, view_indices(video_frames, fps, settings, 1)[0])
    plan = plan_windows(settings, fps, video_frames)
    return WindowPlan(plan.length, plan.length, plan.taken)


def crop_box(settings: InputSettings, height: int, width: int) -> tuple[float, float, float, float]:
    """The network's centre crop of a frame: (top, left, height, width) as fractions of its sides."""
    crop_height, crop_width = settings.crop_hw
    scale = max(settings.short_side / min(height, width), crop_height / height, crop_width / width)
    tall, wide = crop_height / (scale * height), crop_width / (scale * width)
    return (1 - tall) / 2, (1 - wide) / 2, tall, wide
