"""Training augmentations by name: what a plugin adds to those of `transforms.py` (`data.transforms: [NAME, ...]`)."""

# T frames, H/W pixels, C=3 channels RGB

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor

from mvit_video.errors import InputError
from mvit_video.plugins import Registry, calling_module, entered

Transform = Callable[[Tensor, np.random.Generator], Tensor]

TRANSFORMS: Registry[Transform] = Registry("transform")


@overload
def register_transform(name: str) -> Callable[[Transform], Transform]: ...


@overload
def register_transform(name: str, transform: Transform) -> Transform: ...


def register_transform(name: str, transform: Transform | None = None) -> Transform | Callable[[Transform], Transform]:
    """Let `data.transforms` name a training augmentation; also a decorator: `@register_transform("grey")`.

    Args:
        transform: (clip, rng) -> clip. The clip is float32 (C, T, H, W), RGB, from 0 to 1 in whole grey levels, cropped and
            mirrored, not yet normalised, and may be written into; what comes back has its shape and type, and is not
            rounded. Every random draw comes from `rng`, a generator of this transform's own for each sample: whatever else
            is on, workers or a resumed run change no draw.

    Raises ConfigError for a name that is taken.
    """
    return entered(TRANSFORMS, name, transform, calling_module())


@dataclass(frozen=True)
class AddedTransforms:
    """The transforms that `data.transforms` names, in its order. ConfigError for a name that nothing has registered."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in self.names:
            TRANSFORMS.get(name)

    def __call__(self, clip: Tensor, rng: np.random.Generator) -> Tensor:
        """See `register_transform`; nothing is drawn from `rng` itself."""
        for name in self.names:
            made = TRANSFORMS.get(name)(clip, generator_for(f"transform {name}", rng))
            if not isinstance(made, Tensor) or made.shape != clip.shape or made.dtype != torch.float32:
                found = f"{made.dtype} {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
                raise InputError(
                    f"transform '{name}' of the plugin '{TRANSFORMS.plugin_of(name)}' turned a clip float32 "
                    f"{tuple(clip.shape)} into {found}: it must keep type and shape"
                )
            clip = made
        return clip


def generator_for(purpose: str, rng: np.random.Generator) -> np.random.Generator:
    """A generator for a purpose of its own, which follows from what `rng` was seeded with: (seed, epoch, video, repeat)."""
    seeds = rng.bit_generator.seed_seq
    words: Sequence[int] = (*seeds.spawn_key, zlib.crc32(purpose.encode("utf-8")))  # type: ignore[attr-defined]
    return np.random.default_rng(np.random.SeedSequence(seeds.entropy, spawn_key=words))  # type: ignore[attr-defined]
