"""Weights of another project: how to recognise them, and how to convert their names to ours and back."""

from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


def has(name: str) -> Callable[[Set[str]], bool]:
    """For `CheckpointFormat.matches`: whether a tensor of this name is among them."""
    return lambda names: name in names


def no_name(name: str) -> bool:
    """For `CheckpointFormat.unused`: all tensors are used."""
    return False


def same_names(state: Mapping[str, Tensor]) -> Callable[[str], str]:
    """For `CheckpointFormat.renamer`: their names are ours."""
    return str


@dataclass(frozen=True)
class CheckpointFormat:
    """Files of another project, which a network names among its capabilities."""

    name: str
    matches: Callable[[Set[str]], bool]
    """Whether these names of tensors are of this format."""
    renamer: Callable[[Mapping[str, Tensor]], Callable[[str], str]] = same_names
    """From all tensors of a file: what gives our name for each of theirs."""
    write: Callable[[Mapping[str, Tensor]], Mapping[str, Any]] | None = None
    """From our tensors: what a file of that project holds, for `convert --to`; None where none is written."""
    arranged: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
    """Tensors under our names, arranged as ours: several that are one of ours are joined."""
    unused: Callable[[str], bool] = no_name
    """Whether a tensor of this name is of no network: what pre-training predicts with, constants of a data loader."""
    lacks: tuple[str, ...] = ()
    """Beginnings of our names of what follows the blocks and no file has, since it is trained later; beside the head."""
    knows: Mapping[str, Collection[Any]] = field(default_factory=dict, hash=False)
    """Arguments of the network with the values that this project has, too; `convert --to` refuses networks of others."""
