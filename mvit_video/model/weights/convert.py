"""A checkpoint of any known format written in another: ours with its card, PySlowFast's, torchvision's."""

import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from mvit_video.config.schema import InputSettings
from mvit_video.errors import CheckpointError, ConfigError
from mvit_video.model.registry import build_model, head_name, model_entry
from mvit_video.model.weights.card import ModelCard, model_from_card, model_of_file
from mvit_video.model.weights.files import save_checkpoint
from mvit_video.model.weights.formats import known_formats
from mvit_video.model.weights.load import (
    LoadReport,
    Weights,
    fit_weights,
    model_of_weights,
    put_weights,
    read_weights,
    recognise_model,
)
from mvit_video.model.weights.zoo import ZOO, ZooEntry
from mvit_video.paths import output_file, write_whole


def convert(
    source: str,
    to: str,
    output: str | Path,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    overwrite: bool = False,
) -> LoadReport:
    """Write the checkpoint `source` (a file, an address, a zoo name) to the file `output` in the format `to`.

    `name` is the network's, for weights whose shapes do not tell; `classes` are names in label order, for the card of
    a native checkpoint in place of those that are known. Tensors are checked against the network first; none is made up.
    Raises CheckpointError or ConfigError.
    """
    if to not in targets():
        raise ConfigError(f"format '{to}' is unknown: allowed are {', '.join(targets())}")
    if classes and to != "native":
        raise ConfigError(f"--classes: a file --to {to} holds no class names: leave them out, or convert --to native")
    output = Path(output)
    with suppress(OSError):  # what is wrong with it, the next line says
        output.parent.mkdir(parents=True, exist_ok=True)
    output = output_file(output, overwrite)
    weights = _with_head(read_weights(source))
    network = model_entry(_network_name(weights, name))
    form = {each.name.lower(): each for each in network.capabilities.formats if each.write is not None}.get(to)
    if form is None and to != "native":
        raise ConfigError(
            f"{source}: is of {network.name}, which has no form --to {to}: its own names are in --to native"
        )
    with torch.device("meta" if network.capabilities.meta else "cpu"):
        if weights.card is not None:
            model = model_of_file(weights.card, source)
        else:
            model = build_model(network.name, num_classes=weights.num_classes)
    state, report = fit_weights(weights, model.state_dict(), head_layer=head_name(model))
    if report.new:
        raise CheckpointError(f"{source}: lacks '{report.new[0]}', and a conversion makes nothing up: train it first")
    if to == "native":
        card = _native_card(weights, network.name, classes)
        model.load_state_dict(state, assign=True)
        save_checkpoint(output, model, card)
        return report
    content = io.BytesIO()
    assert form is not None and form.write is not None
    torch.save(form.write(state), content)
    write_whole(output, content.getvalue())
    return report


def targets() -> list[str]:
    """What `convert` writes: our own format, then those of other projects that a network of theirs names."""
    return ["native", *(each.name.lower() for each in known_formats() if each.write is not None)]


def load_any(source: str | Path) -> tuple[nn.Module, ModelCard]:
    """The network of a checkpoint of any known format (a file, an address, a zoo name), in eval mode, and its card.

    The card of a public file is made of the zoo's facts for it, or for its network and number of classes.
    Raises CheckpointError; ConfigError where no names are known for its classes.
    """
    weights = read_weights(source)
    if weights.card is not None:
        return model_of_weights(weights.card, weights.state, source)
    weights = _with_head(weights)
    try:
        card = _card(weights, _recognised(weights), None)
    except ConfigError:
        raise ConfigError(
            f"{source}: no names are known for its {weights.num_classes} classes: add them with "
            f"`mvit-video convert {source} --to native --classes FILE --output FILE`, and use that"
        ) from None
    model = model_from_card(card)
    put_weights(model, weights)
    return model.eval(), card


def _with_head(weights: Weights) -> Weights:
    if weights.num_classes is None:
        raise CheckpointError(
            f"{weights.source}: has no head, so no labels follow from it: use it with load_weights only"
        )
    return weights


def _network_name(weights: Weights, name: str | None) -> str:
    """The network's name: the card's, or the one that the user gives, or that of the network with these shapes."""
    if weights.card is None:
        return name or _recognised(weights)
    if name not in (None, weights.card.name):
        raise ConfigError(f"{weights.source}: is of {weights.card.name} by its card, not of {name}: leave --model out")
    return weights.card.name


def _recognised(weights: Weights) -> str:
    name = recognise_model(weights)
    if name is None:
        raise CheckpointError(
            f"{weights.source}: its shapes are those of no network that `mvit-video models` lists: name one with --model"
        )
    return name


def _native_card(weights: Weights, name: str, classes: Sequence[str] | None) -> ModelCard:
    """The checkpoint's own card, where it has one, else one that is made for it; with these classes if there are any."""
    if weights.card is None:
        return _card(weights, name, classes)
    return weights.card.model_copy(update={"classes": _class_names(weights, classes)})


def _class_names(weights: Weights, classes: Sequence[str] | None) -> tuple[str, ...]:
    """Those given, else those known, as many as the head has rows. Raises ConfigError."""
    names = tuple(classes or weights.classes or ())
    if len(names) != weights.num_classes:
        what = f"{len(names)} class names for" if names else "no class names are known for"
        raise ConfigError(f"{weights.source}: {what} its {weights.num_classes} classes: give them with --classes FILE")
    return names


def _card(weights: Weights, name: str, classes: Sequence[str] | None) -> ModelCard:
    """What a foreign checkpoint's card says: the zoo's facts for this file, else for this network and head."""
    names = _class_names(weights, classes)
    entry = weights.entry or _like(name, len(names))
    if entry is None or entry.model != name:
        return ModelCard(name=name, arguments={}, classes=names, preprocessing=_usual_input(name))
    return ModelCard(name=name, arguments={}, classes=names, preprocessing=entry.preprocessing, protocol=entry.protocol)


def _like(name: str, num_classes: int) -> ZooEntry | None:
    return next((entry for entry in ZOO.values() if (entry.model, entry.num_classes) == (name, num_classes)), None)


def _usual_input(name: str) -> InputSettings:
    """The input that a network is named for (16x4 is every 4th of 16 frames), scaled to 8/7 of the crop before it."""
    entry = model_entry(name)
    crop = entry.defaults["crop_size"]
    return InputSettings(
        num_frames=entry.defaults["num_frames"],
        sampling_rate=entry.sampling_rate,
        short_side=round(crop * 8 / 7),
        crop_size=crop,
    )
