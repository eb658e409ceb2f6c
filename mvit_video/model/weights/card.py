"""The card that travels with our weights: which network they are of, what it is fed and how its answers are called."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SerializerFunctionWrapHandler, ValidationError, model_serializer
from torch import nn

from mvit_video.config.schema import InputSettings, Settings
from mvit_video.errors import CheckpointError, ConfigError, MvitVideoError
from mvit_video.model.registry import ModelEntry, build_model, model_entry
from mvit_video.plugins import check_plugins

CARD_KEY = "mvit_video"  # of safetensors' metadata, under which the card lies as JSON


class Measured(Settings):
    """How good weights were found to be, by whom they were trained."""

    protocol: str
    """Views per video: clips × crops."""
    num_videos: int
    """Held-out videos, those that could not be decoded included as wrong."""
    list: str
    """Where these were listed."""
    percent: dict[str, float]
    """top1, top5 and what else evaluation measures, in percent."""


class ModelCard(Settings):
    """What travels with the weights: enough to build the network, feed it and name its answers."""

    name: str
    """The network's registered name."""
    arguments: dict[str, Any]
    """Constructor arguments besides those that follow from the classes and the preprocessing."""
    classes: tuple[str, ...]
    """Class names in label order."""
    preprocessing: InputSettings
    """From a video to the network's input."""
    protocol: str = "1x1"
    """Views per video that the training run's configuration evaluates with: clips × crops."""
    measured: Measured | None = None
    """Its accuracy, where evaluation.after_training has measured it."""
    plugin: str | None = None
    """The plugin that registers the network, where one does; told when it is missing, never loaded from here."""

    @model_serializer(mode="wrap")
    def _without_no_plugin(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Cards of our own networks say nothing of plugins."""
        return {name: value for name, value in dump(self).items() if name != "plugin" or value is not None}


def model_from_card(card: ModelCard) -> nn.Module:
    """A network with new weights, as the card describes it."""
    return build_model(
        card.name,
        num_classes=len(card.classes),
        num_frames=card.preprocessing.num_frames,
        crop_size=card.preprocessing.crop_size,
        **card.arguments,
    )


def model_of_file(card: ModelCard, path: str | Path) -> nn.Module:
    """`model_from_card` of a card that a file holds; CheckpointError where it describes no network."""
    try:
        return model_from_card(card)
    except (MvitVideoError, TypeError) as reason:
        _check_plugin(card, path)
        raise CheckpointError(f"{path}: its card describes no network that can be built ({reason})") from None


def entry_of_file(card: ModelCard, path: str | Path) -> ModelEntry:
    """The network that the card of a file names; CheckpointError where nothing has registered it."""
    try:
        return model_entry(card.name)
    except MvitVideoError as reason:
        _check_plugin(card, path)
        raise CheckpointError(f"{path}: its card describes no network that can be built ({reason})") from None


def _check_plugin(card: ModelCard, path: str | Path) -> None:
    """CheckpointError where the plugin that the network comes from is not here."""
    try:
        check_plugins([card.plugin] if card.plugin else [], str(path))
    except ConfigError as reason:
        raise CheckpointError(str(reason)) from None


def read_card(metadata: Mapping[str, str], path: str | Path) -> ModelCard:
    """The card in a file's metadata. Raises CheckpointError where it is none."""
    try:
        return ModelCard.model_validate_json(metadata[CARD_KEY])
    except ValidationError as reason:
        raise CheckpointError(f"{path}: its card cannot be read ({reason.errors()[0]['msg']})") from None
