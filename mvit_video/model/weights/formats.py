"""Other projects' checkpoints: their names and shapes for our tensors.

Ours are PySlowFast's names, so its video files need no map. Its image files keep the patch filter in 2D.
"""

# C channels, I channels in per group, P positions, T/H/W taps of a filter

import re
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mvit_video.errors import CheckpointError
from mvit_video.model.weights.inflate import INDEX_TABLE, is_image

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
MVIT_FORMATS = ("PySlowFast", "torchvision", "timm")
_POSITIONS = ("pos_embed_spatial", "pos_embed_temporal")
_CLASS_VECTORS = ("cls_token", "pos_embed_class")


@dataclass(frozen=True)
class Format:
    """Another project's names: how they are told, and (from the whole state) what renames each to ours."""

    name: str
    matches: Callable[[Set[str]], bool]
    renamer: Callable[[Mapping[str, Tensor]], Callable[[str], str]]
    head: str = "head.projection"
    """Our name of the layer that classifies."""


def _unchanged(state: Mapping[str, Tensor]) -> Callable[[str], str]:
    return str


def _has(name: str) -> Callable[[Set[str]], bool]:
    return lambda names: name in names


def _is_pyslowfast(names: Set[str]) -> bool:
    return PATCH_FILTER in names and any(name.startswith("blocks.") for name in names)


def format_of(names: Iterable[str], source: str | Path) -> Format:
    """The format whose names these are; CheckpointError where there is none."""
    names = set(names)
    if "stem.0.0.weight" in names and any(name.startswith("blocks.0.layers.") for name in names):
        raise CheckpointError(
            f"{source}: holds torchvision's MaxViT, another network than the paper's (other scale, activation and padding), "
            "which is not built here: take timm's maxvit_*_tf_* files"
        )
    found = next((each for each in FORMATS if each.matches(names)), None)
    if found is None:
        raise CheckpointError(
            f"{source}: holds weights of no network that is known here (the first is '{min(names, default='')}'): "
            "known are the names of PySlowFast, torchvision, timm and our own"
        )
    return found


def recognise(names: Iterable[str], source: str | Path) -> str:
    """The project whose names these are, such as "timm", "torchvision" or "PySlowFast" (the same as ours)."""
    return format_of(names, source).name


def to_ours(state: Mapping[str, Tensor], source: str | Path) -> tuple[str, dict[str, Tensor]]:
    """The format, and the same tensors under our names and in our shapes (filters with a time axis)."""
    state = without_wrappers(state)
    kind = format_of(state, source)
    rename = kind.renamer(state)
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        mine = rename(name)
        if mine in ours:
            raise CheckpointError(f"{source}: holds two tensors for '{mine}', one of them is '{name}'")
        if not mine.endswith(".attn_mask"):  # shifted windows' masks in Microsoft's files: made of sizes alone
            ours[mine] = _our_shape(mine, tensor)
    return kind.name, ours


def head_names(kind: str) -> tuple[str, str]:
    """Our names of the head's weight and bias in weights of a format."""
    head = next((each.head for each in FORMATS if each.name == kind), "head.projection")
    return f"{head}.weight", f"{head}.bias"


def without_wrappers(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors without what wrappers of the network put in front of every name."""
    for prefix in WRAPPER_PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            return without_wrappers({name.removeprefix(prefix): tensor for name, tensor in state.items()})
    return state


def _our_shape(name: str, tensor: Tensor) -> Tensor:
    if tensor.ndim == 4:
        return tensor.unsqueeze(2)  # (C, I, H, W) -> (C, I, 1, H, W)
    if name.endswith(INDEX_TABLE):
        return tensor.flatten()
    if tensor.ndim == 1 and name in _CLASS_VECTORS:
        return tensor.reshape(1, 1, -1)
    if tensor.ndim == 2 and name in _POSITIONS:
        return tensor.unsqueeze(0)  # (P, C) -> (1, P, C)
    return tensor


def _torchvision_renamer(state: Mapping[str, Tensor]) -> Callable[[str], str]:
    return _from_torchvision


def _from_torchvision(name: str) -> str:
    for theirs, ours in _TORCHVISION:
        name = name.replace(theirs, ours)
    return name


def _timm_renamer(state: Mapping[str, Tensor]) -> Callable[[str], str]:
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


# Swin's names in other projects, for torchvision's video network, whose names are kept here.
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


FORMATS = (
    Format("CSWin", _has("stage1_conv_embed.0.weight"), _unchanged, "head"),
    Format("timm MaxViT", _has("stages.0.blocks.0.attn_block.attn.qkv.weight"), _unchanged, "head.fc"),
    Format("timm PVT v2", _has("stages.0.blocks.0.mlp.dwconv.weight"), _unchanged, "head"),
    Format("timm Twins", _has("patch_embeds.0.proj.weight"), _unchanged, "head"),
    Format("torchvision Swin", _has("features.0.0.attn.relative_position_bias_table"), _unchanged, "head"),
    Format(
        "torchvision image Swin", _has("features.1.0.attn.relative_position_bias_table"), _swin_pictures_renamer, "head"
    ),
    Format("Swin", _is_swin_of_layers, _swin_renamer, "head"),
    Format("timm", lambda names: any(name.startswith("stages.") for name in names), _timm_renamer),
    Format("torchvision", _has("conv_proj.weight"), _torchvision_renamer),
    Format("PySlowFast", _is_pyslowfast, _unchanged),
)
