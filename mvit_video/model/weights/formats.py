"""Other projects' checkpoints: their names and shapes for our tensors.

Ours are PySlowFast's names, so its video files need no map. Its image files keep the patch filter in 2D.
"""

# C channels, I channels in per group, P positions, T/H/W taps of a filter

import re
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from mvit_video.errors import CheckpointError
from mvit_video.model.checkpoint_format import CheckpointFormat, has
from mvit_video.model.registry import MODELS
from mvit_video.model.weights.inflate import INDEX_TABLE, is_image
from mvit_video.model.weights.mmaction_formats import MMACTION_FORMATS

Value = TypeVar("Value")
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


def _is_pyslowfast(names: Set[str]) -> bool:
    return PATCH_FILTER in names and any(name.startswith("blocks.") for name in names)


def known_formats() -> list[CheckpointFormat]:
    """Those of all networks, those of plugins first."""
    entries = [MODELS.get(name) for name in MODELS.names()]
    entries.sort(key=lambda entry: entry.plugin is None)
    return list(dict.fromkeys(each for entry in entries for each in entry.capabilities.formats))


def format_of(names: Iterable[str], source: str | Path) -> CheckpointFormat:
    """The format whose names these are; CheckpointError where there is none."""
    names = set(names)
    if "stem.0.0.weight" in names and any(name.startswith("blocks.0.layers.") for name in names):
        raise CheckpointError(
            f"{source}: contains torchvision's MaxViT, another network than the paper's (other scale, activation and padding), "
            "which is not built here: take timm's maxvit_*_tf_* files"
        )
    if _is_pyslowfast(names) and not any(".attn.pool_k." in name for name in names):
        raise CheckpointError(
            f"{source}: contains a transformer whose blocks do not pool, such as the plain ViT of MAE, which is not built here: "
            "take weights of an MViT"
        )
    found = next((each for each in known_formats() if each.matches(names)), None)
    if found is None:
        raise CheckpointError(
            f"{source}: contains weights of no network that is known here (the first is '{min(names, default='')}'): "
            "known are the names of PySlowFast, torchvision, timm and our own"
        )
    return found


def project_of(names: Iterable[str], source: str | Path) -> str:
    """The project whose names these are, such as "timm", "torchvision" or "PySlowFast" (the same as ours)."""
    return format_of(names, source).name


def convert_to_ours(state: Mapping[str, Tensor], source: str | Path) -> tuple[str, dict[str, Tensor]]:
    """The format, and the same tensors under our names and in our shapes (filters with a time axis)."""
    state = without_wrappers(state)
    kind = format_of(state, source)
    rename = kind.renamer(state)
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        mine = rename(name)
        if mine in ours:
            raise CheckpointError(f"{source}: contains two tensors for '{mine}', one of them is '{name}'")
        if not kind.unused(name):
            ours[mine] = _our_shape(mine, tensor)
    return kind.name, kind.arranged(ours)


def unused_names(names: Iterable[str], source: str | Path) -> tuple[str, ...]:
    """Those of a file's tensors that `convert_to_ours` leaves out, because no network has them."""
    names = list(without_wrappers(dict.fromkeys(names)))
    return tuple(filter(format_of(names, source).unused, names))


def format_named(name: str) -> CheckpointFormat | None:
    """The format of this name; None for our own."""
    return next((each for each in known_formats() if each.name == name), None)


def head_names(kind: str) -> tuple[str, str]:
    """Our names of the head's weight and bias in weights of a format."""
    entries = (MODELS.get(name) for name in MODELS.names())
    heads = (e.capabilities.head for e in entries if any(each.name == kind for each in e.capabilities.formats))
    head = next(heads, "head.projection")
    return f"{head}.weight", f"{head}.bias"


def without_wrappers(state: Mapping[str, Value]) -> Mapping[str, Value]:
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


def _is_timm(names: Set[str]) -> bool:
    return any(name.startswith("stages.") and ".attn.pool_k." in name for name in names)


def _joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Separate projections of queries, keys and values (PySlowFast's SEPARATE_QKV) as the rows of one."""
    joined: dict[str, Tensor] = {}
    for name, tensor in state.items():
        found = _SEPARATE.search(name)
        parts = [name.replace(found[0], f".attn.{part}.") for part in "qkv"] if found else []
        if not found or not all(part in state for part in parts):
            joined[name] = tensor
        elif found[1] == "q":
            joined[name.replace(found[0], ".attn.qkv.")] = torch.cat([state[part] for part in parts])
    return joined


def of_maskfeat(name: str) -> bool:
    """Whether a tensor of this name is of MaskFeat's pre-training alone."""
    return name == "mask_token" or name.startswith(("pred_head.", "hogs."))


_SEPARATE = re.compile(r"\.attn\.([qkv])\.")
_KNOWN = {"token_mixing": ("all",), "positions": ("relative", "absolute")}
MASKFEAT = "PySlowFast MaskFeat"
BEHIND_BLOCKS = ("norm.", "head.")  # of a classifier
MVIT_FORMATS = (
    CheckpointFormat("timm", _is_timm, _timm_renamer),
    CheckpointFormat(
        "torchvision",
        has("conv_proj.weight"),
        _torchvision_renamer,
        to_torchvision,
        knows=_KNOWN | {"pooling": (None, "cls")},
    ),
    CheckpointFormat(
        MASKFEAT,
        lambda names: _is_pyslowfast(names) and "pred_head.projections.0.weight" in names,
        arranged=_joined,
        unused=of_maskfeat,
        lacks=("norm.",),
    ),
    CheckpointFormat(
        "PySlowFast",
        _is_pyslowfast,
        write=lambda state: {"model_state": to_pyslowfast(state)},
        arranged=_joined,
        knows=_KNOWN | {"pooling": (None, "cls", "mean_without_cls")},
    ),
    *MMACTION_FORMATS,
)
