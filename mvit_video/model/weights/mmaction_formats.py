"""MViT's weights in MMAction2, and those that MMSelfSup has pre-trained with it, under our names."""

import re
from collections.abc import Callable, Mapping, Set

from torch import Tensor

from mvit_video.model.checkpoint_format import CheckpointFormat

_PATCHES = "backbone.patch_embed.projection.weight"
_NAMES = (
    ("backbone.patch_embed.projection.", "patch_embed.proj."),
    ("cls_head.fc_cls.", "head.projection."),
    ("backbone.", ""),
)
_LAST_NORM = re.compile(r"^backbone\.norm\d\.")  # numbered by the stage that it follows
_PRETRAINING = ("neck.", "target_generator.", "backbone.mask_token")
_LOADER = "data_preprocessor."


def _renamer(state: Mapping[str, Tensor]) -> Callable[[str], str]:
    return _our_name


def _our_name(name: str) -> str:
    name = _LAST_NORM.sub("norm.", name)
    for theirs, ours in _NAMES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _is_mmaction(names: Set[str]) -> bool:
    return _PATCHES in names and "backbone.blocks.0.attn.pool_k.weight" in names


def _is_pretrained(names: Set[str]) -> bool:
    return _is_mmaction(names) and "backbone.mask_token" in names


def _of_pretraining(name: str) -> bool:
    """What predicts, and the norm before it, which is not that of a head."""
    return name.startswith((*_PRETRAINING, _LOADER)) or bool(_LAST_NORM.match(name))


MMACTION_FORMATS = (
    CheckpointFormat("MMSelfSup MaskFeat", _is_pretrained, _renamer, unused=_of_pretraining, lacks=("norm.",)),
    CheckpointFormat("MMAction2", _is_mmaction, _renamer, unused=lambda name: name.startswith(_LOADER)),
)
