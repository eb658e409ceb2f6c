"""Clip-level evaluation of a list of videos: views → scores → results. Several processes share the videos."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mvit_video.config.schema import Config, InputSettings
from mvit_video.data.dataset import BadVideo, ViewDataset
from mvit_video.data.frame_cache import training_source
from mvit_video.data.lists.class_names import first_difference
from mvit_video.data.lists.read import VideoList
from mvit_video.data.lists.selection import held_out_list
from mvit_video.data.loader import report_lost_workers, view_loader
from mvit_video.data.pixels import Normalise
from mvit_video.data.video.source import VideoSource, video_files_from
from mvit_video.engine.distributed import all_gather_json, all_reduced, is_rank_zero, rank, world_size
from mvit_video.engine.losses import is_multi_label
from mvit_video.errors import CheckpointError, ConfigError
from mvit_video.evaluation.protocols import Protocol
from mvit_video.evaluation.results import (
    EvaluationResult,
    accuracies,
    circumstances,
    described_checkpoint,
    results,
)
from mvit_video.evaluation.views import Reorder, VideoScores, ViewScorer, frame_order, score_views
from mvit_video.model.graphs import graphed
from mvit_video.model.precision import Precision, resolve_precision
from mvit_video.model.weights.card import ModelCard
from mvit_video.model.weights.convert import load_network
from mvit_video.progress import progress_bar
from mvit_video.shards import WHOLE, Shard


class Evaluator:
    """Scores the list of videos of a dataset under one protocol; may be called repeatedly.

    Under torchrun each process takes every world_size-th video, none twice, and all of them get the scores of all
    videos; every process must call `scores`. With a `shard`, videos outside it have no scores.
    """

    def __init__(
        self,
        dataset: ViewDataset,
        precision: Precision,
        views_per_batch: int = 16,
        workers: int = 0,
        shard: Shard = WHOLE,
        multi_label: bool = False,
        fusion: str = "mean",
    ) -> None:
        self.fusion = fusion
        self.dataset, self.precision, self.views_per_batch, self.workers = dataset, precision, views_per_batch, workers
        self.shard = shard
        self.normalise = Normalise(dataset.input.mean, dataset.input.std)
        self.videos, self.labels = dataset.videos, true_labels(dataset.videos, multi_label)

    def scores(
        self,
        model: nn.Module,
        reorder: Reorder | None = None,
        title: str = "evaluating",
        forward: Callable[[Tensor], Tensor] | None = None,
    ) -> VideoScores:
        """Scores of all videos. `forward` runs the network in place of calling it."""
        first, step = self.shard.number - 1 + self.shard.count * rank(), self.shard.count * world_size()
        loader = view_loader(self.dataset, self.workers, first, step)
        sizes = len(self.videos), len(self.videos.classes), self.views_per_batch
        device, autocast = self.precision.device, self.precision.autocast
        kind, largest = self.labels.ndim == 2, self.fusion == "max"
        scorer = ViewScorer(model, *sizes, device, self.normalise, kind, autocast, forward, largest)
        with report_lost_workers(), progress_bar(title, len(loader)) if is_rank_zero() else nullcontext() as bar:
            bad = score_views(scorer, loader, reorder, bar.advance if bar else lambda: None)
        return self._of_all_processes(scorer, bad)

    def _of_all_processes(self, scorer: ViewScorer, bad: list[BadVideo]) -> VideoScores:
        sums, counts = all_reduced(scorer.sums), all_reduced(scorer.counts)
        listed = [BadVideo(**values) for part in all_gather_json([asdict(video) for video in bad]) for values in part]
        names = [record.path for record in self.videos.records]
        scores = (sums if self.fusion == "max" else sums / counts.clamp(min=1)[:, None]).float().numpy()
        if not np.isfinite(scores).all():
            first = names[int(np.isfinite(scores).all(1).argmin())]
            raise CheckpointError(f"{first}: the network's scores are NaN or Inf: these weights are unusable")
        return VideoScores(
            names, self.labels, scores, (counts > 0).numpy(), sorted(listed, key=lambda video: video.index)
        )


def evaluator_from(
    config: Config,
    videos: VideoList,
    input: InputSettings,
    protocol: Protocol,
    precision: Precision,
    shard: Shard = WHOLE,
    multi_label: bool = False,
    source: VideoSource | None = None,
) -> Evaluator:
    """By default videos are read from their files, as they are."""
    source = source or video_files_from(config.data.root, config.data.decoding)
    dataset = ViewDataset(videos, source, input, protocol.clips, protocol.crops, on_bad="return", pixels=True)
    settings = config.evaluation
    return Evaluator(
        dataset, precision, settings.views_per_batch, config.data.workers, shard, multi_label, settings.fusion
    )


def true_labels(videos: VideoList, multi_label: bool = False) -> np.ndarray:
    """Class numbers (n,); with `multi_label`, or where a video has several labels, which of all classes each has, (n, K) bool."""
    more = [record.more_labels for record in videos.records]
    labels = np.array([record.label for record in videos.records])
    if not multi_label and not any(more):
        return labels
    truth = np.zeros((len(videos), len(videos.classes)), bool)
    for row, (label, others) in enumerate(zip(labels, more, strict=True)):
        truth[row, [label, *others]] = True
    return truth


def validator(videos: VideoList, config: Config, device: torch.device) -> Callable[[nn.Module], dict[str, float]]:
    """Network -> {"top1", "top5"} or mean_average_precision of all videos, from one centre view each. Every process must call it."""
    precision = resolve_precision(config.evaluation.precision, device, "evaluation.precision")
    several, source = is_multi_label(config.train), training_source(config.data.root, config.data.decoding)
    evaluator = evaluator_from(
        config, videos, config.data.input, Protocol(1, 1), precision, multi_label=several, source=source
    )
    return lambda model: accuracies(evaluator.scores(model, title="validating"))


@dataclass(frozen=True)
class EvaluationTask:
    """A checkpoint, a list of videos, and the input and protocol; `evaluation_task` checks that they match."""

    checkpoint: str
    """Source of the weights: a file, a URL or a name."""
    model: nn.Module
    card: ModelCard
    videos: VideoList
    config: Config
    protocol: Protocol
    precision: Precision
    """The precision, and the device."""
    frames: str = "in-order"
    """Order of the frames of each clip: see `frame_order`."""
    shown: InputSettings | None = None
    """The network's input, if it differs from the one it was trained with."""

    @property
    def multi_label(self) -> bool:
        """Whether scores are sigmoids, and measured by mean average precision."""
        return self.card.multi_label or bool(self.videos.with_several_labels)

    def run(self) -> EvaluationResult:
        """Score the videos; every process must call this, and gets the whole result."""
        scores, seconds = self.scored()
        numbers = results(scores, self.card.classes, self.protocol, seconds)
        return EvaluationResult(scores, self.card.classes, numbers | self.origin())

    def scored(self, shard: Shard = WHOLE) -> tuple[VideoScores, float]:
        """Scores of the videos, or of a shard's, and the time in seconds. Every process must call this."""
        shown, start = self.shown or self.card.preprocessing, time.monotonic()
        evaluator = evaluator_from(
            self.config, self.videos, shown, self.protocol, self.precision, shard, self.card.multi_label
        )
        held = self.precision.held(self.model).to(self.precision.device)
        forward = graphed(held, self.precision)
        return evaluator.scores(held, frame_order(self.frames), forward=forward), time.monotonic() - start

    def origin(self) -> dict[str, Any]:
        """The part of results.json that describes the origin of its numbers."""
        shown, several = self.shown or self.card.preprocessing, self.multi_label
        origin = circumstances(self.videos, self.config, self.protocol, self.precision, several, self.frames, shown)
        return origin | {"checkpoint": described_checkpoint(self.checkpoint, self.card)}


def evaluation_task(
    config: Config,
    checkpoint: str,
    device: torch.device,
    protocol: str | None = None,
    frames: str = "in-order",
    resolution: int | None = None,
    precision: str | None = None,
) -> EvaluationTask:
    """The evaluation that a config and the arguments describe. Invalid arguments raise before any work.

    Args:
        protocol: replaces evaluation.protocol.
        resolution: pixels of the crop's shorter side, if they differ from the network's own.
        precision: replaces evaluation.precision.
    """
    frame_order(frames)
    asked, option = (precision, "precision") if precision else (config.evaluation.precision, "evaluation.precision")
    number_format = resolve_precision(asked, device, option)
    views = Protocol.parse(protocol or config.evaluation.protocol)
    model, card = load_network(checkpoint)
    videos = held_out_list(config.data, card.classes)
    check_agreement(card, config, videos, views)
    shown = card.preprocessing.at_resolution(resolution) if resolution else card.preprocessing
    views.check(shown)
    return EvaluationTask(checkpoint, model, card, videos, config, views, number_format, frames, shown)


def check_agreement(card: ModelCard, config: Config, videos: VideoList, protocol: Protocol) -> None:
    """Raise ConfigError if the checkpoint's input or classes do not match config, list or protocol."""
    trained, asked = card.preprocessing.model_dump(), config.data.input.model_dump()
    for name, value in trained.items():
        if asked[name] != value:
            raise ConfigError(
                f"data.{name} is {asked[name]} in the config, but the checkpoint was trained with {value}: make them equal"
            )
    protocol.check(card.preprocessing)
    if card.classes != videos.classes:
        label, ours, theirs = first_difference(card.classes, videos.classes)
        raise ConfigError(
            f"{videos.source}: class {label} is '{theirs}' there but '{ours}' in the checkpoint "
            f"({len(videos.classes)} and {len(card.classes)} classes): evaluate on a list with the same classes"
        )
