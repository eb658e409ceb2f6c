"""Swin's weights in other projects, under the names of torchvision's video network."""

import re
from collections.abc import Callable, Mapping, Set

from torch import Tensor

from mvit_video.model.checkpoint_format import CheckpointFormat, has

_SWIN_LAYERS = re.compile(r"^(?:backbone\.)?layers\.(\d+)\.(blocks|downsample)\.")
_SWIN = ((".mlp.fc1.", ".mlp.0."), (".mlp.fc2.", ".mlp.3."), ("cls_head.fc_cls.", "head."), ("head.fc.", "head."))


def _swin_renamer(state: Mapping[str, Tensor]) -> Callable[[str], str]:
    """Video Swin's, MMAction2's, Microsoft's and timm's: timm keeps a merge with the stage behind it, the others before."""
    merges_first = not any("layers.0.downsample." in name for name in state)

    def rename(name: str) -> str:
        if found := _SWIN_LAYERS.match(name):
            stage, part = int(found[1]), found[2]
            place = 2 * stage if part == "blocks" else 2 * stage + (-1 if merges_first else 1)
            name = f"features.{place}.{name[found.end() :]}"
        name = name.removeprefix("backbone.")
        for theirs, ours in _SWIN:
            name = name.replace(theirs, ours)
        return name

    return rename


def _swin_pictures_renamer(state: Mapping[str, Tensor]) -> Callable[[str], str]:
    """torchvision's image network: its patches are its first stage."""

    def rename(name: str) -> str:
        for theirs, ours in (("features.0.0.", "patch_embed.proj."), ("features.0.2.", "patch_embed.norm.")):
            if name.startswith(theirs):
                return ours + name.removeprefix(theirs)
        return re.sub(r"^features\.(\d+)", lambda found: f"features.{int(found[1]) - 1}", name)

    return rename


def _is_swin_of_layers(names: Set[str]) -> bool:
    return bool(
        {f"{prefix}layers.0.blocks.0.attn.relative_position_bias_table" for prefix in ("", "backbone.")} & names
    )


SWIN_FORMATS = (
    CheckpointFormat("torchvision Swin", has("features.0.0.attn.relative_position_bias_table")),
    CheckpointFormat(
        "torchvision image Swin", has("features.1.0.attn.relative_position_bias_table"), _swin_pictures_renamer
    ),
    # Masks of shifted windows, in Microsoft's files, are made of sizes alone.
    CheckpointFormat("Swin", _is_swin_of_layers, _swin_renamer, unused=lambda name: name.endswith(".attn_mask")),
)
