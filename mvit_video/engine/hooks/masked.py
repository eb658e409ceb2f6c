"""masked.png: masked clips, their targets, and the network's predictions."""

# T' times of tokens, H/W pixels, H'/W' tokens of s pixels, c cells of a histogram to a token's side. A cell is 8×8 pixels.

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mvit_video.config.schema import InputSettings
from mvit_video.engine.checkpoint import Learner
from mvit_video.engine.distributed import is_rank_zero
from mvit_video.engine.loop import Hook, Loop
from mvit_video.engine.masked import MaskedObjective
from mvit_video.engine.metrics_log import write_run_file
from mvit_video.engine.parallel import full_network
from mvit_video.figures import frame_strips, png
from mvit_video.model.maskfeat import BINS, CELL, enlarged
from mvit_video.model.weights.card import ModelCard

MASKED = "masked.png"
MAX_CLIPS, MAX_FRAMES = 2, 8
STROKES = 2 * CELL  # pixels of a drawn cell
GREY = 0.5  # of hidden cells, and how bright visible ones are drawn


class DrawMasked(Hook):
    """Draws clips of the current batch after steps for which `draws` is true. Every process must have it; rank 0 draws."""

    def __init__(
        self,
        run: Path,
        learner: Learner,
        card: ModelCard,
        objective: MaskedObjective,
        draws: Callable[[int], bool],
        train_mode: Callable[[], None],
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.path, self.learner, self.card, self.objective = run / MASKED, learner, card, objective
        self.draws, self.train_mode, self.autocast = draws, train_mode, autocast

    def after_step(self, loop: Loop) -> None:
        if not self.draws(loop.done):
            return
        network = full_network(self.learner.model, self.card)
        if is_rank_zero() and len(loop.batch["video"]):
            device = next(network.parameters()).device
            clips, masks = (loop.batch[name][:MAX_CLIPS].to(device) for name in ("video", "mask"))
            with torch.no_grad(), self.autocast():
                prediction = network.eval()(clips, masks)[-1].float()
            target = self.objective.targets(clips)[-1]
            tensors = clips.cpu(), masks.cpu(), target.cpu(), prediction.cpu()
            when = f"after step {loop.done:,}"
            figure = masked_figure(*tensors, self.card.preprocessing, loop.batch["video_name"], when)
            write_run_file(self.path, png(figure))
        self.train_mode()


def masked_figure(
    clips: Tensor,
    masks: Tensor,
    targets: Tensor,
    predictions: Tensor,
    input: InputSettings,
    names: list[str],
    when: str,
) -> Figure:
    """Four rows a clip: input, masked input, target, prediction; frames are those that patches are centred on."""
    strips = []
    for clip, mask, target, prediction, name in zip(clips, masks, targets, predictions, names, strict=False):
        times = np.unique(np.linspace(0, len(mask) - 1, MAX_FRAMES).round().astype(int))
        frames = _frames(clip, len(mask), input)
        hidden = enlarged(mask[None], frames.shape[1:3])[0].numpy()
        covered = np.where(hidden[..., None], GREY, frames)
        rows = [("input", frames), ("masked input", covered)]
        for what, numbers in (("target", target), ("prediction, where hidden", prediction)):
            rows.append((what, _drawn(numbers, target, frames, hidden)))
        strips += [((_uint8(row[times])), f"{what}   ({name})") for what, row in rows]
    return frame_strips(strips, f"Masked prediction {when}: hidden cells bright, visible ones dim")


def _frames(clip: Tensor, times: int, input: InputSettings) -> np.ndarray:
    """(T', H, W, 3) from 0 to 1, normalisation undone."""
    chosen = clip[:, :: -(-clip.shape[1] // times)].permute(1, 2, 3, 0).numpy()
    return (chosen * np.array(input.std, np.float32) + np.array(input.mean, np.float32)).clip(0, 1)


def _drawn(numbers: Tensor, target: Tensor, frames: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Numbers (T', H', W', D) of hidden tokens as an image, the target's of visible ones beside them, darker."""
    stride = frames.shape[1] // numbers.shape[1]
    in_pixels = numbers.shape[-1] == 3 * stride**2
    places = enlarged(torch.from_numpy(hidden)[None, :, ::stride, ::stride], numbers.shape[1:3])[0, ..., None]
    both = torch.where(places, numbers, target)
    if in_pixels:
        pictures, hidden = _pixels(both, frames, stride), hidden
    else:
        pictures = strokes(both, stride // CELL)
        hidden = hidden.repeat(STROKES // CELL, 1).repeat(STROKES // CELL, 2)
    return pictures * np.where(hidden, 1, GREY)[..., None]


def _pixels(numbers: Tensor, frames: np.ndarray, stride: int) -> np.ndarray:
    """Normalised pixels with each patch's own mean and deviation put back: (T', H, W, 3)."""
    rows, columns = numbers.shape[1:3]
    patches = frames.reshape(len(frames), rows, stride, columns, stride, 3).transpose(0, 1, 3, 2, 4, 5)
    flat = patches.reshape(*patches.shape[:3], -1)
    values = numbers.numpy() * flat.std(-1, ddof=1, keepdims=True) + flat.mean(-1, keepdims=True)
    return values.reshape(patches.shape).transpose(0, 1, 3, 2, 4, 5).reshape(frames.shape).clip(0, 1)


def strokes(histograms: Tensor, cells: int) -> np.ndarray:
    """Histograms (T', H', W', 27·c²) as white strokes along edges, colours averaged: (T', 16·c·H', 16·c·W', 3)."""
    votes = histograms.unflatten(-1, (3, BINS, cells, cells)).clamp(min=0).mean(3)  # (T', H', W', 9, c, c)
    drawn = np.einsum("thwbij,bxy->thixwjy", votes.numpy(), _stamps())
    times, rows, columns = votes.shape[:3]
    grey = drawn.reshape(times, rows * cells * STROKES, columns * cells * STROKES)
    return np.repeat((grey / 0.8).clip(0, 1)[..., None], 3, -1)


def _stamps() -> np.ndarray:
    """A stroke for each bin (9, 16, 16), at right angles to its gradient (sin θ, cos θ), θ = (bin + ½) · 20°."""
    y, x = np.mgrid[:STROKES, :STROKES] - (STROKES - 1) / 2
    turn = ((np.arange(BINS) + 0.5) * np.pi / BINS)[:, None, None]
    away = np.abs(x * np.sin(turn) + y * np.cos(turn))
    along = np.abs(x * np.cos(turn) - y * np.sin(turn))
    return (1.2 - away).clip(0, 1) * (along < STROKES / 2 - 1)


def _uint8(frames: np.ndarray) -> np.ndarray:
    return (frames * 255).round().astype(np.uint8)
