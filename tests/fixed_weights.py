"""Weights and input that anybody can make again from names and shapes (the rule of the reference numbers)."""

import zlib

import numpy as np
import torch
from torch import nn


def fixed_values(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Values that depend on the name and shape alone; made in float64."""
    normal = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    last = key.rsplit(".", 1)[-1]
    if last.startswith("rel_pos_"):
        normal = 0.2 * normal
    elif last in ("cls_token", "mask_token"):
        normal = 0.5 * normal
    elif last == "running_var" or (last == "weight" and len(shape) == 1):
        normal = 1 + 0.1 * normal
    elif key != "input" and len(shape) == 1:
        normal = 0.1 * normal
    elif key != "input":
        normal = normal / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(normal).float()


def with_fixed_weights(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, its tensors filled by name; counters and index tables stay."""
    state = model.state_dict()
    model.load_state_dict(
        {k: fixed_values(k, tuple(v.shape)) if v.is_floating_point() else v for k, v in state.items()}
    )
    return model.eval()
