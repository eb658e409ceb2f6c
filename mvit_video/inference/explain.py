"""Why: which places and moments of a video speak for a class, as a heat map over its frames.

HiResCAM (arXiv 2011.08891) on the tokens that enter the last block, the last ones that all reach the class token: at
each place the gradient of the class's logit times the activations, summed over the channels; what is negative speaks
against the class and counts as 0.
"""

# B clips, C channels, T/H/W clip or token grid, N tokens

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mvit_video.config.schema import Preprocessing
from mvit_video.data.sampling import segment_indices
from mvit_video.errors import ConfigError, did_you_mean
from mvit_video.inference.predictor import Prediction, Predictor, groups, open_video
from mvit_video.inference.windows import SlidingClips, Window, WindowPlan, plan_windows
from mvit_video.model.mvit import MViT


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

    `prediction` is what the predictor says; the heat of all clips is relative to the greatest of them, and covers the
    centre crop, `box` (top, left, height, width) of each frame, as shares of the frame's height and width.
    """

    label: str
    prediction: Prediction
    clips: tuple[HeatClip, ...]
    box: tuple[float, float, float, float]
    fps: float

    @property
    def best(self) -> HeatClip:
        """The clip in which the class scores highest."""
        return max(self.clips, key=lambda clip: clip.score)

    def clip_at(self, number: int) -> HeatClip:
        """The clip that shows a frame: the first that does not end before it."""
        place = bisect_left(self.clips, number, key=lambda clip: clip.numbers[-1])
        return self.clips[min(place, len(self.clips) - 1)]


def explain_video(predictor: Predictor, path: str | Path, label: str | None = None) -> Explanation:
    """Where and when a video speaks for a class, by default the predicted one.

    Raises DecodeError for a file that cannot be decoded, ConfigError for an unknown class and for networks of others.
    """
    model, card = predictor.model, predictor.card
    if not isinstance(model, MViT):
        raise ConfigError(f"'{card.name}' cannot be explained: heat maps are made for the MViT networks only")
    if label is not None and label not in card.classes:
        near = did_you_mean(label, card.classes)
        raise ConfigError(f"label '{label}' is none of the checkpoint's {len(card.classes)} classes{near}")
    [prediction] = predictor(path)
    label = label or prediction.label
    place = card.classes.index(label)
    clips: list[HeatClip] = []
    with open_video(path) as reader:
        plan = _whole_video(card.preprocessing, reader.fps, len(reader))
        sliding = SlidingClips(card.preprocessing, plan, last=len(reader) - plan.length)
        windows = (window for number, frame in enumerate(reader.stream()) for window in sliding.push(number, frame))
        for batch in groups(windows, lambda window: 1, predictor.views_at_once):
            clips += _heat_clips(model, batch, plan, place, predictor.device)
        height, width = reader.frames([0])[0].shape[:2]
        fps = reader.fps
    greatest = max(float(clip.heat.max()) for clip in clips) or 1.0
    scaled = tuple(HeatClip(clip.numbers, clip.heat / greatest, clip.score) for clip in clips)
    return Explanation(label, prediction, scaled, crop_box(card.preprocessing, height, width), fps)


def _heat_clips(
    model: MViT, windows: list[Window], plan: WindowPlan, label: int, device: torch.device
) -> Iterator[HeatClip]:
    heat, logits = class_heat(model, torch.stack([window.clip for window in windows]).to(device), label)
    scores = logits.float().softmax(1)[:, label].tolist()
    for window, one, score in zip(windows, heat.float().cpu().numpy(), scores, strict=True):
        yield HeatClip(window.start + plan.taken, one, score)


def class_heat(model: MViT, clips: Tensor, label: int) -> tuple[Tensor, Tensor]:
    """HiResCAM of class number `label`: clips (B, 3, T, H, W) -> heat (B, T', H', W') from 0 up, logits (B, K)."""
    caught: list[tuple[Tensor, tuple[int, int, int]]] = []

    def catch(block: nn.Module, arguments: tuple) -> tuple:
        tokens, thw = arguments[0].detach().requires_grad_(True), arguments[1]
        caught.append((tokens, thw))
        return tokens, thw

    hook = model.blocks[-1].register_forward_pre_hook(catch)
    try:
        with torch.enable_grad(), _frozen(model):
            logits = model(clips)
            [(tokens, thw)] = caught
            (gradient,) = torch.autograd.grad(logits[:, label].sum(), tokens)
    finally:
        hook.remove()
    speaks = (gradient * tokens.detach())[:, tokens.shape[1] - thw[0] * thw[1] * thw[2] :].sum(2)  # (B, N)
    return speaks.unflatten(1, thw).relu(), logits.detach()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No gradients of parameters: nothing is then kept for the backward pass before the last block."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _whole_video(settings: Preprocessing, fps: float, video_frames: int) -> WindowPlan:
    """Clips that follow one another; for a model that samples whole videos, one."""
    if settings.sampling == "segment":
        return WindowPlan(video_frames, video_frames, segment_indices(video_frames, settings.num_frames))
    plan = plan_windows(settings, fps, video_frames)
    return WindowPlan(plan.length, plan.length, plan.taken)


def crop_box(settings: Preprocessing, height: int, width: int) -> tuple[float, float, float, float]:
    """What the network sees of a picture: (top, left, height, width) of the centre crop as shares of its sides."""
    scale = settings.short_side / min(height, width)
    tall, wide = settings.crop_hw[0] / (scale * height), settings.crop_hw[1] / (scale * width)
    return (1 - tall) / 2, (1 - wide) / 2, tall, wide
