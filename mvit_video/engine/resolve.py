"""Resolve settings into a run. Nothing is written here.

This is the only place that resolves indirections: the lists that `data.train=auto` finds, the values of `auto`, the
precision of the device, and the state to resume from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mvit_video.config.load import config_from_dict, load_config
from mvit_video.config.schema import Config
from mvit_video.data.lists.records import VideoList
from mvit_video.data.lists.selection import training_lists, unlabelled_lists
from mvit_video.data.lists.split import resolve_auto_lists
from mvit_video.data.loader import steps_per_epoch
from mvit_video.engine.automatic import auto_settings, describe_auto, labelled_auto, resolve_auto
from mvit_video.engine.checkpoint import TrainingState
from mvit_video.engine.data_warnings import describe_lists
from mvit_video.engine.distributed import is_rank_zero
from mvit_video.engine.losses import check_one_label, is_multi_label
from mvit_video.engine.masked import check_pretraining
from mvit_video.engine.preflight import check_output
from mvit_video.engine.resume import agreed_state, check_schedule
from mvit_video.engine.run_folder import (
    SETTINGS,
    check_folder,
    check_no_videos_deleted,
    check_same_lists,
    never_started,
    will_resume,
    with_saved_lists,
)
from mvit_video.engine.run_plugins import with_plugins
from mvit_video.model.precision import resolve_precision
from mvit_video.model.registry import model_arguments, model_entry
from mvit_video.model.weights.auto import resolve_model_name
from mvit_video.model.weights.card import ModelCard
from mvit_video.model.weights.hub import is_hub, pinned


@dataclass(frozen=True)
class ResolvedRun:
    """A run that can be built: its files exist, and no setting is `auto`."""

    folder: Path
    resume: bool
    overwrite: bool
    config: Config
    """As written to config.yaml."""
    device: torch.device
    precision: str
    """fp32, bf16 or fp16."""
    train: VideoList
    val: VideoList | None
    card: ModelCard
    """Card of the final weights."""
    steps_per_epoch: int
    last_step: int
    state: TrainingState | None
    """The state to resume from."""

    @property
    def masked(self) -> bool:
        """Whether this is masked pre-training, without labels."""
        return self.config.train.objective == "masked"

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
    """Read the lists, resolve `auto`, and find the state to resume from. Raises ConfigError for whatever does not fit.

    Prints with `say` what the lists contain, the values of `auto`, and warnings. Every process must call this.
    """
    say = say if is_rank_zero() else (lambda text: None)
    if is_rank_zero():
        check_output(folder)
    if will_resume(folder, resume):
        load_config(folder / SETTINGS)  # raises if a plugin is missing, before its entries are needed
        config = with_saved_lists(folder, config)
    config = with_plugins(
        resolve_model_name(_with_pinned_weights(config, folder if will_resume(folder, resume) else None))
    )
    if config.train.objective == "masked":
        check_pretraining(config, labelled_auto(config))
    model_arguments(config.model.name, **config.model.arguments)  # raises if unknown, before lists are read
    if config.train.objective == "masked":
        config = config.model_copy(
            update={"data": resolve_auto_lists(config.data)}
        )  # nothing is split, so nothing is saved
    train, val = _lists(config)
    lists = [train] if val is None else [train, val]
    config = _resolve_auto(config, train, folder if will_resume(folder, resume) else None, say)
    if is_rank_zero():
        _check_folder(folder, config, lists, resume, overwrite)
    _print_notes(folder, lists, say)
    settings = config.train
    per_epoch = steps_per_epoch(len(train), settings.clips_per_step, config.data.repeated_aug)
    last_step = per_epoch * settings.epochs
    for sentence in describe_lists(config, train, val, last_step):
        say(sentence)
    state = _state_to_resume(folder, lists, last_step, per_epoch, say) if resume else None
    card = model_card(config, train.classes)
    precision = resolve_precision(settings.precision, device, "train.precision").name
    resolve_precision(config.evaluation.precision, device, "evaluation.precision")  # raises before the first step
    return ResolvedRun(
        folder, resume, overwrite, config, device, precision, train, val, card, per_epoch, last_step, state
    )


def _lists(config: Config) -> tuple[VideoList, VideoList | None]:
    if config.train.objective == "masked":
        return unlabelled_lists(config.data)
    check_one_label(config)
    return training_lists(config.data, is_multi_label(config.train))


def _with_pinned_weights(config: Config, resumed: Path | None) -> Config:
    """Pin weights from the Hub to a commit, so that config.yaml records what the run started from.

    A resumed run keeps its commit, even if the Hub has a newer one.
    """
    weights = config.model.weights
    if weights is None or not is_hub(weights):
        return config
    recorded = load_config(resumed / SETTINGS).model.weights if resumed is not None else None
    kept = recorded if recorded is not None and recorded.startswith(f"{weights}@") else None
    tree = config.model_dump(exclude_unset=True)
    tree["model"]["weights"] = kept or pinned(weights)
    return config_from_dict(tree, "settings")


def _state_to_resume(
    folder: Path, lists: list[VideoList], last_step: int, per_epoch: int, say: Callable[[str], None]
) -> TrainingState | None:
    state = agreed_state(folder, say)
    if state is not None:
        check_same_lists(state, lists)
        check_schedule(state, last_step, per_epoch)
    return state


def _check_folder(folder: Path, config: Config, lists: list[VideoList], resume: bool, overwrite: bool) -> None:
    check_folder(folder, config, resume, overwrite)
    if overwrite or never_started(folder):
        check_no_videos_deleted(folder, config, lists)


def _print_notes(folder: Path, lists: list[VideoList], say: Callable[[str], None]) -> None:
    if never_started(folder):
        say(f"note: {folder}: contains a run that ended before its first step and is replaced")
    for note in (note for videos in lists for note in videos.notes):
        say(f"note: {note}")


def _resolve_auto(config: Config, train: VideoList, resumed: Path | None, say: Callable[[str], None]) -> Config:
    """Resolve `auto` and print the values; a resumed run keeps its own."""
    before = load_config(resumed / SETTINGS) if resumed is not None else None
    auto, config = auto_settings(config), resolve_auto(config, len(train), len(train.classes), before)
    if auto:
        say(describe_auto(config, auto, len(train)))
    return config


def model_card(config: Config, classes: tuple[str, ...]) -> ModelCard:
    """Card of the weights that this configuration trains."""
    return ModelCard(
        name=config.model.name,
        plugin=model_entry(config.model.name).plugin,
        arguments=config.model.arguments,
        classes=classes,
        preprocessing=config.data.input,
        protocol=config.evaluation.protocol.rpartition("-")[2],  # the views of a named one: 5x1 of kinetics-5x1
        fusion=config.evaluation.fusion,
        multi_label=is_multi_label(config.train),
        pretraining=config.pretrain if config.train.objective == "masked" else None,
    )
