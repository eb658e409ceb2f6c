"""Other projects' checkpoints: their names and shapes for our tensors.

Ours are PySlowFast's names, so its video files need no map. Its image files keep the patch filter in 2D.
"""

# C channels, I channels in per group, P positions, T/H/W taps of a filter

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from mvit_video.errors import CheckpointError
from mvit_video.model.weights.inflate import is_image

PATCH_FILTER = "patch_embed.proj.weight"
WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and DDP, and of torch.compile

# The same tensors in torchvision's mvit_v2_s and mvit_v1_b: (theirs, ours), both ways.
_TORCHVISION = (
    ("conv_proj.", "patch_embed.proj."),
    ("pos_encoding.class_token", "cls_token"),
    ("pos_encoding.spatial_pos", "pos_embed_spatial"),
    ("pos_encoding.temporal_pos", "pos_embed_temporal"),
    ("pos_encoding.class_pos", "pos_embed_class"),
    (".attn.project.0.", ".attn.proj."),
    *((f".attn.pool_{which}.pool.", f".attn.pool_{which}.") for which in "qkv"),
    *((f".attn.pool_{which}.norm_act.0.", f".attn.norm_{which}.") for which in "qkv"),
    (".mlp.0.", ".mlp.fc1."),
    (".mlp.3.", ".mlp.fc2."),
    (".project.", ".proj."),
    ("head.1.", "head.projection."),
)
_TIMM = (("shortcut_proj_attn.", "proj."), ("shortcut_proj_mlp.", "proj."), ("head.fc.", "head.projection."))
_POSITIONS = ("pos_embed_spatial", "pos_embed_temporal")
_CLASS_VECTORS = ("cls_token", "pos_embed_class")


def recognise(names: Iterable[str], source: str | Path) -> str:
    """The project whose names these are: "timm", "torchvision" or "PySlowFast" (the same as ours)."""
    names = set(names)
    if any(name.startswith("stages.") for name in names):
        return "timm"
    if "conv_proj.weight" in names:
        return "torchvision"
    if PATCH_FILTER in names and any(name.startswith("blocks.") for name in names):
        return "PySlowFast"
    raise CheckpointError(
        f"{source}: holds weights of no MViT that is known here (the first is '{min(names, default='')}'): "
        "known are the names of PySlowFast, torchvision, timm and our own"
    )


def to_ours(state: Mapping[str, Tensor], source: str | Path) -> tuple[str, dict[str, Tensor]]:
    """The format, and the same tensors under our names and in our shapes (filters with a time axis)."""
    state = without_wrappers(state)
    kind = recognise(state, source)
    rename = {"timm": _timm_renamer(state), "torchvision": _from_torchvision, "PySlowFast": str}[kind]
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        mine = rename(name)
        if mine in ours:
            raise CheckpointError(f"{source}: holds two tensors for '{mine}', one of them is '{name}'")
        ours[mine] = _our_shape(mine, tensor)
    return kind, ours


def without_wrappers(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors without what wrappers of the network put in front of every name."""
    for prefix in WRAPPER_PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            return without_wrappers({name.removeprefix(prefix): tensor for name, tensor in state.items()})
    return state


def _our_shape(name: str, tensor: Tensor) -> Tensor:
    if tensor.ndim == 4:
        return tensor.unsqueeze(2)  # (C, I, H, W) -> (C, I, 1, H, W)
    if tensor.ndim == 1 and name in _CLASS_VECTORS:
        return tensor.reshape(1, 1, -1)
    if tensor.ndim == 2 and name in _POSITIONS:
        return tensor.unsqueeze(0)  # (P, C) -> (1, P, C)
    return tensor


def _from_torchvision(name: str) -> str:
    for theirs, ours in _TORCHVISION:
        name = name.replace(theirs, ours)
    return name


def _timm_renamer(state: Mapping[str, Tensor]):
    """timm numbers blocks within their stage, we number them through."""
    pattern = re.compile(r"^stages\.(\d{1,2})\.blocks\.(\d{1,3})\.")
    depths: dict[int, int] = {}
    for found in filter(None, map(pattern.match, state)):
        stage, block = int(found[1]), int(found[2])
        depths[stage] = max(depths.get(stage, 0), block + 1)
    before = {stage: sum(depths[other] for other in depths if other < stage) for stage in depths}

    def rename(name: str) -> str:
        name = pattern.sub(lambda found: f"blocks.{before[int(found[1])] + int(found[2])}.", name)
        for theirs, ours in _TIMM:
            name = name.replace(theirs, ours)
        return name

    return rename


def to_pyslowfast(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors as PySlowFast names and shapes them: the same, but an image network's patch filter is 2D."""
    theirs = dict(state)
    if is_image(state):
        theirs[PATCH_FILTER] = theirs[PATCH_FILTER].squeeze(2)  # (C, I, 1, H, W) -> (C, I, H, W)
    return theirs


def to_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under the names of torchvision's `mvit_v2_s` and `mvit_v1_b`, and in their shapes.

    Raises CheckpointError for image networks and those without a class token, which torchvision does not have.
    """
    if is_image(state) or "cls_token" not in state:
        raise CheckpointError(
            "torchvision has no image MViT and none without a class token: export this network --to pyslowfast"
        )
    theirs = {}
    for name, tensor in state.items():
        if name in _CLASS_VECTORS:
            tensor = tensor.flatten()  # (1, 1, C) -> (C)
        elif name in _POSITIONS:
            tensor = tensor.squeeze(0)  # (1, P, C) -> (P, C)
        theirs[_to_torchvision_name(name)] = tensor
    return theirs


def _to_torchvision_name(name: str) -> str:
    for theirs, ours in _TORCHVISION:
        if ours in name:
            return name.replace(ours, theirs)
    return name
