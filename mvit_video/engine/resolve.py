"""From settings to a run with nothing left to find out. Nothing is written here.

Whatever stands for something else is settled in this file alone: the lists that `data.train=auto` finds, the numbers that
`auto` stands for, the precision of the device, the state that a run goes on from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mvit_video.config.load import config_from_dict, load_config
from mvit_video.config.schema import Config
from mvit_video.data.lists.records import VideoList
from mvit_video.data.lists.selection import training_lists
from mvit_video.data.loader import steps_per_epoch
from mvit_video.engine.automatic import automatic_settings, in_words, with_numbers
from mvit_video.engine.cautions import about_lists
from mvit_video.engine.checkpoint import TrainingState
from mvit_video.engine.distributed import is_first
from mvit_video.engine.preflight import check_output
from mvit_video.engine.resume import agreed_state, check_schedule
from mvit_video.engine.run_folder import (
    SETTINGS,
    check_folder,
    check_videos_stay,
    goes_on,
    never_started,
    same_lists,
    with_lists_of,
)
from mvit_video.engine.run_plugins import with_plugins
from mvit_video.model.precision import resolve_precision
from mvit_video.model.registry import model_arguments, model_entry
from mvit_video.model.weights.auto import with_network_of_weights
from mvit_video.model.weights.card import ModelCard
from mvit_video.model.weights.hub import is_hub, pinned


@dataclass(frozen=True)
class ResolvedRun:
    """A run that can be built: all of its files are there, and all of its numbers are numbers."""

    folder: Path
    resume: bool
    overwrite: bool
    config: Config
    """As config.yaml will hold it."""
    device: torch.device
    precision: str
    """fp32, bf16 or fp16."""
    train: VideoList
    val: VideoList | None
    card: ModelCard
    """Of the weights to come."""
    steps_per_epoch: int
    last_step: int
    state: TrainingState | None
    """The state to go on from."""

    @property
    def lists(self) -> list[VideoList]:
        return [self.train] if self.val is None else [self.train, self.val]


def resolve(
    config: Config,
    folder: Path,
    device: torch.device,
    say: Callable[[str], None],
    resume: bool = False,
    overwrite: bool = False,
) -> ResolvedRun:
    """Read the lists, put numbers for `auto`, find the state to go on from. ConfigError for whatever does not fit.

    `say` is told what the lists hold, what `auto` has become, and what is likely to fail. Every process must call this.
    """
    say = say if is_first() else (lambda text: None)
    if is_first():
        check_output(folder)
    if goes_on(folder, resume):
        load_config(folder / SETTINGS)  # raises where a plugin is missing, before anything asks for what it registers
        config = with_lists_of(folder, config)
    config = with_plugins(
        with_network_of_weights(_with_pinned_weights(config, folder if goes_on(folder, resume) else None))
    )
    model_arguments(
        config.model.name, **config.model.arguments
    )  # raises for one that is unknown, before a list is read
    train, val = training_lists(config.data)
    lists = [train] if val is None else [train, val]
    config = _with_numbers(config, train, folder if goes_on(folder, resume) else None, say)
    if is_first():
        check_folder(folder, config, resume, overwrite)
        if overwrite or never_started(folder):
            check_videos_stay(folder, config, lists)
    _tell_notes(folder, lists, say)
    settings = config.train
    per_epoch = steps_per_epoch(len(train), settings.clips_per_step, config.data.repeated_aug)
    last_step = per_epoch * settings.epochs
    for sentence in about_lists(config, train, val, last_step):
        say(sentence)
    state = agreed_state(folder, say) if resume else None
    if state is not None:
        same_lists(state, lists)
        check_schedule(state, last_step, per_epoch)
    card = model_card(config, train.classes)
    precision = resolve_precision(settings.precision, device, "train.precision").name
    resolve_precision(config.evaluation.precision, device, "evaluation.precision")  # raises before the first step
    return ResolvedRun(
        folder, resume, overwrite, config, device, precision, train, val, card, per_epoch, last_step, state
    )


def _with_pinned_weights(config: Config, resumed: Path | None) -> Config:
    """The configuration with the commit of weights from the Hub, so that the run's record names what it started from.

    A resumed run keeps its commit, though the Hub may have a newer one.
    """
    weights = config.model.weights
    if weights is None or not is_hub(weights):
        return config
    recorded = load_config(resumed / SETTINGS).model.weights if resumed is not None else None
    kept = recorded if recorded is not None and recorded.startswith(f"{weights}@") else None
    tree = config.model_dump(exclude_unset=True)
    tree["model"]["weights"] = kept or pinned(weights)
    return config_from_dict(tree, "settings")


def _tell_notes(folder: Path, lists: list[VideoList], say: Callable[[str], None]) -> None:
    if never_started(folder):
        say(f"note: {folder}: contains a run that ended before its first step, which gives way to this one")
    for note in (note for videos in lists for note in videos.notes):
        say(f"note: {note}")


def _with_numbers(config: Config, train: VideoList, resumed: Path | None, say: Callable[[str], None]) -> Config:
    """The configuration with numbers for `auto`, which `say` is told; a run that is resumed keeps its own."""
    before = load_config(resumed / SETTINGS) if resumed is not None else None
    auto, config = automatic_settings(config), with_numbers(config, len(train), len(train.classes), before)
    if auto:
        say(in_words(config, auto, len(train)))
    return config


def model_card(config: Config, classes: tuple[str, ...]) -> ModelCard:
    """What the weights of this configuration carry."""
    return ModelCard(
        name=config.model.name,
        plugin=model_entry(config.model.name).plugin,
        arguments=config.model.arguments,
        classes=classes,
        preprocessing=config.data.input,
        protocol=config.evaluation.protocol.rpartition("-")[2],  # the views of a named one: 5x1 of kinetics-5x1
    )
