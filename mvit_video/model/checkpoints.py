"""Weights on disk: our own format, safetensors with a card that says what the weights are; and other projects' names."""

import json
import re
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from mvit_video.config.schema import Preprocessing, Settings
from mvit_video.errors import CheckpointError, MvitVideoError
from mvit_video.model.variants import build_model
from mvit_video.paths import local_file, write_whole

CARD_KEY = "mvit_video"


class ModelCard(Settings):
    """What travels with the weights: enough to build the network, feed it and name its answers."""

    name: str
    """The network's registered name."""
    arguments: dict
    """Constructor arguments besides those that follow from the classes and the preprocessing."""
    classes: tuple[str, ...]
    """Class names in label order."""
    preprocessing: Preprocessing
    """From a video to the network's input."""
    protocol: str = "1x1"
    """Views per video that the training run's configuration evaluates with: clips × crops."""


def model_from_card(card: ModelCard) -> nn.Module:
    """A network with new weights, as the card describes it."""
    return build_model(
        card.name,
        num_classes=len(card.classes),
        num_frames=card.preprocessing.num_frames,
        crop_size=card.preprocessing.crop_size,
        **card.arguments,
    )


def save_checkpoint(path: str | Path, model: nn.Module, card: ModelCard) -> None:
    """Weights and card in one safetensors file; there whole or not at all. Raises CheckpointError for NaN or Inf."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(f"{path}: not written, because '{broken[0]}' holds NaN or Inf ({len(broken)} tensors do)")
    write_whole(path, to_safetensors(state, metadata={CARD_KEY: card.model_dump_json()}))


def load_checkpoint(path: str | Path) -> tuple[nn.Module, ModelCard]:
    """The network of a checkpoint of ours, in eval mode, and its card. `path` may be an http(s) address."""
    state, card = read_checkpoint(path)
    try:
        model = model_from_card(card)
    except (MvitVideoError, TypeError) as reason:
        raise CheckpointError(f"{path}: its card describes no network that can be built ({reason})") from None
    load_exactly(model, state, path)
    return model.eval(), card


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], ModelCard]:
    """Tensors and card of a checkpoint of ours. Raises CheckpointError that says what the file is not."""
    file = local_file(path, CheckpointError)
    try:
        with safe_open(file, framework="pt") as content:
            metadata = content.metadata() or {}
            state = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as reason:
        raise CheckpointError(f"{path}: is not a whole safetensors file ({reason})") from None
    if CARD_KEY not in metadata:
        raise CheckpointError(
            f"{path}: is a safetensors file without our card: train writes model.safetensors with one"
        )
    try:
        card = ModelCard.model_validate_json(metadata[CARD_KEY])
    except ValidationError as reason:
        raise CheckpointError(f"{path}: its card cannot be read ({reason.errors()[0]['msg']})") from None
    return state, card


def load_exactly(model: nn.Module, state: dict[str, Tensor], source: str | Path) -> None:
    """Load every tensor; CheckpointError names the first that is missing, unknown or of another shape."""
    wanted = model.state_dict()
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or unknown:
        what = f"lacks '{missing[0]}'" if missing else f"holds '{unknown[0]}', which the network does not have"
        raise CheckpointError(f"{source}: {what} ({len(missing)} missing, {len(unknown)} unknown)")
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{tuple(tensor.shape)}, wanted {tuple(wanted[name].shape)}"
            raise CheckpointError(
                f"{source}: '{name}' has shape {shapes}: is it a checkpoint of another network or class list?"
            )
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{source}: '{name}' holds NaN or Inf")
    model.load_state_dict(state)


# torchvision's mvit_v2_s names the same tensors differently; (theirs, ours).
_TORCHVISION = (
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^pos_encoding\.class_token$", "cls_token"),
    (r"\.attn\.project\.0\.", ".attn.proj."),
    (r"\.attn\.pool_([qkv])\.pool\.", r".attn.pool_\1."),
    (r"\.attn\.pool_([qkv])\.norm_act\.0\.", r".attn.norm_\1."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
    (r"^(blocks\.\d+)\.project\.", r"\1.proj."),
    (r"^head\.1\.", "head.projection."),
)


def from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's `mvit_v2_s` state dict under our names; the class token gets our shape (1, 1, C)."""
    ours = {}
    for name, tensor in state.items():
        for theirs, mine in _TORCHVISION:
            name = re.sub(theirs, mine, name)
        ours[name] = tensor.reshape(1, 1, -1) if name == "cls_token" else tensor
    return ours


def card_json(card: ModelCard) -> dict:
    """The card as plain values, for JSON files beside the weights."""
    return json.loads(card.model_dump_json())
