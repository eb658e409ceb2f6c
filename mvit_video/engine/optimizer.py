"""Optimisers as the recipes use them: weight decay groups and layer-wise learning rates."""

import torch
from torch import nn

from mvit_video.config.schema import TrainSettings
from mvit_video.engine.parallel import is_sharded
from mvit_video.model.registry import capabilities_of, head_of, lacks, name_of


def optimizer_from(settings: TrainSettings, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW (eps 1e-8) or SGD (Nesterov) over `parameter_groups`."""
    groups = parameter_groups(model, settings.weight_decay, settings.layer_decay)
    fused = not is_sharded(model) or None  # PyTorch has no fused SGD for sharded parameters; None lets it choose
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.base_lr, momentum=settings.momentum, nesterov=True, fused=fused)
    return torch.optim.AdamW(groups, lr=settings.base_lr, betas=settings.betas, eps=1e-8, fused=True)


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict]:
    """Group trained parameters by layer and weight decay; `lr_scale` is a group's factor of the learning rate.

    Matrices, filters, position tables and the class token are decayed, biases and norms (1-D) are not. With layer decay,
    the factor of layer l of L is layer_decay^(L − l).
    """
    numbers = layer_numbers(model) if layer_decay < 1 else dict.fromkeys(dict(model.named_parameters()), 0)
    last = max(numbers.values(), default=0)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((numbers[name], parameter.ndim <= 1), []).append(parameter)
    return [
        {
            "params": groups[layer, small],
            "weight_decay": 0.0 if small else weight_decay,
            "lr_scale": layer_decay ** (last - layer),
        }
        for layer, small in sorted(groups)
    ]


def layer_numbers(model: nn.Module) -> dict[str, int]:
    """Parameter name -> layer: 0 before the blocks (patches, class token, positions), i + 1 for block i, then the rest.

    Parameters between two blocks belong to the first of them. Raises ConfigError for a network without numbered blocks.
    """
    find_blocks = capabilities_of(model).blocks
    if find_blocks is None:
        what = "has no numbered blocks, which train.layer_decay needs"
        raise lacks(name_of(model), "blocks", what, "set it to 1")
    blocks = find_blocks(model)
    places = {id(parameter): place for place, block in enumerate(blocks, 1) for parameter in block.parameters()}
    numbers, behind = {}, 0
    for name, parameter in model.named_parameters():
        behind = max(behind, places.get(id(parameter), 0))
        outside = len(blocks) + 1 if behind == len(blocks) else behind
        numbers[name] = places.get(id(parameter), outside)
    return numbers


def freeze_all_but_head(model: nn.Module) -> None:
    """Freeze everything but the layer that classifies."""
    model.requires_grad_(False)
    head_of(model).requires_grad_(True)
