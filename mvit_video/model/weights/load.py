"""Load checkpoints of any known format into networks, and report what became of every tensor."""

# C channels, P positions, d head dim

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from math import isqrt
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvit_video.data.lists.class_names import published_classes
from mvit_video.download import local_file
from mvit_video.errors import CheckpointError, did_you_mean
from mvit_video.model.registry import (
    INPUT,
    MODELS,
    ModelEntry,
    build_model,
    head_name,
    model_entry,
    settled_arguments,
)
from mvit_video.model.relative_position import resample_table
from mvit_video.model.weights.card import CARD_KEY, ModelCard, entry_of_file, model_of_file, read_card
from mvit_video.model.weights.files import check_file, read_checkpoint, read_tensors
from mvit_video.model.weights.formats import (
    BEHIND_BLOCKS,
    convert_to_ours,
    format_named,
    head_names,
    known_formats,
    of_maskfeat,
    unused_names,
)
from mvit_video.model.weights.hub import hub_file, is_hub
from mvit_video.model.weights.inflate import INDEX_TABLE, VALUE_FILTER, check_inflation, inflate, is_image
from mvit_video.model.weights.zoo import ZOO, ZooEntry, zoo_entry

OF_SIZES_AND_TRAINING = (
    *INPUT,
    "drop_path_rate",
    "dropout_rate",
    "head_init_scale",
    "attention",
    "activation_checkpointing",
)


@dataclass(frozen=True)
class Weights:
    """A checkpoint in memory: tensors under our names, and what is known about them."""

    source: str
    """What the user named: a file, an address or a name of the zoo."""
    format: str
    """native, or another project's: PySlowFast, torchvision, timm, MMAction2 and the like."""
    state: dict[str, Tensor]
    ignored: tuple[str, ...]
    """What lies beside the weights: optimiser state, epoch and the like, and what only pre-training needs."""
    card: ModelCard | None = None
    """Of our own checkpoints of classifiers."""
    pretrained: ModelCard | None = None
    """Of our own checkpoints from `pretrain`."""
    entry: ZooEntry | None = None
    """Of public checkpoints that the zoo lists."""

    @property
    def lacks(self) -> tuple[str, ...]:
        """Beginnings of names of what pre-trained weights have not got beside a head; nothing for others."""
        form = format_named(self.format)
        return form.lacks if form else ()

    @property
    def has_no_format(self) -> bool:
        """Whether these are weights of a network that no other project has files of."""
        return self.card is not None and not model_entry(self.card.name).capabilities.formats

    @property
    def num_classes(self) -> int | None:
        """Rows of the head; None for weights without one."""
        if self.card is not None:
            return len(self.card.classes)
        bias = head_names(self.format)[1]
        return self.state[bias].numel() if bias in self.state else None

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names in label order where they are known: the card's, or those of a public file. Their number tells nothing."""
        if self.card is not None:
            return self.card.classes
        if self.entry is None or self.entry.classes is None or self.entry.num_classes != self.num_classes:
            return None
        return published_classes(self.entry.classes)


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor. Each of the model's is in exactly one of the first four lists."""

    source: str
    format: str
    copied: tuple[str, ...]
    """Value for value as in the checkpoint."""
    inflated: tuple[str, ...]
    """Made from image weights: filters with a time axis, and temporal position tables of zeros."""
    interpolated: tuple[str, ...]
    """Position tables read at another number of rows."""
    new: tuple[str, ...]
    """Left as the model had them: a new head, a class token or filters of values that the source does not have, and the last
    norm behind pre-trained blocks."""
    ignored: tuple[str, ...]
    """In the checkpoint, not used: what lies beside the weights or is of pre-training alone, and its head where the model
    keeps its own."""
    otherwise: tuple[str, ...] = ()
    """Arguments that leave every tensor its shape, such as token_mixing, and that the weights were trained with other values of."""

    def summary(self) -> str:
        """One line: counts, and the names of what is new."""
        counts = [f"{len(names)} {fate}" for fate, names in self.fates().items() if names and fate != "new"]
        new = [f"{len(self.new)} new ({', '.join(self.new)})"] if self.new else []
        otherwise = f"; the network that they were trained in had {', '.join(self.otherwise)}" if self.otherwise else ""
        return f"weights from {self.source} ({self.format}): {', '.join(counts + new)}{otherwise}"

    def fates(self) -> dict[str, tuple[str, ...]]:
        """The five lists by their names."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in ("source", "format", "otherwise")
        }

    def __str__(self) -> str:
        lines = [f"  {fate}: {name}" for fate, names in self.fates().items() if fate != "copied" for name in names]
        return "\n".join([self.summary(), *lines])


def load_weights(
    model: nn.Module, path_or_url: str | Path, inflation: str = "center", reset_head: bool = False
) -> LoadReport:
    """Load a checkpoint into `model` and report what became of every tensor; on an error the model is unchanged.

    Args:
        path_or_url: a file, an http(s) address, or a name of the zoo (`mvit-video models`); PySlowFast's video and
            image files, torchvision's, timm's and our own are told apart by their contents.
        inflation: how a video model gets its filters from image weights: "center" (the paper's) or "mean".
        reset_head: keep the model's own head, whatever the checkpoint's.

    Position tables of another length are interpolated. Raises CheckpointError, in one sentence, for a file that is not
    whole, holds code, NaN or Inf, or has a tensor that the model does not explain, and for a head of another size.
    """
    return load_into(model, read_weights(path_or_url), inflation, reset_head)


def read_weights(source: str | Path) -> Weights:
    """A checkpoint of any known format, under our names; a baseline's own under its. Raises CheckpointError."""
    weights = unchecked_weights(source)
    if weights.card is not None:
        check_card(weights.card, weights.state, source)
    return weights


def unchecked_weights(source: str | Path) -> Weights:
    """`read_weights` for `model_of_weights`, which compares the tensors with those of the card's network itself."""
    name, file = str(source), checkpoint_file(source)
    tensors, metadata = read_tensors(file, source)
    card = read_card(metadata, source) if CARD_KEY in metadata else None
    if card is not None and card.pretraining is None:
        return Weights(name, "native", tensors, (), card)
    kind, state = convert_to_ours(tensors, source)
    ignored = (*(metadata if card is None else ()), *unused_names(tensors, source))
    return Weights(name, kind, state, ignored, pretrained=card, entry=zoo_entry(name))


def checkpoint_file(source: str | Path) -> Path:
    """The file on this machine of a path, an address or a name of the zoo. A download that is no weights is not kept."""
    name = str(source)
    if is_hub(name):
        file = hub_file(name)
        check_file(file, name)
        return file
    place = ZOO[name].url if name in ZOO and not Path(name).is_file() else name
    try:
        return local_file(place, CheckpointError, check=lambda file: check_file(file, place))
    except CheckpointError as reason:
        near = did_you_mean(name, ZOO) if place == name else ""
        raise CheckpointError(f"{reason}{near}") from None


def load_checkpoint(path: str | Path) -> tuple[nn.Module, ModelCard]:
    """The network of a checkpoint of ours, in eval mode, and its card. `path` may be an http(s) address."""
    state, card = read_checkpoint(path)
    return model_of_weights(card, state, path)


def check_card(card: ModelCard, state: Mapping[str, Tensor], source: str | Path) -> None:
    """CheckpointError where the tensors of a file are not those of the network that its card describes.

    Found out before memory is taken for that network, where it can be built without any.
    """
    if entry_of_file(card, source).capabilities.meta:
        with torch.device("meta"):
            check_exactly(model_of_file(card, source).state_dict(), state, source)


def model_of_weights(card: ModelCard, state: dict[str, Tensor], source: str | Path) -> tuple[nn.Module, ModelCard]:
    """The network of a card with all tensors of `state`, in eval mode, and the card. Raises CheckpointError."""

    def exactly(wanted: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        check_exactly(wanted, state, source)
        return state

    return filled(lambda: model_of_file(card, source), exactly, entry_of_file(card, source)).eval(), card


def filled(
    build: Callable[[], nn.Module], fit: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]], entry: ModelEntry
) -> nn.Module:
    """The network that `build` makes, with copies of the tensors that `fit` has for its state.

    A network that can be built on the meta device is, so that no random weights are drawn only to be replaced.
    """
    meta = entry.capabilities.meta
    with torch.device("meta" if meta else "cpu"):
        model = build()
    wanted = model.state_dict()
    state = fit(wanted)
    if meta:
        state = {name: _copied(tensor, wanted[name]) for name, tensor in state.items()}
    model.load_state_dict(state, assign=meta)
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):  # one that is in no state
        model = build()
        model.load_state_dict(state)
    return model


def _copied(tensor: Tensor, like: Tensor) -> Tensor:
    """Of the type that the network has, in memory as PyTorch aligns it: files do not, and last bits may depend on it."""
    return torch.empty(like.shape, dtype=like.dtype).copy_(tensor)  # empty_like of a meta tensor imports sympy


def load_into(model: nn.Module, weights: Weights, inflation: str = "center", reset_head: bool = False) -> LoadReport:
    """`load_weights` for weights that are read already."""
    state, report = fit_model(model, weights, inflation, reset_head)
    model.load_state_dict(model.state_dict() | state)
    return report


def fit_model(
    model: nn.Module, weights: Weights, inflation: str = "center", reset_head: bool = False
) -> tuple[dict[str, Tensor], LoadReport]:
    """What `load_into` would load, and its report. The model, which is not changed, may be on the meta device."""
    state, report = fit_weights(weights, model.state_dict(), inflation, reset_head, head_name(model))
    return state, report if report.inflated else replace(report, otherwise=_otherwise(weights.card, model))


def _otherwise(card: ModelCard | None, model: nn.Module) -> tuple[str, ...]:
    """For the report: arguments of the card's network that differ from the model's, but for those of sizes and of training."""
    name, given = (model.__dict__.get(f"registered_{what}") for what in ("name", "arguments"))
    if card is None or name is None or given is None or model_entry(card.name).build is not model_entry(name).build:
        return ()
    sizes = {"num_frames": card.preprocessing.num_frames, "crop_size": card.preprocessing.crop_size}
    there, here = settled_arguments(card.name, sizes | card.arguments), settled_arguments(name, given)
    return tuple(
        f"{argument}={value!r} where this one has {here.get(argument)!r}"
        for argument, value in there.items()
        if argument not in OF_SIZES_AND_TRAINING and _plain(value) != _plain(here.get(argument))
    )


def _plain(value: object) -> str:
    """A text in which lists and tuples are alike."""
    return json.dumps(value, default=repr)


def load_into_masked(model: nn.Module, weights: Weights) -> LoadReport:
    """`load_into` for a pre-training form: what it predicts with stays new, and a classifier's last norm and head are not used."""
    state, report = fit_masked(model, weights)
    model.load_state_dict(model.state_dict() | state)
    return report


def fit_masked(model: nn.Module, weights: Weights) -> tuple[dict[str, Tensor], LoadReport]:
    """What `load_into_masked` would load, and its report."""
    wanted = model.state_dict()
    own = tuple(name for name in wanted if of_maskfeat(name))
    blocks = {name: tensor for name, tensor in wanted.items() if name not in own}
    unused = tuple(name for name in weights.state if name.startswith(BEHIND_BLOCKS))
    fitted, report = fit_weights(weights, blocks, unused=unused)
    return fitted, replace(report, new=(*report.new, *own))


def fit_weights(
    weights: Weights,
    wanted: Mapping[str, Tensor],
    inflation: str = "center",
    reset_head: bool = False,
    head_layer: str | None = None,
    unused: Collection[str] = (),
) -> tuple[dict[str, Tensor], LoadReport]:
    """The tensors of `wanted`'s shapes that `weights` has for it (all but the report's `new`), and the report.

    Looks at shapes only, so `wanted` may be on the meta device. `head_layer` is the name of the layer that classifies; without
    one it is the last that there is. `unused` are names of tensors that are left out.
    """
    check_inflation(inflation)
    state = {name: tensor for name, tensor in weights.state.items() if name not in unused}
    inflated, head = list[str](), _head_of(wanted, head_layer)
    new = list(head) if reset_head or not any(name in state for name in head) else []
    new += _beginning_with(weights.lacks, wanted)
    if not _value_filters(state):
        new += _value_filters(wanted)  # zeros: networks can be given them after training
    if not weights.has_no_format and is_image(state):
        new += [name for name in ("cls_token",) if name in wanted and name not in state]
        if not is_image(wanted):
            state, inflated = inflate(state, wanted, inflation)
    if difference := _difference(state, wanted, new):
        raise CheckpointError(f"{weights.source}: {difference}: {_what_fits(weights, wanted)}")
    used = {name: state[name] for name in wanted if name not in new}
    fitted = {name: _fitted(name, tensor, wanted, weights, head) for name, tensor in used.items()}
    interpolated = [name for name in used if fitted[name] is not used[name]]
    made = {*inflated, *interpolated, *new}
    report = LoadReport(
        source=weights.source,
        format=weights.format,
        copied=tuple(name for name in wanted if name not in made),
        inflated=tuple(inflated),
        interpolated=tuple(interpolated),
        new=tuple(new),
        ignored=(*weights.ignored, *(name for name in head if reset_head and name in weights.state), *unused),
    )
    return fitted, report


def check_exactly(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str | Path) -> None:
    """CheckpointError for the first tensor that is missing, unknown or of another shape."""
    if difference := _difference(state, wanted):
        raise CheckpointError(f"{source}: {difference}")
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            shapes = f"{tuple(tensor.shape)}, expected {tuple(wanted[name].shape)}"
            raise CheckpointError(
                f"{source}: '{name}' has shape {shapes}: is it a checkpoint of another network or class list?"
            )
        _check_kind(name, tensor, wanted[name], source)


def _check_kind(name: str, tensor: Tensor, wanted: Tensor, source: str | Path) -> None:
    """CheckpointError for counts where weights are wanted, or the other way round."""
    if tensor.is_floating_point() != wanted.is_floating_point():
        kind = "floating point weights" if wanted.is_floating_point() else "whole numbers"
        raise CheckpointError(f"{source}: '{name}' contains {tensor.dtype}, expected {kind}")


def _difference(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], excepted: Collection[str] = ()) -> str:
    """The first name that one side lacks, with counts; an empty string where the names are the same."""
    missing = sorted(wanted.keys() - state.keys() - set(excepted))
    unknown = sorted(state.keys() - wanted.keys() - set(excepted))
    if not missing and not unknown:
        return ""
    what = f"lacks '{missing[0]}'" if missing else f"contains '{unknown[0]}', which the network does not have"
    return f"{what} ({len(missing)} missing, {len(unknown)} unknown)"


def _beginning_with(beginnings: tuple[str, ...], names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(beginnings)]


def _value_filters(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.endswith(VALUE_FILTER)]


def _head_of(wanted: Mapping[str, Tensor], layer: str | None = None) -> tuple[str, ...]:
    """The names of the tensors of a network's head: of this layer, or else the last two, a weight and a bias."""
    return tuple(name for name in wanted if name.rpartition(".")[0] == layer) or tuple(wanted)[-2:]


def _fitted(name: str, tensor: Tensor, wanted: Mapping[str, Tensor], weights: Weights, head: tuple[str, ...]) -> Tensor:
    """The tensor itself where it has the shape, else a position table read at other rows; CheckpointError for the rest."""
    shape = wanted[name].shape
    _check_kind(name, tensor, wanted[name], weights.source)
    if tensor.shape == shape:
        return tensor
    if name in head:
        raise CheckpointError(
            f"{weights.source}: its head has {weights.num_classes} classes, the network's {shape[0]}: build the network "
            f"with num_classes={weights.num_classes}, or re-initialise its head with reset_head=True"
        )
    if tensor.numel() and tensor.ndim == len(shape) and tensor.shape[-1] == shape[-1]:
        if ".rel_pos_" in name:
            return resample_table(tensor, shape[0])
        if name == "pos_embed_temporal":
            return resample_table(tensor[0], shape[1])[None]
        if name == "pos_embed_spatial" and _both_square(tensor.shape[1], shape[1]):
            return _resample_square(tensor, isqrt(shape[1]))
    raise CheckpointError(
        f"{weights.source}: '{name}' has shape {tuple(tensor.shape)}, the network's has {tuple(shape)}: "
        f"{_what_fits(weights, wanted)}"
    )


def _both_square(*counts: int) -> bool:
    return all(isqrt(count) ** 2 == count for count in counts)


def _resample_square(positions: Tensor, side: int) -> Tensor:
    """Absolute positions of a square grid (1, P, C) for another square grid."""
    width = isqrt(positions.shape[1])
    grid = positions.view(1, width, width, -1).permute(0, 3, 1, 2)  # (1, C, side, side)
    return F.interpolate(grid, size=(side, side), mode="bilinear").flatten(2).transpose(1, 2)


def recognise_model(weights: Weights) -> tuple[str, dict[str, Any]] | None:
    """The registered network that has exactly these shapes, whatever its head, and what differs from its usual arguments.

    Those are told by the tensors, such as other depths; of several networks the one with the fewest is found. None where there
    is none. Position tables of pre-trained weights may have other rows: their last stage is not strided.
    """
    lacks = weights.lacks
    shapes = _shapes(weights.state, head_names(weights.format), lacks)
    for entry, arguments in _candidates(weights):
        with torch.device("meta" if entry.capabilities.meta else "cpu"):
            wanted = build_model(entry.name, **arguments).state_dict()
        if shapes == _shapes(wanted, _head_of(wanted, entry.capabilities.head), lacks):
            return entry.name, arguments
    return None


def form_of(entry: ModelEntry, weights: Weights) -> dict[str, Any] | None:
    """Arguments of the weights' network that differ from the entry's; None where it cannot be of that name."""
    form = entry.capabilities.form
    return {} if form is None else form(weights.state, weights.format, entry.defaults)


def _candidates(weights: Weights) -> list[tuple[ModelEntry, dict[str, Any]]]:
    """Networks that files of this format may be of, with the arguments that differ from the usual ones: the fewest first."""
    entries = [MODELS.get(name) for name in MODELS.names()]
    own = [each for each in known_formats() if weights.format in (each.name, "native")]
    fitting = [entry for entry in entries if any(each in own for each in entry.capabilities.formats)]
    found = [(entry, arguments) for entry in fitting if (arguments := form_of(entry, weights)) is not None]
    return sorted(found, key=lambda each: len(each[1]))


def described(name: str, arguments: Mapping[str, Any]) -> str:
    """A network in words: its name, and arguments that are not its usual ones."""
    changed = ", ".join(f"{argument}={value!r}" for argument, value in arguments.items())
    return f"{name} with {changed}" if changed else name


def _shapes(state: Mapping[str, Tensor], head: tuple[str, ...], lacks: tuple[str, ...]) -> dict[str, torch.Size]:
    """By name, without the head, tables that follow from sizes alone, what pre-trained weights lack and rows of their tables."""
    left_out = {*head, *_beginning_with(lacks, state)}
    return {
        name: each.shape[-1:] if lacks and ".rel_pos_" in name else each.shape
        for name, each in state.items()
        if name not in left_out and not name.endswith(INDEX_TABLE)
    }


def _what_fits(weights: Weights, wanted: Mapping[str, Tensor]) -> str:
    """Advice for weights of another network."""
    if weights.card is not None and weights.has_no_format:
        return f"these are weights of {weights.card.name}, so build that one for the same clips"
    if weights.card is None and _value_filters(weights.state) and not _value_filters(wanted):
        return "these are weights of a network with positions='lepe', so build one"
    found = recognise_model(weights) if weights.card is None else (weights.card.name, weights.card.arguments)
    if found is None:
        return "they are weights of no network that is known here"
    name = described(*found)
    if is_image(weights.state) and not is_image(wanted):
        return (
            f"these are weights of {name}, so build a video network with its depths, embed_dim, num_heads and "
            "width_growth"
        )
    usual = "" if found[1] else " with its usual arguments"
    return f"these are weights of {name}{usual}, so build that one"
