"""`train`, `pretrain`, `evaluate` and `probe` for programs: the same functions that the command line calls."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mvit_video.config.load import config_from_dict, load_config, with_overrides
from mvit_video.config.schema import Config
from mvit_video.data.dataset import BadVideo
from mvit_video.data.lists.checks import MISSING, missing_text
from mvit_video.data.lists.records import VideoList
from mvit_video.data.lists.selection import has_held_out_list
from mvit_video.data.prepare.prepare import merge_prepared
from mvit_video.data.prepare.verify import VERIFIED, merge_verified
from mvit_video.engine.checkpoint import VALIDATION
from mvit_video.engine.distributed import is_rank_zero, process_group
from mvit_video.engine.hooks.records import METRICS
from mvit_video.engine.metrics_log import read_metrics
from mvit_video.engine.resolve import ResolvedRun, resolve
from mvit_video.engine.run import train_run
from mvit_video.engine.run_folder import AVERAGED_WEIGHTS, EVALUATION, SETTINGS, WEIGHTS
from mvit_video.engine.threads import fitting_threads
from mvit_video.errors import ConfigError
from mvit_video.evaluation.evaluate import EvaluationTask, evaluation_task, validator
from mvit_video.evaluation.masked import masked_validator
from mvit_video.evaluation.metrics import best_thresholds
from mvit_video.evaluation.parts import evaluate_part, merged_result
from mvit_video.evaluation.probes import Shots, require_scikit_learn
from mvit_video.evaluation.protocols import Protocol
from mvit_video.evaluation.results import FILES, NAMES, REPORT, RESULTS, EvaluationResult, described_checkpoint
from mvit_video.inference.features import BAD_FILE, INDEX_FILE, JOB_FILE, merge_features
from mvit_video.inference.parts import PREDICTIONS, merge_predictions
from mvit_video.inference.predictor import Predictor, choose_device
from mvit_video.inference.probe import ProbeTask, frozen_network, measured, origin, probe_tasks, probed, with_head
from mvit_video.locks import alone_in
from mvit_video.model.weights.auto import resolve_model_name
from mvit_video.model.weights.card import Measured
from mvit_video.model.weights.files import save_checkpoint
from mvit_video.model.weights.load import checkpoint_file
from mvit_video.paths import fresh_folder, write_json, write_whole
from mvit_video.report.evaluation_page import evaluation_report
from mvit_video.shards import PART, Part, parse_shard, read_parts

Say = Callable[[str], None]
SHARDED = ("verify", "prepare", "features", "predict", "evaluate")
FEATURES = "features"


def _silent(text: str) -> None:
    """Prints nothing."""


@dataclass(frozen=True)
class TrainResult:
    """The results of a training run in its folder."""

    folder: Path
    weights: Path
    """model.safetensors: weights with the card that `Predictor.from_checkpoint` and `evaluate` need."""
    averaged_weights: Path | None
    """model_ema.safetensors, where train.ema_decay is set."""
    classes: tuple[str, ...]
    config: Config
    """The settings in effect, with numbers where they were `auto`."""
    evaluation: EvaluationResult | None = None
    """Of the weights on the held-out videos, where evaluation.after_training is set."""
    averaged_evaluation: EvaluationResult | None = None
    """The same of the averaged weights."""

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The record of every step, as metrics.jsonl holds it: step, epoch, loss, lr, gradient_norm, top1 and more."""
        return read_metrics(self.folder / METRICS)

    @property
    def validations(self) -> list[dict[str, Any]]:
        """The record of every validation, as validation.jsonl holds it: step, epoch, top1, top5; those of averaged weights as ema_…"""
        return read_metrics(self.folder / VALIDATION)


def train(
    config: Config | str | Path,
    output: str | Path,
    *,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    say: Say = _silent,
    **overrides: Any,
) -> TrainResult:
    """Train a network; what `mvit-video train` does.

    >>> mvit_video.train("config.yaml", "runs/mine", data={"root": "videos"}, train={"epochs": 20})  # doctest: +SKIP

    Args:
        config: a YAML file, or settings.
        output: the folder of the run. One that holds a run is refused, unless `resume` goes on with it from its newest
            saved state (a folder without one starts anew), or `overwrite` deletes it.
        device: auto (a GPU where there is one), cpu, cuda, cuda:1 …
        say: called with progress messages, one sentence at a time.
        overrides: settings that win over the file's, by section (`train={"epochs": 20}`) or as `**{"train.epochs": 20}`.

    Started by torchrun, the processes share each step's clips. Raises ConfigError, DecodeError, CheckpointError or
    TrainingError, and Interrupted where a signal asked it to stop; all are MvitVideoErrors of one sentence.
    """
    settings = with_overrides(config, overrides)
    check_labels_objective(settings)
    with _alone(output, say, resume, overwrite):
        run = resolve(settings, Path(output), choose_device(device), say, resume, overwrite)
        check_evaluation(run.config)
        with _threads(run, say):
            train_run(run, lambda videos: validator(videos, run.config, run.device), say)
            return _evaluated(run, say)


def pretrain(
    config: Config | str | Path,
    output: str | Path,
    *,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    say: Say = _silent,
    **overrides: Any,
) -> TrainResult:
    """Pre-train a network without labels, by masked prediction (MaskFeat); what `mvit-video pretrain` does.

    >>> result = mvit_video.pretrain("config.yaml", "runs/pretrained", data={"root": "videos"})  # doctest: +SKIP
    >>> mvit_video.train("config.yaml", "runs/mine", model={"weights": str(result.weights)})  # doctest: +SKIP

    Arguments and errors are those of `train`. The result has no classes, and its validations have a loss.
    """
    settings = with_overrides(config, masked_objective(overrides))
    with _alone(output, say, resume, overwrite):
        run = resolve(settings, Path(output), choose_device(device), say, resume, overwrite)
        with _threads(run, say):
            train_run(run, lambda videos: masked_validator(videos, run.config, run.device), say)
        averaged = run.folder / AVERAGED_WEIGHTS if run.config.train.ema_decay is not None else None
        return TrainResult(run.folder, run.folder / WEIGHTS, averaged, run.card.classes, run.config)


def masked_objective(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides with train.objective=masked among them."""
    return {**overrides, "train.objective": "masked"}


def check_labels_objective(config: Config) -> None:
    """ConfigError for a configuration of masked pre-training."""
    if config.train.objective == "masked":
        raise ConfigError(
            "train.objective = masked: this configuration pre-trains without labels: run `mvit-video pretrain`, or set "
            "train.objective=labels"
        )


@contextmanager
def _alone(output: str | Path, say: Say, resume: bool, overwrite: bool) -> Iterator[None]:
    """In the process group, and the only run in the folder."""
    if resume and overwrite:
        raise ConfigError("resume and overwrite cannot be combined: one continues a run, the other deletes it")
    with process_group(), alone_in(output, say) if is_rank_zero() else nullcontext():
        yield


@contextmanager
def _threads(run: ResolvedRun, say: Say) -> Iterator[None]:
    """With the threads that fit the run, and a word about them."""
    with fitting_threads(run.config, run.device) as told:
        if told and is_rank_zero():
            say(told)
        yield


def _evaluated(run: ResolvedRun, say: Say) -> TrainResult:
    """The result, with the evaluation that evaluation.after_training asks for."""
    averaged = run.folder / AVERAGED_WEIGHTS if run.config.train.ema_decay is not None else None
    result = TrainResult(run.folder, run.folder / WEIGHTS, averaged, run.card.classes, run.config)
    if not run.config.evaluation.after_training:
        return result
    result = replace(result, evaluation=_evaluate_weights(run, result.weights, run.folder / EVALUATION, say))
    if averaged is None:
        return result
    folder = run.folder / f"{EVALUATION}_ema"
    return replace(result, averaged_evaluation=_evaluate_weights(run, averaged, folder, say))


def _evaluate_weights(run: ResolvedRun, file: Path, folder: Path, say: Say) -> EvaluationResult:
    """Results in `folder`, and the numbers on the card of the weights. Every process must call this; rank 0 writes."""
    config = load_config(run.folder / SETTINGS)  # which names the lists that the run was trained on
    task = evaluation_task(config, str(file), run.device)
    result = task.run()
    if not is_rank_zero():
        return result
    numbers, views = result.accuracies, str(task.protocol)
    measured = Measured(protocol=views, num_videos=len(task.videos), list=task.videos.source, percent=numbers)
    card = task.card.model_copy(update={"measured": measured} | _thresholds(result, task))
    save_checkpoint(file, task.model, card)
    result = replace(result, content=result.content | {"checkpoint": described_checkpoint(str(file), card)})
    page = _write(result, task, fresh_folder(folder, FILES, overwrite=True))
    ranges = {name: "{:.1f} to {:.1f} with 95 %".format(*result.intervals_95[name]) for name in numbers}
    text = ", ".join(f"{NAMES[name]} {value:.2f} % ({ranges[name]})" for name, value in numbers.items())
    say(f"{file}: {text} of {len(task.videos)} held-out videos, {views}; details in {page}")
    return result


def evaluate(
    config: Config | str | Path,
    checkpoint: str | Path,
    output: str | Path | None = None,
    *,
    protocol: str | None = None,
    frames: str = "in-order",
    resolution: int | None = None,
    precision: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    say: Say = _silent,
    **overrides: Any,
) -> EvaluationResult:
    """Score every video of data.test (or data.val) over several views; what `mvit-video evaluate` does.

    Args:
        config: a YAML file, or settings: which videos, and how they are read.
        checkpoint: a file, an address, or a name that `mvit-video models` lists.
        output: a folder for results.json, scores.npz, per_class.csv, confusion.csv and report.html; None writes nothing.
        protocol: views per video, clips × crops such as "5x1", or a published protocol by its name; the config's by default.
        frames: "in-order", "reversed" or "shuffled:SEED", to see what the order of a clip's frames is worth.
        resolution: pixels of the crop's shorter side, other than the checkpoint was trained for.
        precision: "fp32", "bf16", "fp16", or "auto", which is bf16 on GPUs that have it, else fp32; the config's by default.
        device, say, overrides: as of `train`.
        overwrite: delete what an earlier call left in `output`.

    Started by torchrun, the processes share the videos, and each gets the whole result. Raises ConfigError or
    CheckpointError; a video that cannot be decoded counts as wrong, and is in the result.
    """
    settings = resolve_model_name(with_overrides(config, overrides))
    with process_group(), alone_in(output, say) if is_rank_zero() and output is not None else nullcontext():
        words = protocol, frames, resolution, precision
        task = evaluation_task(settings, str(checkpoint), choose_device(device), *words)
        folder = _opened_for(task, output, overwrite, say)
        result = task.run()
        if folder is not None:
            _write(result, task, folder)
        return result


def evaluate_shard(
    config: Config | str | Path,
    checkpoint: str | Path,
    output: str | Path,
    shard: str,
    *,
    protocol: str | None = None,
    frames: str = "in-order",
    resolution: int | None = None,
    precision: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    say: Say = _silent,
    **overrides: Any,
) -> list[BadVideo]:
    """Score the videos of one `shard`, such as "2/8", into `output`, for `merge`; the rest as of `evaluate`.

    Returns those that could not be decoded.
    """
    which = parse_shard(shard)
    settings = resolve_model_name(with_overrides(config, overrides))
    with process_group(), alone_in(output, say) if is_rank_zero() else nullcontext():
        words = protocol, frames, resolution, precision
        task = evaluation_task(settings, str(checkpoint), choose_device(device), *words)
        return evaluate_part(task, which, _opened_for(task, output, overwrite, say)).bad


@dataclass(frozen=True)
class ProbeResult:
    """How well classifiers of a frozen network's features learn the classes. Accuracies are in percent, over all test videos."""

    folder: Path
    weights: Path
    """model.safetensors: the network with the logistic regression of all training videos as its head."""
    classes: tuple[str, ...]
    shots: list[Shots]
    """For each classifier and number of training videos of each class (None: all): `top1`, `interval_95`, and `hits`, which
    test videos each draw has right."""
    accuracies: dict[str, float]
    """top1, top5 and mean_class_accuracy of `weights`."""
    undecodable: list[tuple[str, str]]
    """Path and reason of videos that could not be decoded: left out of training, wrong in the test."""
    content: dict[str, Any]
    """Everything that results.json holds."""


def probe(
    config: Config | str | Path,
    checkpoint: str | Path,
    output: str | Path,
    *,
    attentive: bool = False,
    shots: Sequence[int] = (),
    draws: int = 10,
    seed: int = 0,
    protocol: str | None = None,
    features: str | Path | None = None,
    precision: str = "auto",
    device: str = "auto",
    overwrite: bool = False,
    say: Say = _silent,
    **overrides: Any,
) -> ProbeResult:
    """Learn classes from few videos without training the network; what `mvit-video probe` does.

    >>> result = mvit_video.probe("finetune", "model.safetensors", "my_probe", data={"root": "videos"})  # doctest: +SKIP
    >>> [(one.method, one.shots, one.top1) for one in result.shots]  # doctest: +SKIP

    Args:
        checkpoint: as of `evaluate`, or one that was pre-trained without labels.
        output: the folder for results.json, model.safetensors and, unless `features` names another, the features.
        attentive: also train an attentive probe of the last stage's maps.
        shots: numbers of training videos of each class; by default 1, 2, 4 and so on, as far as each class has more.
        draws: random choices of these videos.
        features: where features are kept for the next call.
        config, protocol, precision, device, overwrite, say, overrides: as of `evaluate`.

    Raises ConfigError, AnnotationError or CheckpointError.
    """
    require_scikit_learn()
    settings = with_overrides(config, overrides)
    views = Protocol.parse(protocol or settings.evaluation.protocol)
    train, test = probe_tasks(settings.data, say)
    task = ProbeTask(train, test, tuple(shots), draws, attentive, seed, settings.data.split_group)
    classes = train.videos.classes
    model, card = frozen_network(str(checkpoint), classes, say)
    predictor = Predictor(model, card, choose_device(device), views, precision=precision)
    with alone_in(output, say):
        folder = fresh_folder(output, (RESULTS, WEIGHTS, MISSING), overwrite)
        if missing := missing_text([train.videos, test.videos]):
            write_whole(folder / MISSING, missing)
        found = probed(predictor, task, Path(features or folder / FEATURES))
        network, new_card = with_head(model, card, found.head, classes)
        numbers = measured(found, predictor, test.videos)
        new_card = new_card.model_copy(update={"protocol": str(views), "measured": numbers})
        save_checkpoint(folder / WEIGHTS, network, new_card)
        content = found.content() | origin(str(checkpoint), predictor, task)
        write_json(folder / RESULTS, content)
    return ProbeResult(folder, folder / WEIGHTS, classes, found.found, found.percent, found.undecodable, content)


def merge(parts: Sequence[str | Path], output: str | Path, overwrite: bool = False, say: Say = _silent) -> int:
    """Join the folders that all shards of one verb have written into what one process would have; what `mvit-video merge` does.

    Returns the number of bad videos. Raises ConfigError where a part is missing, doubled, unfinished or of another job.
    """
    found = read_parts(parts)
    verb, folder = found[0].verb, Path(output)
    if folder.resolve() in [part.folder.resolve() for part in found]:
        raise ConfigError(f"{output}: is itself a part: choose another --output")
    with alone_in(output, say):
        if verb == "prepare":
            folder.mkdir(parents=True, exist_ok=True)
            return merge_prepared(found, folder, overwrite)
        if verb == "evaluate":
            return _merge_evaluations(found, fresh_folder(folder, FILES, overwrite))
        merges = {"verify": (merge_verified, VERIFIED), "predict": (merge_predictions, PREDICTIONS)}
        if verb == "features":
            files = sorted(path.name for path in folder.glob("features-*.npz")) if folder.is_dir() else []
            return merge_features(found, fresh_folder(folder, (JOB_FILE, INDEX_FILE, BAD_FILE, *files), overwrite))
        if verb not in merges:
            raise ConfigError(f"{found[0].folder}: contains a part of '{verb}', expected one of {', '.join(SHARDED)}")
        join, file = merges[verb]
        return join(found, fresh_folder(folder, (file,), overwrite))


def _merge_evaluations(parts: Sequence[Part], folder: Path) -> int:
    result = merged_result(parts)
    result.write(folder)
    config = config_from_dict(result.content["config"], str(parts[0].folder))
    run = checkpoint_file(result.content["checkpoint"]["path"]).parent
    evaluation_report(result.scores, result.classes, result.content, config.data, run).write(folder / REPORT)
    return len(result.undecodable)


def _opened_for(task: EvaluationTask, output: str | Path | None, overwrite: bool, say: Say) -> Path | None:
    """The folder for results, in rank 0 where one is wanted; the user is told what is odd about the list."""
    if not is_rank_zero():
        return None
    for note in task.videos.notes:
        say(f"note: {note}")
    return _opened(output, task.videos, overwrite) if output is not None else None


def _thresholds(result: EvaluationResult, task: EvaluationTask) -> dict[str, dict[str, float]]:
    """For a card of several labels: of each class the threshold with the best F1 on the held-out videos."""
    if not task.card.multi_label:
        return {}
    scores = result.scores
    best = best_thresholds(scores.scores, scores.labels, scores.decoded)
    return {"thresholds": dict(zip(task.card.classes, best.tolist(), strict=True))}


def _opened(output: str | Path, videos: VideoList, overwrite: bool) -> Path:
    """The folder for results; it names the videos of the list that are missing."""
    folder = fresh_folder(output, (*FILES, MISSING, PART), overwrite)
    if videos.missing:
        write_whole(folder / MISSING, missing_text([videos]))
    return folder


def _write(result: EvaluationResult, task: EvaluationTask, folder: Path) -> Path:
    """All files of a result; returns the page."""
    result.write(folder)
    run, data = checkpoint_file(task.checkpoint).parent, task.config.data
    evaluation_report(result.scores, result.classes, result.content, data, run).write(folder / REPORT)
    return folder / REPORT


def check_evaluation(config: Config) -> None:
    """ConfigError, before the training, where the evaluation after it could not be made."""
    if config.evaluation.after_training:
        Protocol.parse(config.evaluation.protocol).check(config.data.input)
        if not has_held_out_list(config.data):
            raise ConfigError("evaluation.after_training needs data.test or data.val: set one of them, or unset it")
