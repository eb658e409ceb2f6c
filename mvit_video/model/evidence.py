"""The maps that a network's logits are computed from, for those who ask what speaks for a class.

Each function here makes a capability `evidence`: (network, clips) -> logits, and maps (B, C, T, H, W) that they depend on,
the first of which is a leaf: nothing before it is differentiated.
"""

# B clips, C channels, N tokens, T/H/W token grid

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from mvit_video.model.registry import Evidence


def entering(blocks: Callable[[nn.Module], Sequence[nn.Module]], channels_last: bool = False) -> Evidence:
    """What enters each of these blocks, those of the last stage, say.

    A block's first argument is a map (B, C, T, H, W), with `channels_last` (B, T, H, W, C); or tokens (B, N, C), class tokens
    first, whose grid (T, H, W) is then the second.
    """

    def evidence(network: nn.Module, clips: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps: list[Tensor] = []

        def catch(block: nn.Module, arguments: tuple) -> tuple:
            x, rest = arguments[0], arguments[1:]
            if not maps:
                x = x.detach()
            grid, back = _from_tokens(x, rest[0]) if x.ndim == 3 else _from_map(x, channels_last)
            if not maps:
                grid.requires_grad_(True)
            maps.append(grid)
            return (back(grid), *rest)

        hooks = [block.register_forward_pre_hook(catch) for block in blocks(network)]
        try:
            with torch.enable_grad():
                return network(clips), maps
        finally:
            for hook in hooks:
                hook.remove()

    return evidence


def _from_tokens(x: Tensor, thw: Any) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The map of tokens, and the way back."""
    cls, tokens = x.split([x.shape[1] - prod(thw), prod(thw)], 1)
    grid = tokens.transpose(1, 2).unflatten(2, thw)
    return grid, lambda grid: torch.cat([cls, grid.flatten(2).transpose(1, 2)], 1)


def _from_map(x: Tensor, channels_last: bool) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    if not channels_last:
        return x, lambda grid: grid
    return x.permute(0, 4, 1, 2, 3), lambda grid: grid.permute(0, 2, 3, 4, 1)
