"""The number format that a network computes in: a word and a device become a `Precision` here and nowhere else.

Half precision is autocast's: products and convolutions are in bf16 or fp16, while norms, position tables and whatever sums
stay in fp32. For inference the weights of linear layers and convolutions are rounded once, as autocast would round them
at every call, so that the results are its bits.
"""

import logging
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from mvit_video.errors import ConfigError
from mvit_video.model.registry import MODELS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ROUNDED = (nn.Linear, _ConvNd)  # layers whose weights autocast rounds

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Precision:
    """fp32, bf16 or fp16 on a device. `resolve_precision` makes one that the device has."""

    name: str
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """Of products and convolutions."""
        return DTYPES[self.name]

    def autocast(self, cached: bool = True) -> AbstractContextManager[Any]:
        """What networks run in. Weights that it rounds are `cached` until it ends."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype, cache_enabled=cached)

    def held(self, model: nn.Module) -> nn.Module:
        """The network for inference under `autocast`: itself in fp32, else a copy with rounded weights.

        Only linear layers and convolutions have weights of their own in the copy; all else is shared. A network of a plugin,
        or one that is not registered, is given back as it is: it may switch autocast off inside.
        """
        name = model.__dict__.get("registered_name")
        if self.name == "fp32" or name is None or MODELS.plugin_of(name) is not None:
            return model
        kept: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        for module in model.modules():
            if isinstance(module, ROUNDED):
                for weight in module.parameters(recurse=False):
                    kept[id(weight)] = nn.Parameter(weight.detach().to(self.dtype), weight.requires_grad)
        return deepcopy(model, kept)

    def __str__(self) -> str:
        """For records: the name, and of fp32 on a GPU what TF32 is on for."""
        if self.name != "fp32" or self.device.type != "cuda":
            return self.name
        settings = {"products": torch.backends.cuda.matmul, "convolutions": torch.backends.cudnn.conv}  # type: ignore[attr-defined]
        rounded = [what for what, setting in settings.items() if setting.fp32_precision == "tf32"]
        return f"fp32, TF32 for {' and '.join(rounded)}" if rounded else "fp32, TF32 off"


def resolve_precision(word: str, device: torch.device, option: str = "precision") -> Precision:
    """`auto` is bf16 on GPUs that have it, else fp32. ConfigError, which names the `option`, for what the device lacks."""
    if word == "auto":
        return Precision("bf16" if device.type == "cuda" and _has_bf16() else "fp32", device)
    if word not in DTYPES:
        raise ConfigError(f"{option} '{word}' is unknown: choose from auto, {', '.join(DTYPES)}")
    lacks_bf16 = word == "bf16" and device.type == "cuda" and not _has_bf16()
    if lacks_bf16 or (word != "fp32" and not torch.amp.is_autocast_available(device.type)):
        raise ConfigError(f"{option} {word}: device '{device}' does not compute in it: use auto or fp32")
    if word == "fp16" and device.type == "cpu":
        _tell_slow(option)
    return Precision(word, device)


@cache
def _tell_slow(option: str) -> None:
    _logger.warning(f"{option} fp16: attention in fp16 is many times slower on a CPU than in fp32: use auto or bf16")


def _has_bf16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)
