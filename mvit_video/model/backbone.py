"""What network families share: the MLP, the base class of video networks, and checks of their arguments."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mvit_video.errors import ConfigError, InputError
from mvit_video.model.pretrained import Pretrained
from mvit_video.model.registry import Capabilities, register_model


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden_dim: int, activation: Callable[[], nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = activation()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class VideoBackbone(Pretrained, nn.Module, ABC):
    """A network of stages: clips (B, 3, T, H, W), RGB, normalised -> logits. A network of one frame also takes (B, 3, H, W).

    Subclasses implement `stage_maps(clips)`, the maps after each stage, and `feature(map)`, the head's input.
    """

    head: nn.Module
    stage_dims: tuple[int, ...]

    def __init__(self, num_frames: int, num_classes: int, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.num_frames, self.num_classes, self.in_channels = num_frames, num_classes, 3
        self.activation_checkpointing = activation_checkpointing

    def forward(self, clips: Tensor, with_feature: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (B, K); with `with_feature` also `pooled`, from one call, which wrappers such as DDP require."""
        feature = self.pooled(clips)
        return (self.head(feature), feature) if with_feature else self.head(feature)

    def pooled(self, clips: Tensor) -> Tensor:
        """The head's input (B, C)."""
        return self.feature(self.stage_maps(self.checked(clips))[-1])

    def forward_features(self, clips: Tensor) -> list[Tensor]:
        """The map after each stage: (B, C, T', H', W') with C as in `stage_dims`."""
        return self.stage_maps(self.checked(clips))

    @abstractmethod
    def stage_maps(self, clips: Tensor) -> list[Tensor]: ...

    @abstractmethod
    def feature(self, grid: Tensor) -> Tensor: ...

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.activation_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)

    def checked(self, clips: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W), or InputError."""
        if clips.ndim == 4 and self.num_frames == 1:
            clips = clips.unsqueeze(2)
        if clips.ndim != 5 or clips.shape[1] != self.in_channels:
            raise InputError(
                f"clips have shape {tuple(clips.shape)}, expected (batch, {self.in_channels}, frames, height, width)"
            )
        if not clips.is_floating_point():
            raise InputError(f"clips are {clips.dtype}, expected floating point values, normalised by mean and std")
        return clips


def drop_path_rates(depths: Sequence[int], rate: float) -> list[list[float]]:
    """Stochastic depth of each block of each stage: grows linearly from 0 at the first block to `rate` at the last."""
    total, first, rates = sum(depths), 0, []
    for depth in depths:
        rates.append([rate * (first + k) / max(total - 1, 1) for k in range(depth)])
        first += depth
    return rates


def height_and_width(crop_size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
    return height, width


def check_stages(depths: Sequence[int], **per_stage: Sequence[Any]) -> None:
    """Raise ConfigError unless each list has one number above 0 per stage; None means that a stage does without."""
    for name, values in {"depths": depths, **per_stage}.items():
        if len(values) != len(depths) or not depths:
            raise ConfigError(
                f"{name}={tuple(values)}: expected {len(depths) or 'some'} values, one for each stage of depths={tuple(depths)}"
            )
        if not all(value is None or (isinstance(value, int | float) and value > 0) for value in values):
            raise ConfigError(f"{name}={tuple(values)}: expected numbers above 0")


def check_head_widths(*, embed_dims: Sequence[int], num_heads: Sequence[int]) -> None:
    """Raise ConfigError if a stage's width is not a multiple of its heads."""
    for stage, (dim, heads) in enumerate(zip(embed_dims, num_heads, strict=True), start=1):
        if heads < 1 or dim % heads:
            raise ConfigError(f"num_heads={heads} in stage {stage}: expected a divisor of its width {dim}")


def register_family(
    family: str,
    build: type[nn.Module],
    sizes: Mapping[str, Mapping[str, Any]],
    capabilities: Capabilities,
    source: str,
) -> None:
    """For each size FAMILY_SIZE_in1k, the image network of 1,000 classes, and FAMILY_SIZE_16x4, the video network."""
    for size, arguments in sizes.items():
        image = {**arguments, "num_frames": 1, "num_classes": 1000}
        register_model(f"{family}_{size}_in1k", build, image, capabilities, source=source)
        register_model(f"{family}_{size}_16x4", build, arguments, capabilities, sampling_rate=4, source=source)
