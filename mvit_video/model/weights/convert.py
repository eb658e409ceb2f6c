"""A checkpoint of any known format written in another: ours with its card, PySlowFast's, torchvision's."""

import io
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mvit_video.config.schema import InputSettings
from mvit_video.errors import CheckpointError, ConfigError, did_you_mean
from mvit_video.model.checkpoint_format import CheckpointFormat
from mvit_video.model.registry import ModelEntry, build_model, head_name, model_entry
from mvit_video.model.weights.card import ModelCard, model_from_card, model_of_file
from mvit_video.model.weights.files import save_checkpoint
from mvit_video.model.weights.formats import known_formats
from mvit_video.model.weights.load import (
    LoadReport,
    Weights,
    described,
    filled,
    fit_weights,
    form_of,
    model_of_weights,
    read_weights,
    recognise_model,
    unchecked_weights,
)
from mvit_video.model.weights.zoo import input_text
from mvit_video.paths import output_file, write_whole

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conversion:
    """What became of every tensor, and the card of a native checkpoint; `assumed` is True where its input is a guess."""

    report: LoadReport
    card: ModelCard | None
    assumed: bool


def convert(
    source: str,
    to: str,
    output: str | Path,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    overwrite: bool = False,
    overrides: Sequence[str] = (),
) -> Conversion:
    """Write the checkpoint `source` (a file, a URL, a zoo name) to the file `output` in the format `to`.

    `name` is the network's, if its shapes do not identify it. For the card of a native checkpoint `classes` are names in
    label order, and `overrides` such as data.num_frames=32 replace the known or assumed input and views. Tensors are checked
    against the network first; none is made up. Raises CheckpointError or ConfigError.
    """
    _check_target(to, classes, overrides)
    output = Path(output)
    with suppress(OSError):  # output_file reports the reason
        output.parent.mkdir(parents=True, exist_ok=True)
    output = output_file(output, overwrite)
    weights = _with_head(read_weights(source))
    name, arguments = _network(weights, name)
    network = model_entry(name)
    form = {each.name.lower(): each for each in network.capabilities.formats if each.write is not None}.get(to)
    if form is None and to != "native":
        raise ConfigError(f"{source}: is of {network.name}, which cannot be written --to {to}: use --to native")
    if form is not None:
        _check_known(form, network.defaults | arguments, source)
    card = _with_overrides(_native_card(weights, name, arguments, classes), overrides) if to == "native" else None
    model = _empty_model(network, arguments, weights, card if overrides else None, source)
    state, report = fit_weights(weights, model.state_dict(), head_layer=head_name(model))
    if report.new:
        raise CheckpointError(f"{source}: lacks '{report.new[0]}', which a conversion cannot create: train it first")
    if card is not None:
        model.load_state_dict(state, assign=True)
        save_checkpoint(output, model, card)
    else:
        assert form is not None and form.write is not None
        _torch_save(form.write(state), output)
    return Conversion(report, card, weights.card is None and weights.entry is None)


def _torch_save(state: Mapping[str, Any], output: Path) -> None:
    content = io.BytesIO()
    torch.save(state, content)
    write_whole(output, content.getvalue())


def _check_target(to: str, classes: Sequence[str] | None, overrides: Sequence[str]) -> None:
    """Raise ConfigError for an unknown format, or for a card where the format has none."""
    if to not in targets():
        raise ConfigError(f"format '{to}' is unknown: choose from {', '.join(targets())}")
    if classes and to != "native":
        raise ConfigError(f"--classes: a file --to {to} contains no class names: drop them, or convert --to native")
    if overrides and to != "native":
        raise ConfigError(
            f"{overrides[0]}: a file --to {to} does not record its input: drop it, or convert --to native"
        )


def _empty_model(
    network: ModelEntry, arguments: Mapping[str, Any], weights: Weights, card: ModelCard | None, source: str
) -> nn.Module:
    """Build the network of `card`, else of the weights' own card, else by name; on the meta device if it supports that."""
    with torch.device("meta" if network.capabilities.meta else "cpu"):
        if card is not None:
            return model_from_card(card)
        if weights.card is not None:
            return model_of_file(weights.card, source)
        return build_model(network.name, num_classes=weights.num_classes, **arguments)


def _check_known(form: CheckpointFormat, arguments: Mapping[str, Any], source: str) -> None:
    """ConfigError where the network has what the other project has no weights or no code for."""
    for name, known in form.knows.items():
        if arguments.get(name) not in known:
            raise ConfigError(
                f"{source}: is of a network with {name}='{arguments.get(name)}', which {form.name} does not have: its own "
                "names are in --to native"
            )


def targets() -> list[str]:
    """What `convert` writes: our own format, then those of other projects that a network of theirs names."""
    return ["native", *(each.name.lower() for each in known_formats() if each.write is not None)]


def load_network(source: str | Path) -> tuple[nn.Module, ModelCard]:
    """The network of a checkpoint of any known format (a file, an address, a zoo name), in eval mode, and its card.

    The card of a public file is made of the zoo's facts for it. Of another foreign file neither names nor input are known: its
    classes are called class 0, class 1 and so on, its input is its network's usual one, and a warning says so.
    Raises CheckpointError.
    """
    weights = unchecked_weights(source)
    if weights.card is not None:
        return model_of_weights(weights.card, weights.state, source)
    weights = _with_head(weights)
    (name, arguments), count = _recognised(weights), weights.num_classes or 0
    card = _card(weights, name, arguments, weights.classes or tuple(f"class {number}" for number in range(count)))
    if weights.classes is None:
        assumed = f", it is taken to be {described(name, arguments)}, and its input {input_text(card.preprocessing)}"
        known = "" if weights.entry else assumed
        _logger.warning(
            f"{source}: no names are known for its {count} classes, which are called class 0 to class {count - 1}{known}: "
            f"`mvit-video convert {source} --to native --classes FILE --output FILE` makes a checkpoint that knows both"
        )
    entry = model_entry(name)
    model = filled(
        lambda: model_from_card(card),
        lambda wanted: fit_weights(weights, wanted, head_layer=entry.capabilities.head)[0],
        entry,
    )
    return model.eval(), card


def _with_head(weights: Weights) -> Weights:
    if weights.num_classes is None:
        if not weights.lacks:
            cure = "use it with load_weights only"
        else:
            cure = f"fine-tune it, `mvit-video train finetune data.root=FOLDER model.weights={weights.source} --output DIR`"
        what = "is pre-trained without labels and has no head" if weights.lacks else "has no head"
        raise CheckpointError(f"{weights.source}: {what}, so it cannot predict labels: {cure}")
    return weights


def _network(weights: Weights, name: str | None) -> tuple[str, dict[str, Any]]:
    """Name and arguments: the card's, or of the name that the user gives, or of the network with these shapes."""
    if weights.card is None:
        return (name, form_of(model_entry(name), weights) or {}) if name else _recognised(weights)
    if name not in (None, weights.card.name):
        raise ConfigError(f"{weights.source}: is of {weights.card.name} by its card, not of {name}: drop --model")
    return weights.card.name, weights.card.arguments


def _recognised(weights: Weights) -> tuple[str, dict[str, Any]]:
    found = recognise_model(weights)
    if found is None:
        raise CheckpointError(
            f"{weights.source}: its shapes match no network of `mvit-video models`: name one with --model"
        )
    return found


def _native_card(weights: Weights, name: str, arguments: dict[str, Any], classes: Sequence[str] | None) -> ModelCard:
    """The checkpoint's own card, where it has one, else one that is made for it; with these classes if there are any."""
    names = tuple(classes or weights.classes or ())
    if len(names) != weights.num_classes:
        what = f"{len(names)} class names for" if names else "no class names are known for"
        raise ConfigError(f"{weights.source}: {what} its {weights.num_classes} classes: pass them with --classes FILE")
    if weights.card is None:
        return _card(weights, name, arguments, names)
    return weights.card.renamed(names)


def _card(weights: Weights, name: str, arguments: dict[str, Any], classes: tuple[str, ...]) -> ModelCard:
    """What a foreign checkpoint's card says: the zoo's facts for this file, else the usual ones of its network."""
    entry = weights.entry
    if entry is None or entry.model != name:
        return ModelCard(name=name, arguments=arguments, classes=classes, preprocessing=usual_input(name))
    inputs, protocol = entry.preprocessing, entry.protocol
    return ModelCard(name=name, arguments=arguments, classes=classes, preprocessing=inputs, protocol=protocol)


def _with_overrides(card: ModelCard, overrides: Sequence[str]) -> ModelCard:
    """The card with the input and the views that KEY=VALUE words give."""
    if not overrides:
        return card
    allowed = [*(f"data.{name}" for name in InputSettings.model_fields), "evaluation.protocol"]
    for word in overrides:
        key = word.partition("=")[0]
        if key not in allowed:
            raise ConfigError(
                f"'{word}': a checkpoint does not know '{key}'{did_you_mean(key, allowed)}: choose from {', '.join(allowed)}"
            )
    from mvit_video.config.load import config_from_dict  # reads YAML, which loading a network does not

    tree = {"data": card.preprocessing.model_dump(mode="json"), "evaluation": {"protocol": card.protocol}}
    config = config_from_dict(tree, "the input", overrides)
    protocol = config.evaluation.protocol
    return card.model_copy(update={"preprocessing": config.data.input, "protocol": protocol, "measured": None})


def usual_input(name: str) -> InputSettings:
    """The input that a network is named for (16x4 is every 4th of 16 frames), scaled to 8/7 of the crop before it."""
    entry = model_entry(name)
    crop = entry.defaults["crop_size"]
    return InputSettings(
        num_frames=entry.defaults["num_frames"],
        sampling_rate=entry.sampling_rate,
        short_side=round(crop * 8 / 7),
        crop_size=crop,
    )
