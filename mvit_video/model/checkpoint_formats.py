"""Other projects' checkpoints: reading their files without running what is in them, and their names for our tensors.

Ours are PySlowFast's names, so its video files need no map. Its image files keep the patch filter in 2D.
"""

# C channels, I channels in per group, P positions, T/H/W taps of a filter

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mvit_video.errors import CheckpointError
from mvit_video.model.inflate import is_image

PATCH_FILTER = "patch_embed.proj.weight"
WRAPPERS = ("model_state", "model", "state_dict")
METADATA = frozenset(  # what training programs write beside the weights
    {"epoch", "optimizer_state", "scaler_state", "cfg", "optimizer", "lr_scheduler", "scaler", "args", "arch", "metric"}
)

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


def read_tensors(file: Path, source: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and metadata, of a PyTorch or safetensors file, told apart by content. Never runs code.

    Metadata is safetensors' own, or the names of what lies beside the weights in a PyTorch file, with empty values.
    Raises CheckpointError for a file that is neither, is truncated, or holds anything else than tensors.
    """
    with file.open("rb") as content:
        start = content.read(9)
    if start[8:9] == b"{" or file.suffix == ".safetensors":
        return _read_safetensors(file, source)
    if not start.startswith((b"PK\x03\x04", b"\x80")):
        raise CheckpointError(
            f"{source}: is neither a PyTorch nor a safetensors file: give a .pth, .pyth or .safetensors of weights"
        )
    return _unwrap(_read_torch(file, source), source)


def _read_safetensors(file: Path, source: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, framework="pt") as content:
            return {name: content.get_tensor(name) for name in content.keys()}, content.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as reason:
        raise CheckpointError(f"{source}: is not a whole safetensors file ({reason}): get it again") from None


def _read_torch(file: Path, source: str | Path) -> object:
    try:
        return torch.load(file, weights_only=True, map_location="cpu")
    except Exception as reason:  # a damaged pickle can raise anything; nothing of it has been run
        stranger = re.search(r"GLOBAL ([\w.]+)", str(reason))
        if stranger:
            raise CheckpointError(
                f"{source}: holds '{stranger[1]}', which is code and is never run here: "
                "ask for a file with nothing but tensors, numbers and text"
            ) from None
        raise CheckpointError(f"{source}: is not a whole PyTorch file (truncated or damaged): get it again") from None


def _unwrap(content: object, source: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights, and the names of what lies beside them."""
    beside: set[str] = set()
    if isinstance(content, dict):
        wrapper = next((name for name in WRAPPERS if isinstance(content.get(name), dict)), None)
        if wrapper is not None:
            beside, content = {str(name) for name in content.keys() - {wrapper}}, content[wrapper]
            if beside - METADATA:
                raise CheckpointError(
                    f"{source}: holds '{min(beside - METADATA)}' beside '{wrapper}', which is explained by nothing: "
                    f"known beside the weights are {', '.join(sorted(METADATA))}"
                )
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{source}: holds no tensors by name: give a state dict, or one under 'model_state'")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{source}: '{name}' is of type {type(tensor).__name__}, wanted tensors by name, alone or under 'model_state'"
            )
    return {name: tensor.detach() for name, tensor in content.items()}, dict.fromkeys(sorted(beside), "")


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
    kind = recognise(state, source)
    rename = {"timm": _timm_renamer(state), "torchvision": _from_torchvision, "PySlowFast": str}[kind]
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        mine = rename(name)
        if mine in ours:
            raise CheckpointError(f"{source}: holds two tensors for '{mine}', one of them is '{name}'")
        ours[mine] = _our_shape(mine, tensor)
    return kind, ours


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
