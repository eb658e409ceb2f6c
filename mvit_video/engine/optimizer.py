"""AdamW as the recipes use it."""

import torch
from torch import nn

from mvit_video.config.schema import TrainSettings


def build_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW that decays matrices, filters, position tables and the class token, not biases and norms (1-D)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.base_lr, betas=settings.betas, eps=1e-8, fused=True)
