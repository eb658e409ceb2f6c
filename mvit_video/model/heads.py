"""Tokens split into heads, as attention and its operators exchange them."""

from typing import NamedTuple

import torch
from torch import Tensor

Grid = tuple[int, int, int]


class Heads(NamedTuple):
    """Tokens split into heads, with class token and grid apart: cls (B, c, h, d), grid (B, T*H*W, h, d), thw its size."""

    cls: Tensor
    grid: Tensor
    thw: Grid

    def joined(self) -> Tensor:
        """(B, N, h, d), class token first."""
        return torch.cat([self.cls, self.grid], 1) if self.cls.shape[1] else self.grid
