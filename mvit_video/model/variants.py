"""Names of models and the plain arguments they stand for (RECIPES of the paper, Table 8 and PySlowFast's configs)."""

import inspect
from dataclasses import fields
from typing import Any

from torch import nn

from mvit_video.errors import ConfigError, did_you_mean
from mvit_video.model.baselines import BASELINES, build_baseline
from mvit_video.model.mvit import MViT, MViTArguments

# Paper Tables 8 and 9: blocks per stage, and what else tells the sizes apart.
_SIZES: dict[str, dict[str, Any]] = {
    "t": dict(depths=(1, 2, 5, 2)),
    "s": dict(depths=(1, 2, 11, 2)),
    "b": dict(depths=(2, 3, 16, 3)),
    "l": dict(depths=(2, 6, 36, 4), embed_dim=144, num_heads=2),
    "h": dict(depths=(4, 8, 60, 8), embed_dim=192, num_heads=3),
}
_IMAGE: dict[str, Any] = dict(
    num_frames=1,
    patch_kernel=(1, 7, 7),
    patch_stride=(1, 4, 4),
    pool_kernel=(1, 3, 3),
    kv_stride=(1, 4, 4),
    dropout_rate=0.0,
)
_MVITV1_B: dict[str, Any] = dict(
    depths=(1, 2, 11, 2), positions="absolute", residual_pooling=False, pool_all_queries=False, width_growth="mlp"
)

VARIANTS: dict[str, dict[str, Any]] = {
    "mvitv2_t_16x4": _SIZES["t"] | dict(drop_path_rate=0.1),
    "mvitv2_s_16x4": _SIZES["s"] | dict(drop_path_rate=0.2),
    "mvitv2_b_32x3": _SIZES["b"] | dict(num_frames=32, drop_path_rate=0.3),
    "mvitv2_l_16x4": _SIZES["l"] | dict(drop_path_rate=0.75),
    "mvitv2_l_40x3": _SIZES["l"] | dict(num_frames=40, crop_size=312, drop_path_rate=0.75),
    "mvitv2_h_16x4": _SIZES["h"],  # no published drop path
    "mvitv1_b_16x4": _MVITV1_B | dict(drop_path_rate=0.2),
    "mvitv1_b_32x3": _MVITV1_B | dict(num_frames=32, drop_path_rate=0.3),
    # Ours, not the paper's: three stages for the demonstration, small videos and tests.
    "mvitv2_nano_8x3": dict(
        depths=(1, 2, 1), embed_dim=32, num_frames=8, crop_size=48, kv_stride=(1, 4, 4), dropout_rate=0.0
    ),
}
for _size, _arguments in _SIZES.items():
    VARIANTS[f"mvitv2_{_size}_in1k"] = _arguments | _IMAGE | dict(cls_token=False, num_classes=1000)
    VARIANTS[f"mvitv2_{_size}_in21k"] = _arguments | _IMAGE | dict(cls_token=True, num_classes=19168)
VARIANTS["mvitv2_l_in1k"]["width_growth"] = "mlp"  # as published; every other MViTv2 grows in the attention

_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(MViTArguments)}
_BASELINE_ARGUMENTS = set(inspect.signature(build_baseline).parameters) - {"name"}


def list_models() -> list[str]:
    """Every name that `build_model` takes: our networks, then the baselines (whose packages may be missing)."""
    return sorted(VARIANTS) + sorted(BASELINES)


def build_model(name: str, num_classes: int | None = None, **arguments: Any) -> nn.Module:
    """A network by name, with new (random) weights; `arguments` are those of `MViTArguments` and win over the named ones.

    Without `num_classes` the head is the published one: 400 for video, 1000 for in1k, 19168 for in21k.
    A baseline such as "torchvision/mvit_v2_s" takes num_classes, num_frames and crop_size, and imports its package now.
    Raises ConfigError for an unknown name or argument, sizes that no memory holds, or where a baseline's package cannot
    be imported.
    """
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    if name in BASELINES:
        return build_baseline(name, **model_arguments(name, **arguments))
    wanted = model_arguments(name, **arguments)
    try:
        return MViT(**wanted)
    except RuntimeError as reason:
        first_line = str(reason).splitlines()[0]
        raise ConfigError(f"{name} cannot be built as large as its arguments say ({first_line}): lower them") from None


def model_arguments(name: str, **arguments: Any) -> dict[str, Any]:
    """The plain arguments that `name` stands for, with `arguments` put in."""
    check_name(name)
    allowed = _BASELINE_ARGUMENTS if name in BASELINES else set(_DEFAULTS)
    for argument in arguments:
        if argument not in allowed:
            near = did_you_mean(argument, allowed)
            raise ConfigError(f"model argument '{argument}' is unknown{near}: allowed are {', '.join(sorted(allowed))}")
    return VARIANTS.get(name, {}) | arguments


def check_name(name: str) -> None:
    """ConfigError for a name that `build_model` does not take."""
    if name not in list_models():
        near = did_you_mean(name, list_models())
        raise ConfigError(f"model '{name}' is unknown{near}: allowed are {', '.join(list_models())}")


def input_size(name: str) -> tuple[int, int, int]:
    """Frames, height and width of the clips that a network is usually given."""
    check_name(name)
    if name in BASELINES:
        return BASELINES[name].num_frames, BASELINES[name].crop_size, BASELINES[name].crop_size
    arguments = {argument: _DEFAULTS[argument] for argument in ("num_frames", "crop_size")} | VARIANTS[name]
    crop = arguments["crop_size"]
    height, width = (crop, crop) if isinstance(crop, int) else crop
    return arguments["num_frames"], height, width
