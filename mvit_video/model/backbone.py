"""What network families share: the MLP, the base class of video networks, and their names by size."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mvit_video.errors import ConfigError, InputError, MvitVideoError
from mvit_video.model.checks import check_counts, check_rates, check_sizes, check_switches
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
    smallest_side: int = 1
    """Pixels: the least height and width of a clip."""

    def __init__(
        self,
        num_frames: int,
        crop_size: int | Sequence[int],
        num_classes: int,
        drop_path_rate: float,
        dropout_rate: float,
        activation_checkpointing: bool,
    ) -> None:
        """Checks and keeps what every family takes. Raises ConfigError."""
        super().__init__()
        check_counts(num_frames=num_frames, num_classes=num_classes)
        check_sizes(crop_size=crop_size)
        check_rates(drop_path_rate=drop_path_rate, dropout_rate=dropout_rate)
        check_switches(activation_checkpointing=activation_checkpointing)
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
        self.check_size((clips.shape[3], clips.shape[4]), InputError)
        return clips

    def check_size(self, size: tuple[int, int], error: type[MvitVideoError] = ConfigError) -> None:
        """Raise an error, naming what is allowed, for a height and width that the network cannot take."""
        if min(size) < self.smallest_side:
            least = f"{self.smallest_side}×{self.smallest_side}"
            raise error(
                f"images of {size[0]}×{size[1]} are too small for this network: expected at least {least} pixels"
            )


def height_and_width(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def drop_path_rates(depths: Sequence[int], rate: float) -> list[list[float]]:
    """Stochastic depth of each block of each stage: grows linearly from 0 at the first block to `rate` at the last."""
    total, first, rates = sum(depths), 0, []
    for depth in depths:
        rates.append([rate * (first + k) / max(total - 1, 1) for k in range(depth)])
        first += depth
    return rates


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
