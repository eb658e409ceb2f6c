"""Build the training loop of a resolved run: network, step, batches and hooks. Settings objects go no further."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mvit_video.config.schema import Config
from mvit_video.data.dataset import clip_dataset_from
from mvit_video.data.lists.records import VideoList
from mvit_video.data.loader import StepSampler, steps_per_epoch, training_loader
from mvit_video.data.masking import Window, mask_from
from mvit_video.data.mixing import mixer_from
from mvit_video.data.pixels import Normalise
from mvit_video.engine.checkpoint import Learner, environment, load_state
from mvit_video.engine.data_warnings import shown_in_an_epoch
from mvit_video.engine.determinism import deterministic_algorithms, seed_step
from mvit_video.engine.distributed import is_rank_zero, rank, world_size
from mvit_video.engine.hooks.averaging import AverageWeights
from mvit_video.engine.hooks.bad_videos import BadVideos
from mvit_video.engine.hooks.curves import DrawCurves
from mvit_video.engine.hooks.first_batch import DrawFirstBatch
from mvit_video.engine.hooks.masked import DrawMasked
from mvit_video.engine.hooks.progress import Progress
from mvit_video.engine.hooks.records import StepRecords
from mvit_video.engine.hooks.saving import SaveStates
from mvit_video.engine.hooks.signals import StopOnSignal
from mvit_video.engine.hooks.speed import Speed
from mvit_video.engine.hooks.tracking import Track
from mvit_video.engine.hooks.validation import Measure, Validation
from mvit_video.engine.loop import Hook, Loop, Steps
from mvit_video.engine.losses import ShownClasses, check_resolutions, objective_from
from mvit_video.engine.masked import MaskedObjective, hidden_weights, mask_window, masked_objective_from
from mvit_video.engine.nonfinite import GuardedStep
from mvit_video.engine.plan import RunPlan
from mvit_video.engine.preflight import preflight
from mvit_video.engine.resolve import ResolvedRun
from mvit_video.engine.resume import first_step
from mvit_video.engine.run_folder import list_digest, prepare_folder
from mvit_video.engine.schedule import learning_rate_from
from mvit_video.engine.teacher import read_teacher
from mvit_video.engine.trackers import open_trackers
from mvit_video.engine.trainer import Trainer, learner_from, trainer_from
from mvit_video.errors import ConfigError
from mvit_video.model.precision import Precision
from mvit_video.model.registry import lacks, model_entry
from mvit_video.model.weights.card import ModelCard, model_from_card
from mvit_video.model.weights.load import Weights, load_into, load_into_masked, read_weights

MakeMeasure = Callable[[VideoList], Measure]
"""List of videos -> function that measures a network on them, for validation."""


@dataclass(frozen=True)
class Training:
    """A built run: start it with `loop.run(batches)`."""

    loop: Loop
    batches: Iterable[dict[str, Any]]
    learner: Learner


def build(run: ResolvedRun, make_measure: MakeMeasure, say: Callable[[str], None]) -> Training:
    """Build the run, check it, and only then open its folder. Every process must call this.

    Raises ConfigError, DecodeError or CheckpointError for what cannot be trained. The plan is printed with `say`.
    """
    data, settings = run.config.data, run.config.train
    sampler, trainer = step_sampler(run.config, len(run.train), run.train.records.labels), _trainer(run, say)
    window = mask_window(run.config, trainer.learner.model) if run.masked else None
    mask = mask_from(run.config.pretrain, window) if window else None
    dataset = clip_dataset_from(
        data, run.train, settings.seed, pixels=True, mask=mask, multi_label=run.card.multi_label
    )
    target = _some_target(window or (len(run.train.classes),))
    with deterministic_algorithms(settings.deterministic):
        checked = preflight(trainer, dataset, run.config, run.folder, run.val is not None, target)
    if run.state is not None:
        load_state(run.state, trainer.learner)
    if is_rank_zero():
        prepare_folder(run.folder, run.config, run.resume, run.overwrite, run.lists)
    about = _about(run)
    sampler.first_step = first_step(run.folder, run.state, about["environment"], say)
    steps = Steps(sampler.first_step, run.last_step, run.steps_per_epoch)
    classes = len(run.train.classes)
    say(RunPlan(run.config, run.device, trainer.learner.model, classes, len(run.train)).text(steps.first))
    say(checked)
    normalise = Normalise(data.mean, data.std)
    batches = training_loader(dataset, sampler, data.workers, settings.clips_per_pass, run.device, normalise)
    measure = make_measure(run.val) if run.val is not None else None
    answer = "mask" if run.masked else "label"
    step = GuardedStep(trainer.train_step, run.folder, settings.on_nonfinite == "stop", answer)
    return Training(
        Loop(step, steps, _hooks(run, trainer, steps, measure, about, window, say)), batches, trainer.learner
    )


def _some_target(shape: tuple[int, ...]) -> Tensor:
    """A uniform target over all classes, or a mask that hides everything."""
    return torch.full(shape, 1 / prod(shape))


def _trainer(run: ResolvedRun, say: Callable[[str], None]) -> Trainer:
    settings = run.config.train
    teacher = read_teacher(settings.teacher, run.card, run.device) if settings.teacher else None
    model = initial_model(run.config, run.card, say, run.state is not None)
    learner = learner_from(settings, model.to(run.device), run.device, run.precision)
    learner = replace(learner, teacher=teacher.digest if teacher else None)
    rate = learning_rate_from(settings, run.last_step, run.steps_per_epoch)
    if run.masked:
        objective = masked_objective_from(run.config.pretrain, learner.model)
        return trainer_from(settings, learner, rate, hidden_weights, objective, run.device, run.precision)
    mixer = mixer_from(settings, len(run.train.classes))
    labelled = objective_from(settings, teacher, _shown(run))
    return trainer_from(settings, learner, rate, mixer, labelled, run.device, run.precision)


def _hooks(
    run: ResolvedRun,
    trainer: Trainer,
    steps: Steps,
    measure: Measure | None,
    about: dict[str, Any],
    window: Window | None,
    say: Callable[[str], None],
) -> list[Hook]:
    """Hooks in the order in which they are called."""
    folder, settings, card, learner, speed = run.folder, run.config.train, run.card, trainer.learner, Speed()

    def due(done: int) -> bool:
        return done == steps.last or done % (steps.per_epoch * settings.validate_every_epochs) == 0

    def validates(done: int) -> bool:
        return measure is not None and due(done)

    hooks = [
        speed,
        BadVideos(folder, card.preprocessing, run.config.data.on_error == "stop", window),
        _picture(run, trainer, due),
        AverageWeights(learner.average, learner.model) if learner.average is not None else None,
        StepRecords(folder),
        Track(lambda done: open_trackers(folder, run.config, done)),
        DrawCurves(folder),
        Progress(folder, speed, say),
        StopOnSignal(folder),
        SaveStates(folder, learner, card, settings.checkpoint_every_steps, settings.keep_checkpoints, validates, about),
        Validation(folder, learner, card, measure, validates, trainer.train_mode) if measure is not None else None,
    ]
    return [hook for hook in hooks if hook is not None]


def _picture(run: ResolvedRun, trainer: Trainer, due: Callable[[int], bool]) -> Hook:
    """The hook that draws the network's input at the start and, in pre-training, its predictions later."""
    folder, card, objective = run.folder, run.card, trainer.objective
    if not isinstance(objective, MaskedObjective):
        return DrawFirstBatch(folder, card.classes, card.preprocessing, trainer.step_mixer)
    autocast = Precision(run.precision, run.device).autocast

    def draws(done: int) -> bool:
        return done == 1 or due(done)

    return DrawMasked(folder, trainer.learner, card, objective, draws, trainer.train_mode, autocast)


def _about(run: ResolvedRun) -> dict[str, Any]:
    """Metadata about a run for its saved states."""
    return {
        "seed": run.config.train.seed,
        "config": run.config.model_dump(mode="json"),
        "environment": environment(run.device, run.config.train),
        "lists": [list_digest(videos) for videos in run.lists],
    }


def _shown(run: ResolvedRun) -> ShownClasses:
    counts = torch.from_numpy(shown_in_an_epoch(run.config, run.train, run.steps_per_epoch))
    return ShownClasses(run.train.classes, counts.float().to(run.device))


def step_sampler(config: Config, num_videos: int, labels: np.ndarray | None = None) -> StepSampler:
    """Sampler of this process's videos for every step of a run."""
    settings, repeated_aug = config.train, config.data.repeated_aug
    last_step = steps_per_epoch(num_videos, settings.clips_per_step, repeated_aug) * settings.epochs
    share, classes = (rank(), world_size()), (labels, config.data.sampling_balance)
    sampler = StepSampler(
        num_videos, settings.clips_per_step, settings.seed, 0, last_step, repeated_aug, *share, *classes
    )
    if (settings.mixup or settings.cutmix) and settings.mix_probability and not sampler.mirrored:
        raise ConfigError(
            f"train.clips_per_step = {settings.clips_per_step} gives each of {world_size()} processes an odd number of videos "
            f"({len(sampler.places)}), which mixup and CutMix cannot pair: make it a multiple of "
            f"{2 * world_size() * repeated_aug}, or set train.mixup and train.cutmix to 0"
        )
    return sampler


def initial_model(config: Config, card: ModelCard, say: Callable[[str], None], resumed: bool = False) -> nn.Module:
    """The network before the first step, with random weights by the seed, or with those of `model.weights`.

    The head is re-initialised, with a note, if the checkpoint's classes differ from the card's. A `resumed` run does not
    read the checkpoint, since its state has all weights.
    """
    seed_step(config.train.seed, 0)
    model = model_from_card(card)
    check_resolutions(config.model.name, config.train)
    if card.pretraining is not None and config.model.weights is not None and not resumed:
        say(load_into_masked(model, read_weights(config.model.weights)).summary())
    elif config.model.weights is not None and not resumed:
        weights = read_weights(config.model.weights)
        other_classes = weights.classes != card.classes
        if other_classes and weights.num_classes is not None:
            say(_new_head(weights, card))
        say(load_into(model, weights, reset_head=other_classes).summary())
    if config.train.activation_checkpointing:
        if not model_entry(config.model.name).capabilities.activation_checkpointing:
            capability, cure = "activation_checkpointing", "unset train.activation_checkpointing"
            raise lacks(config.model.name, capability, "has no activation checkpointing", cure)
        setattr(model, "activation_checkpointing", True)  # noqa: B010 (not every module has it)
    return model


def _new_head(weights: Weights, card: ModelCard) -> str:
    known = f"such as '{weights.classes[0]}'" if weights.classes else "of unknown names"
    return (
        f"the classification head is re-initialised for your classes: {weights.source} has {weights.num_classes} classes, "
        f"{known}, the training list {len(card.classes)}, such as '{card.classes[0]}'"
    )
