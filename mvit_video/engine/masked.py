"""The objective of masked pre-training: the published loss, a mean over all hidden tokens of a step."""

# B clips (B, 3, T, H, W); masks and weights (B, t, h, w); predictions and targets (B, T', H', W', D).

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mvit_video.config.schema import Config, PretrainSettings
from mvit_video.data.masking import Window, hidden_part
from mvit_video.engine.distributed import sum_on_device
from mvit_video.errors import ConfigError
from mvit_video.model.maskfeat import errors_of_cells, masked_targets
from mvit_video.model.registry import masked_form

NEED_LABELS = (  # setting, value that does without labels, as it is written
    ("train.loss", "cross_entropy", "cross_entropy"),
    ("train.class_weights", None, "null"),
    ("data.sampling_balance", "none", "none"),
    ("train.trainable", "all", "all"),
    ("train.teacher", None, "null"),
    ("train.resolutions", (), "[]"),
    ("train.mixup", 0, "0"),
    ("train.cutmix", 0, "0"),
    ("evaluation.after_training", False, "false"),
)


def check_pretraining(config: Config, auto: Sequence[str]) -> None:
    """Raise ConfigError for a network that cannot be pre-trained, settings that need labels, and `auto` ones (see `labelled_auto`)."""
    masked_form(config.model.name)
    found = [
        (name, value, written) for name, without, written in NEED_LABELS if (value := _of(config, name)) != without
    ]
    if found:
        values = ", ".join(f"{name} = {value}" for name, value, _ in found)
        cure = " ".join(f"{name}={written}" for name, _, written in found)
        need = "needs" if len(found) == 1 else "need"
        raise ConfigError(f"{values}: {need} labels, which pre-training does not use: set {cure}")
    if auto:
        values = "a value" if len(auto) == 1 else "values"
        raise ConfigError(
            f"{', '.join(auto)} = auto: its values were chosen for training with labels: set {values} for pre-training, as in "
            "configs/custom/pretrain.yaml"
        )


def _of(config: Config, name: str) -> Any:
    section, _, key = name.partition(".")
    return getattr(getattr(config, section), key)


def mask_window(config: Config, network: nn.Module) -> Window:
    """The grid (t, h, w) of the mask. Raises ConfigError where cells do not fit the clips of `config` or the network's tokens."""
    settings, (height, width), cell = config.pretrain, config.data.crop_hw, config.pretrain.mask_cell
    strides, frame_stride = _strides(network)
    tokens, frames = max(strides), -(-config.data.num_frames // frame_stride)
    window = frames, height // cell, width // cell
    if cell % tokens or height % cell or width % cell:
        raise ConfigError(
            f"pretrain.mask_cell = {cell}: cells of {cell} pixels do not fit data.crop_size = {config.data.crop_size} and tokens of "
            f"{tokens} pixels: {_fitting_cells(config, tokens, frames)}"
        )
    if (part := hidden_part(settings, window)) != "some":
        raise ConfigError(
            f"pretrain.mask = {settings.mask}: masks of pretrain.mask_ratio = {settings.mask_ratio} hide {part} of "
            f"{'×'.join(map(str, window))} cells (times×rows×columns) of {cell} pixels: {_CURES[settings.mask == 'frames', part]}"
        )
    if settings.gaussian_window and (height % settings.gaussian_window or width % settings.gaussian_window):
        raise ConfigError(
            f"pretrain.gaussian_window = {settings.gaussian_window}: does not divide data.crop_size = {config.data.crop_size}: "
            "set it to a divisor, or to 0 for none"
        )
    return window


_CURES = {  # whole frames?, what is hidden
    (False, "nothing"): "lower pretrain.mask_cell, or raise pretrain.mask_ratio or data.crop_size",
    (False, "all"): "lower pretrain.mask_ratio or pretrain.mask_cell",
    (True, "nothing"): "raise pretrain.mask_ratio or data.num_frames",
    (True, "all"): "lower pretrain.mask_ratio, or raise data.num_frames",
}


def _fitting_cells(config: Config, tokens: int, frames: int) -> str:
    """What to set where cells do not fit."""
    height, width = config.data.crop_hw
    if height % tokens or width % tokens:
        return f"let data.crop_size be a multiple of {tokens}"
    sides = [each for each in range(tokens, min(height, width) + 1, tokens) if not (height % each or width % each)]
    parts = {each: hidden_part(config.pretrain, (frames, height // each, width // each)) for each in sides}
    fitting = [str(each) for each, part in parts.items() if part == "some"]
    return f"set it to {' or '.join(fitting[:6])}" if fitting else "choose another data.crop_size"


def _strides(network: nn.Module) -> tuple[tuple[int, ...], int]:
    """Of a pre-training form: pixels from token to token behind each predicting block, and frames from patch to patch."""
    form: Any = network
    return form.token_strides, form.patch_stride[0]


def hidden_weights(clips: Tensor, masks: Tensor, rng: np.random.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Clips as they are, and weights of the masks' cells: 0, or clips per hidden cell of the whole step where 1.

    So the mean over all clips of `MaskedObjective`'s losses is the mean over all hidden cells, however a step is split. Takes
    the place of mixing; every process must call this.
    """
    hidden = masks.float()
    cells, number = sum_on_device(torch.stack([hidden.sum(), hidden.new_full((), len(masks))]))
    return clips, hidden * (number / cells.clamp(min=1))


class MaskedObjective:
    """Computes the loss of each clip: the error of its hidden cells, by their weights; several blocks' losses are added.

    Args:
        targets: clips -> targets of each predicting block.
        scale: factor of the loss; pixels are averaged over the blocks.
    """

    resolutions = ()
    counts = None

    def __init__(self, targets: Callable[[Tensor], list[Tensor]], scale: float = 1.0) -> None:
        self.targets, self.scale = targets, scale

    def parts(
        self,
        network: nn.Module | Callable[..., Any],
        autocast: Callable[[], AbstractContextManager[Any]],
        clips: Tensor,
        weights: Tensor,
    ) -> Iterator[tuple[Tensor, Any]]:
        """(losses (B,), None), once. The network runs under `autocast`; targets and losses are in single precision."""
        with autocast():
            predictions = network(clips, weights > 0)
        errors = [
            errors_of_cells(prediction.float(), target, weights)
            for prediction, target in zip(predictions, self.targets(clips), strict=True)
        ]
        yield self.scale * (torch.stack(errors).sum(0) * weights).sum((1, 2, 3)), None

    def hits(self, predictions: Any, weights: Tensor) -> Tensor:
        """There are no classes to hit: zeros (B,)."""
        return weights.new_zeros(len(weights))


def masked_objective_from(settings: PretrainSettings, network: nn.Module) -> MaskedObjective:
    """The objective of a `MaskedMViT`."""
    strides, frame_stride = _strides(network)

    def targets(clips: Tensor) -> list[Tensor]:
        return masked_targets(clips, settings.target, frame_stride, strides, settings.gaussian_window)

    return MaskedObjective(targets, 1 / len(strides) if settings.target == "pixels" else 1.0)
