"""Names of models and the plain arguments they stand for (RECIPES of the paper, Table 8 and PySlowFast's configs)."""

import inspect

from torch import nn

from mvit_video.errors import ConfigError, did_you_mean
from mvit_video.model.mvit import MViT

VARIANTS: dict[str, dict] = {
    "mvitv2_t_16x4": dict(depths=(1, 2, 5, 2), drop_path_rate=0.1),
    "mvitv2_s_16x4": dict(depths=(1, 2, 11, 2), drop_path_rate=0.2),
    "mvitv2_b_32x3": dict(depths=(2, 3, 16, 3), num_frames=32, drop_path_rate=0.3),
    "mvitv2_l_40x3": dict(
        depths=(2, 6, 36, 4), embed_dim=144, num_heads=2, num_frames=40, crop_size=312, drop_path_rate=0.75
    ),
    "mvitv2_h_16x4": dict(depths=(4, 8, 60, 8), embed_dim=192, num_heads=3),  # no published drop path
    # Ours, not the paper's: three stages for the demonstration, small videos and tests.
    "mvitv2_nano_8x3": dict(
        depths=(1, 2, 1), embed_dim=32, num_frames=8, crop_size=48, kv_stride=(1, 4, 4), dropout_rate=0.0
    ),
}

_ARGUMENTS = set(inspect.signature(MViT.__init__).parameters) - {"self"}


def list_models() -> list[str]:
    """Every name that `build_model` takes."""
    return sorted(VARIANTS)


def build_model(name: str, num_classes: int = 400, **arguments) -> nn.Module:
    """A network by name; `arguments` are those of `MViT` and win over the named ones.

    The weights are new (random). Raises ConfigError for an unknown name or argument.
    """
    return MViT(**model_arguments(name, num_classes=num_classes, **arguments))


def model_arguments(name: str, **arguments) -> dict:
    """The plain arguments that `name` stands for, with `arguments` put in."""
    if name not in VARIANTS:
        raise ConfigError(
            f"model '{name}' is unknown{did_you_mean(name, VARIANTS)}: allowed are {', '.join(list_models())}"
        )
    for argument in arguments:
        if argument not in _ARGUMENTS:
            near = did_you_mean(argument, _ARGUMENTS)
            raise ConfigError(
                f"model argument '{argument}' is unknown{near}: allowed are {', '.join(sorted(_ARGUMENTS))}"
            )
    return VARIANTS[name] | arguments
