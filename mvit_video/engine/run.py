"""One training run in one folder: opened safely, trained from a configuration, resumed exactly."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mvit_video.config.load import load_config
from mvit_video.config.schema import AUTO, Config
from mvit_video.data.dataset import ClipDataset
from mvit_video.data.lists.checks import refuse_several_labels, shared_videos
from mvit_video.data.lists.class_names import read_classes
from mvit_video.data.lists.read import checked_list
from mvit_video.data.lists.records import VideoList
from mvit_video.data.lists.split import found_lists, split_videos
from mvit_video.data.loader import StepSampler, steps_per_epoch, training_loader
from mvit_video.data.mixing import Mixer
from mvit_video.engine.automatic import automatic_settings, in_words, with_numbers
from mvit_video.engine.cautions import cautions, class_counts
from mvit_video.engine.checkpoint import VALIDATION, TrainingState, environment, load_state, newest_state, set_aside
from mvit_video.engine.distributed import everyones, gathered, is_first, rank, world_size
from mvit_video.engine.ending import ended_at
from mvit_video.engine.hooks.averaging import AverageWeights
from mvit_video.engine.hooks.bad_videos import BadVideos, events_summary, without_bad_videos
from mvit_video.engine.hooks.curves import DrawCurves
from mvit_video.engine.hooks.first_batch import PictureFirstBatch
from mvit_video.engine.hooks.progress import Progress
from mvit_video.engine.hooks.records import StepRecords
from mvit_video.engine.hooks.saving import SaveStates
from mvit_video.engine.hooks.signals import StopOnSignal
from mvit_video.engine.hooks.speed import Speed
from mvit_video.engine.hooks.tracking import Track
from mvit_video.engine.hooks.validation import Measure, Validation
from mvit_video.engine.loop import Hook, Loop, Steps
from mvit_video.engine.losses import Objective, check_resolutions
from mvit_video.engine.metrics_log import read_metrics
from mvit_video.engine.nonfinite import GuardedStep
from mvit_video.engine.parallel import whole_network
from mvit_video.engine.plan import Plan, dry_model, giga_multiply_adds
from mvit_video.engine.preflight import check_output, preflight
from mvit_video.engine.run_folder import (
    AVERAGED_WEIGHTS,
    SETTINGS,
    WEIGHTS,
    check_folder,
    check_videos_stay,
    list_digest,
    open_folder,
    same_lists,
    with_lists_of,
)
from mvit_video.engine.schedule import learning_rate
from mvit_video.engine.teacher import read_teacher
from mvit_video.engine.trackers import open_trackers
from mvit_video.engine.trainer import Trainer, make_learner, seed_step
from mvit_video.errors import ConfigError, MvitVideoError
from mvit_video.model.registry import lacks, model_entry
from mvit_video.model.weights.card import ModelCard, model_from_card
from mvit_video.model.weights.files import save_checkpoint
from mvit_video.model.weights.load import Weights, put_weights, read_weights


def training_lists(config: Config) -> tuple[VideoList, VideoList | None]:
    """The training list, and the validation list with the same classes, if there is one; both checked, with notes.

    Missing files stop, or with data.allow_missing leave the training list; in validation they count as wrong. With
    data.train=auto they are what lies under data.root, or its class folders split in two (see data/lists/split.py).
    """
    data = found_lists(config.data)
    if data.train is None:
        raise ConfigError("data.train is not set: name a csv of `path label` rows or a folder of class folders")
    classes = read_classes(str(Path(data.root) / data.classes)) if data.classes else None
    train = checked_list(data.train, data, classes, keep_missing=False)
    refuse_several_labels(train)
    if data.val is None:
        return split_videos(train, data) if config.data.train == AUTO else (train, None)
    val = checked_list(data.val, data, train.classes, keep_missing=True)
    shared = shared_videos(train, val)
    return train, replace(val, notes=(*val.notes, shared)) if shared else val


def train_run(
    config: Config,
    output: str | Path,
    device: torch.device,
    make_validator: Callable[[VideoList], Measure],
    say: Callable[[str], None],
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """Train as the configuration says in the folder `output`; returns the path of the final weights.

    Everything that can be wrong with settings, lists and weights is found before the folder is touched. Another run
    in the folder is refused, resumed from its newest whole state, or deleted, as told. Under torchrun every process calls
    this, with the same folder; the first one writes and speaks.
    """
    say, run = say if is_first() else _silent, Path(output)
    if is_first():
        check_output(run)
    config = with_lists_of(run, config) if resume and (run / SETTINGS).exists() else config
    train, val = training_lists(config)
    config = _with_numbers(config, train, run if resume else None, say)
    settings = config.train
    if is_first():
        check_folder(run, config, resume, overwrite)
    lists = [train] if val is None else [train, val]
    if is_first() and overwrite:
        check_videos_stay(run, config, lists)
    for note in (note for videos in lists for note in videos.notes):
        say(f"note: {note}")
    sampler = step_sampler(config, len(train))
    per_epoch, last_step = sampler.steps_per_epoch, sampler.last_step
    for sentence in _about_lists(config, train, val, last_step):
        say(sentence)
    state = _agreed_state(run, say) if resume else None
    if state is not None:
        same_lists(state, lists)
        _same_schedule(state, last_step, per_epoch)
    card = model_card(config, train.classes)
    teacher = read_teacher(settings.teacher, card, device) if settings.teacher else None
    learner = make_learner(initial_model(config, card, say, bool(state)).to(device), settings, device)
    learner = replace(learner, teacher=teacher.digest if teacher else None)
    rate = learning_rate(settings, last_step, per_epoch)
    mixer, objective = Mixer(settings, len(train.classes)), Objective(settings, teacher)
    trainer = Trainer(learner, rate, mixer, settings, device, objective)
    dataset = ClipDataset(train, config.data, settings.seed)
    with _algorithms(settings.deterministic):
        checked = preflight(trainer, dataset, config, run)
    if state is not None:
        load_state(state, learner)
    if is_first():
        open_folder(run, config, resume, overwrite, lists)
    about = _about(config, device, lists)
    steps = Steps(_resumed(run, state, about["environment"], say), last_step, per_epoch)
    sampler.first_step = steps.first
    say(Plan(config, device, learner.model, len(train.classes), len(train)).text(steps.first))
    say(checked)
    batches = training_loader(dataset, sampler, config.data.workers, settings.clips_per_pass, device)
    validate = make_validator(val) if val is not None else None
    hooks = _hooks(run, config, trainer, card, steps, validate, about, say)
    with _algorithms(settings.deterministic):
        Loop(GuardedStep(trainer.train_step, run, settings.on_nonfinite == "stop"), steps, hooks).run(batches)
    events_summary(run, say)
    _save_weights(run / WEIGHTS, learner.model, card)
    if learner.average is not None:
        _save_weights(run / AVERAGED_WEIGHTS, learner.average.model, card)
    everyones(0)  # none goes on before the files are there
    sound = without_bad_videos(run, train)
    network, validations = whole_network(learner.model, card), read_metrics(run / VALIDATION)
    say(ended_at(network, sound, make_validator, validations, settings.epochs))
    return run / WEIGHTS


def _hooks(
    run: Path,
    config: Config,
    trainer: Trainer,
    card: ModelCard,
    steps: Steps,
    measure: Measure | None,
    about: dict[str, Any],
    say: Callable[[str], None],
) -> list[Hook]:
    """What happens beside the steps, in the order in which it does."""
    settings, learner, speed = config.train, trainer.learner, Speed()

    def validates(done: int) -> bool:
        every = steps.per_epoch * settings.validate_every_epochs
        return measure is not None and (done == steps.last or done % every == 0)

    hooks = [
        speed,
        BadVideos(run, card.preprocessing, config.data.on_error == "stop"),
        PictureFirstBatch(run, card.classes, card.preprocessing, trainer.mix_of_step),
        AverageWeights(learner.average, learner.model) if learner.average is not None else None,
        StepRecords(run),
        Track(lambda done: open_trackers(run, config, done)),
        DrawCurves(run),
        Progress(run, speed, say),
        StopOnSignal(run),
        SaveStates(run, learner, card, settings.checkpoint_every_steps, settings.keep_checkpoints, validates, about),
        Validation(run, learner, card, measure, validates, trainer.train_mode) if measure is not None else None,
    ]
    return [hook for hook in hooks if hook is not None]


def _with_numbers(config: Config, train: VideoList, resumed: Path | None, say: Callable[[str], None]) -> Config:
    """The configuration with numbers for `auto`, which `say` is told; a run that is resumed keeps its own."""
    before = load_config(resumed / SETTINGS) if resumed is not None and (resumed / SETTINGS).exists() else None
    auto, config = automatic_settings(config), with_numbers(config, len(train), len(train.classes), before)
    if auto:
        say(in_words(config, auto, len(train)))
    return config


def _about_lists(config: Config, train: VideoList, val: VideoList | None, last_step: int) -> list[str]:
    """How many videos each class has, and what is likely to fail."""
    warnings = (f"warning: {sentence}" for sentence in cautions(config, train, val, last_step))
    return [f"training videos: {class_counts(train)}", *warnings]


def _about(config: Config, device: torch.device, lists: list[VideoList]) -> dict[str, Any]:
    """What a state tells of the run that it is of."""
    return {
        "seed": config.train.seed,
        "config": config.model_dump(mode="json"),
        "environment": environment(device, config.train),
        "lists": [list_digest(videos) for videos in lists],
    }


def step_sampler(config: Config, num_videos: int) -> StepSampler:
    """The videos of every step of a run, as far as they are this process's."""
    settings, repeated_aug = config.train, config.data.repeated_aug
    last_step = steps_per_epoch(num_videos, settings.clips_per_step, repeated_aug) * settings.epochs
    share = rank(), world_size()
    sampler = StepSampler(num_videos, settings.clips_per_step, settings.seed, 0, last_step, repeated_aug, *share)
    if (settings.mixup or settings.cutmix) and settings.mix_probability and not sampler.mirrored:
        raise ConfigError(
            f"train.clips_per_step = {settings.clips_per_step} gives each of {world_size()} processes an odd number of videos "
            f"({len(sampler.places)}), which mixup and CutMix cannot pair: make it a multiple of "
            f"{2 * world_size() * repeated_aug}, or set train.mixup and train.cutmix to 0"
        )
    return sampler


def _save_weights(path: Path, network: nn.Module, card: ModelCard) -> None:
    network = whole_network(network, card)
    if is_first():
        save_checkpoint(path, network, card)


def _silent(text: str) -> None:
    """What all processes but the first say."""


def dry_run(config: Config, device: torch.device, num_videos: int | None = None, num_classes: int | None = None) -> str:
    """The plan of `train_run` in words; nothing is written, trained or downloaded.

    Videos and classes are counted in data.train, where it can be read, unless they are given. Where it cannot, they are
    those of data.planned_videos and data.planned_classes; without these the plan says so, and the network has its usual head.
    """
    notes, lists = [], None
    if num_videos is None or num_classes is None:
        try:
            lists = training_lists(config)
            num_videos, num_classes = num_videos or len(lists[0]), num_classes or len(lists[0].classes)
        except MvitVideoError as reason:
            num_videos, num_classes = (
                num_videos or config.data.planned_videos,
                num_classes or config.data.planned_classes,
            )
            notes.append(f"data.train is not read ({reason}): {_assumed(num_videos, num_classes)}")
    auto = automatic_settings(config)
    if auto and num_videos is None:
        raise ConfigError(f"{auto[0]} = auto follows from the number of training videos: {notes[0]}")
    if auto and num_videos is not None:
        config = with_numbers(config, num_videos, num_classes)
        notes.append(in_words(config, auto, num_videos))
    model = dry_model(config, num_classes)
    if num_classes is None:
        num_classes = model_entry(config.model.name).defaults["num_classes"]
    plan = Plan(config, device, model, num_classes, num_videos)
    if lists is not None:
        notes += _about_lists(config, *lists, (plan.per_epoch or 0) * config.train.epochs)
    return "\n  ".join([plan.text(0, giga_multiply_adds(config)), *notes])


def _assumed(num_videos: int | None, num_classes: int | None) -> str:
    """What a plan without a list counts with, and how to tell it what it lacks."""
    videos = f"{num_videos:,} videos" if num_videos else "no number of videos"
    classes = f"{num_classes} classes" if num_classes else "the network's usual classes"
    lacking = [
        option for option, count in (("--num-videos N", num_videos), ("--num-classes N", num_classes)) if not count
    ]
    return f"{videos} and {classes} are assumed" + (f"; {' and '.join(lacking)} would tell" if lacking else "")


def model_card(config: Config, classes: tuple[str, ...]) -> ModelCard:
    """What the weights of this configuration carry."""
    return ModelCard(
        name=config.model.name,
        arguments=config.model.arguments,
        classes=classes,
        preprocessing=config.data.input,
        protocol=config.evaluation.protocol.rpartition("-")[2],  # the views of a named one: 5x1 of kinetics-5x1
    )


def initial_model(config: Config, card: ModelCard, say: Callable[[str], None], resumed: bool = False) -> nn.Module:
    """The network before the first step: its weights follow from the seed, or from the checkpoint that `model.weights` names.

    The head starts new, and `say` is told, where the checkpoint's classes are not the card's. A run that is `resumed`
    does without the checkpoint, since its state holds all weights.
    """
    seed_step(config.train.seed, 0)
    model = model_from_card(card)
    check_resolutions(config.model.name, config.train)
    if config.model.weights is not None and not resumed:
        weights = read_weights(config.model.weights)
        other_classes = weights.classes != card.classes
        if other_classes and weights.num_classes is not None:
            say(_new_head(weights, card))
        say(put_weights(model, weights, reset_head=other_classes).summary())
    if config.train.activation_checkpointing:
        if not model_entry(config.model.name).capabilities.activation_checkpointing:
            cure = "unset train.activation_checkpointing"
            raise lacks(config.model.name, "has no activation checkpointing", cure)
        setattr(model, "activation_checkpointing", True)  # noqa: B010 (which not every module has)
    return model


def _new_head(weights: Weights, card: ModelCard) -> str:
    known = f"such as '{weights.classes[0]}'" if weights.classes else "whose names are not known"
    return (
        f"the head starts new: {weights.source} has {weights.num_classes} classes, {known}, "
        f"and the training list {len(card.classes)}, such as '{card.classes[0]}'"
    )


def _same_schedule(state: TrainingState, last_step: int, per_epoch: int) -> None:
    """ConfigError where the steps are others, which is all that states of before tell of their list."""
    if state.schedule != {"last_step": last_step, "steps_per_epoch": per_epoch}:
        raise ConfigError(
            f"{state.folder}: is of a run with {state.schedule['steps_per_epoch']} steps per epoch, and data.train now "
            f"makes {per_epoch}: resume with the list that it was trained on, or start anew in another --output"
        )


def _resumed(run: Path, state: TrainingState | None, now: dict[str, Any], say: Callable[[str], None]) -> int:
    """The step that a run goes on after. What is to be known about that is said; states that cannot be used are set aside."""
    for sentence in set_aside(run, state.step if state else 0) if is_first() else []:
        say(sentence)
    if state is None:
        return 0
    say(f"resuming after step {state.step} from {state.folder}")
    before = {name: state.environment.get(name, value) for name, value in now.items()}
    changed = [f"{name} {value}, was {before[name]}" for name, value in now.items() if value != before[name]]
    if changed:
        say(f"the run goes on elsewhere ({'; '.join(changed)}): alike, but not to the last bit")
    return state.step


def _agreed_state(run: Path, say: Callable[[str], None]) -> TrainingState | None:
    """The newest whole state, as the first process finds it."""
    found = None
    if is_first():
        state, complaints = newest_state(run)
        for complaint in complaints:
            say(complaint)
        found = state and [str(state.folder), state.step, state.schedule, state.environment, state.lists]
    chosen = gathered(found)[0]
    return TrainingState(Path(chosen[0]), *chosen[1:]) if chosen else None


@contextmanager
def _algorithms(deterministic: bool) -> Iterator[None]:
    """Deterministic algorithms inside, the former choice after. New memory is not filled: no result depends on it."""
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    if deterministic:
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        memory.fill_uninitialized_memory = before[1]
