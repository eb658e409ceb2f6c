"""Exponential moving average of a network's weights."""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """average = d · average + (1 − d) · weights after each step, with d = min(decay, (1 + step) / (10 + step)).

    The smaller decay of the first steps lets short runs forget the initial weights. `model` is a copy in evaluation
    mode; buffers, such as the statistics of batch norms, are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Update the average with the weights after `step` (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        average = get_ema_multi_avg_fn(decay)
        average(list(self.model.parameters()), list(model.parameters()), None)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
