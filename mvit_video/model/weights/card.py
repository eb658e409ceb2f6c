"""The card that travels with our weights: which network they are of, what it is fed and how its answers are called."""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from torch import nn

from mvit_video.config.schema import VIEWS, InputSettings, PretrainSettings, Settings
from mvit_video.errors import CheckpointError, ConfigError, MvitVideoError
from mvit_video.model.registry import ModelEntry, build_masked, build_model, model_entry
from mvit_video.plugins import check_plugins

CARD_KEY = "mvit_video"  # of safetensors' metadata, under which the card lies as JSON


MAX_CARD = 16 << 20  # letters; 21,000 classes take one million
LARGEST = 1e6  # number among a network's arguments
MOST_VALUES = 10_000  # in all of them
MAX_BLOCKS = 1000  # in all stages; the largest network here has 80
Word = Annotated[str, Field(max_length=200)]


class Measured(Settings):
    """How good weights were found to be, by whom they were trained."""

    protocol: Word
    """Views per video: clips × crops."""
    num_videos: Annotated[int, Field(ge=0, le=10**12)]
    """Held-out videos, those that could not be decoded included as wrong."""
    list: Annotated[str, Field(max_length=10_000)]
    """Where these were listed."""
    percent: Annotated[dict[Word, Annotated[float, Field(ge=0, le=100)]], Field(max_length=100)]
    """top1, top5 and what else evaluation measures, in percent."""


class ModelCard(Settings):
    """What travels with the weights: enough to build the network, feed it and name its answers."""

    name: Word
    """The network's registered name."""
    arguments: dict[str, Any]
    """Constructor arguments besides those that follow from the classes and the preprocessing."""
    classes: tuple[Annotated[str, Field(max_length=10_000)], ...]
    """Class names in label order, no two alike."""
    preprocessing: InputSettings
    """From a video to the network's input."""
    protocol: Annotated[str, Field(pattern=rf"^{VIEWS}$")] = "1x1"
    """Views per video that the training run's configuration evaluates with: clips × crops."""
    fusion: Literal["mean", "max"] = "mean"
    """A video's score of a class: the mean over its views, or the largest."""
    multi_label: bool = False
    """A video may have several labels: scores are the sigmoid of each logit, in place of the softmax of all."""
    thresholds: dict[str, Annotated[float, Field(ge=0, le=1)]] | None = None
    """With several labels, the score from which on each class is one of them, where evaluation.after_training has chosen it; else 0.5."""
    measured: Measured | None = None
    """Its accuracy, where evaluation.after_training has measured it."""
    plugin: Word | None = None
    """The plugin that registers the network, where one does; told when it is missing, never loaded from here."""
    pretraining: PretrainSettings | None = None
    """How the weights were pre-trained without labels, where they are of the network's pre-training form: there are no classes."""

    def renamed(self, classes: tuple[str, ...]) -> "ModelCard":
        """The card with other names of its classes, in the same order."""
        thresholds = self.thresholds and {
            new: self.thresholds[name] for name, new in zip(self.classes, classes, strict=True)
        }
        return self.model_copy(update={"classes": classes, "thresholds": thresholds})

    @field_validator("classes")
    @classmethod
    def _names_differ(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        name, count = Counter(classes).most_common(1)[0] if classes else ("", 0)
        if count > 1:
            raise ValueError(f"{count} classes are called '{name}': give each a name of its own")
        return classes

    @model_validator(mode="after")
    def _thresholds_are_of_the_classes(self) -> "ModelCard":
        if self.thresholds is not None and not (self.multi_label and self.thresholds.keys() == {*self.classes}):
            other = next((name for name in self.thresholds if name not in self.classes), None)
            what = f"'{other}' is none of its classes" if other else "they must name every class of several labels"
            raise ValueError(f"thresholds do not fit ({what}): give one to each class, or none, which means 0.5")
        return self

    @field_validator("arguments")
    @classmethod
    def _arguments_are_bounded(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        values = list(islice(_values(arguments), MOST_VALUES + 1))
        if len(values) > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES} values are no arguments of a network")
        for value in values:
            if isinstance(value, int | float) and not abs(value) <= LARGEST:
                raise ValueError("a number above a million, or none at all, is no argument of a network")
            if isinstance(value, str) and len(value) > 200:
                raise ValueError("a text of more than 200 characters is no argument of a network")
        blocks = sum(abs(value) for value in _values(arguments.get("depths")) if isinstance(value, int))
        if blocks > MAX_BLOCKS:
            raise ValueError(f"depths of {blocks} blocks: networks have at most {MAX_BLOCKS}")
        return arguments

    @model_serializer(mode="wrap")
    def _without_no_plugin(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Cards say nothing of plugins, pre-training and several labels where there are none, nor that scores are means."""
        optional = {"plugin": None, "pretraining": None, "multi_label": False, "thresholds": None, "fusion": "mean"}
        return {name: value for name, value in dump(self).items() if name not in optional or value != optional[name]}


def _values(tree: object) -> Iterator[object]:
    """All that is in lists and dictionaries, their names included."""
    if isinstance(tree, dict):
        yield from tree
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        for value in tree:
            yield from _values(value)
    else:
        yield tree


def model_from_card(card: ModelCard) -> nn.Module:
    """A network with new weights, as the card describes it."""
    size = dict(num_frames=card.preprocessing.num_frames, crop_size=card.preprocessing.crop_size)
    if card.pretraining is not None:
        form = card.pretraining
        return build_masked(card.name, form.predict_from, form.target, **size, **card.arguments)
    return build_model(card.name, num_classes=len(card.classes), **size, **card.arguments)


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
    text = metadata[CARD_KEY]
    if len(text) > MAX_CARD:
        raise CheckpointError(f"{path}: its card has {len(text):,} characters, and at most {MAX_CARD:,} are read")
    try:
        return ModelCard.model_validate_json(text)
    except ValidationError as reason:
        error = reason.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, error["loc"]))
        raise CheckpointError(
            f"{path}: its card cannot be read ({f'{where}: ' if where else ''}{error['msg']})"
        ) from None
