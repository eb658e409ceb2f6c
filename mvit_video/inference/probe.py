"""Probe a frozen network: classifiers of its features, and a checkpoint with the linear one as its head."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mvit_video.config.schema import AUTO, Config, DataSettings, ModelSettings
from mvit_video.data.lists.checks import note_overlap, refuse_several_labels
from mvit_video.data.lists.records import VideoList
from mvit_video.data.lists.selection import held_out_list, training_lists
from mvit_video.data.lists.split import groups_of
from mvit_video.errors import ConfigError
from mvit_video.evaluation import metrics
from mvit_video.evaluation.probes import (
    METHODS,
    LinearHead,
    Shots,
    VideoViews,
    fit_linear,
    measure,
    one_thread,
    usual_shots,
)
from mvit_video.inference.features import POOLED, Task, cached_features, read_views, stages_of
from mvit_video.inference.predictor import Predictor
from mvit_video.model.registry import head_name, head_of, lacks
from mvit_video.model.weights.auto import resolve_model_name
from mvit_video.model.weights.card import Measured, ModelCard, model_from_card
from mvit_video.model.weights.convert import load_network
from mvit_video.model.weights.fingerprint import weights_digest
from mvit_video.model.weights.load import load_into, read_weights
from mvit_video.progress import progress_bar

NEAREST, LINEAR, ATTENTIVE = METHODS
Bad = list[tuple[str, str]]


@dataclass(frozen=True)
class ProbeTask:
    """Which videos a network is probed with, and how: `train` and `test` are read as `Task`s of pooled features.

    `shots` are numbers of training videos of each class, () for 1, 2, 4 and so on; each is drawn `draws` times. Training videos
    of one group of `split_group` (data.split_group) are held out together, to choose the strength of the regularisation.
    """

    train: Task
    test: Task
    shots: tuple[int, ...] = ()
    draws: int = 10
    attentive: bool = False
    seed: int = 0
    split_group: str | None = None


@dataclass(frozen=True)
class Probed:
    """What probing has found: numbers of each method and number of shots, the linear layer that was fitted to all training
    videos, its accuracies, and the videos that could not be decoded."""

    found: list[Shots]
    head: LinearHead
    percent: dict[str, float]
    undecodable: Bad
    seconds: dict[str, float]

    def content(self) -> dict[str, Any]:
        """For results.json."""
        rows = [
            {
                "classifier": one.method,
                "videos_per_class": one.shots,
                "draws": len(one.hits),
                "top1": one.top1,
                "interval_95": one.interval_95,
                "top1_of_draws": (100.0 * one.hits.mean(1)).tolist(),
            }
            for one in self.found
        ]
        undecodable = [{"path": path, "reason": reason} for path, reason in self.undecodable]
        saved = {"classifier": LINEAR, "strength": self.head.strength} | self.percent
        return {"results": rows, "saved": saved, "undecodable": undecodable, "seconds": self.seconds}


def probe_tasks(data: DataSettings, say: Callable[[str], None]) -> tuple[Task, Task]:
    """The training and the test videos of the settings, for pooled features; `say` is told what is odd about them."""
    train = training_lists(data, multi_label=True)[0]
    refuse_several_labels(train)
    test = held_out_list(data, train.classes)
    for note in filter(None, dict.fromkeys((*train.notes, *test.notes, note_overlap(train, test)))):
        say(f"note: {note}")
    refuse_several_labels(test)
    known, asked = (Task(videos, data.root, POOLED, data.decoder, data.decode_timeout) for videos in (train, test))
    return known, asked


def probed(predictor: Predictor, task: ProbeTask, cache: Path) -> Probed:
    """Train and test the classifiers on features that are extracted once, to a folder in `cache`.

    Training videos that cannot be decoded are left out, test videos count as wrong. Raises ConfigError for a network without
    features, where a class has not as many training videos as `shots` says, and for a `split_group` that does not fit.
    """
    start = time.monotonic()
    stages = _stages(predictor, task)
    _check_numbers(task)
    _shots(task, task.train.videos.records.labels)  # raises before videos are decoded
    groups = _groups(task)
    read = {stage: _both_lists(predictor, task, groups, stage, cache) for stage in stages}
    extracted = time.monotonic()
    train, test, bad = read[POOLED]
    classes = task.train.videos.classes
    shots = _shots(task, train.labels)
    views = {NEAREST: (train, test), LINEAR: (train, test)}
    if task.attentive:
        views[ATTENTIVE] = read[stages[1]][:2]
    fits = len(views) * (task.draws * len(shots) + 1)
    with one_thread(), progress_bar("classifiers", fits) as bar:
        found = measure(views, len(classes), (*shots, None), task.draws, task.seed, bar.advance)
        head = fit_linear(train, len(classes), task.seed)
    scores = head.scores(test), test.labels, test.decoded
    percent = {
        "top1": metrics.top_k_accuracy(*scores, 1),
        "top5": metrics.top_k_accuracy(*scores, 5),
        "mean_class_accuracy": metrics.mean_class_accuracy(*scores),
    }
    seconds = {"features": extracted - start, "classifiers": time.monotonic() - extracted}
    return Probed(found, head, percent, bad, seconds)


def frozen_network(checkpoint: str, classes: Sequence[str], say: Callable[[str], None]) -> tuple[nn.Module, ModelCard]:
    """The network of a checkpoint and its card, as `load_network`; one without a head, such as a network that was pre-trained
    without labels, gets one of zeros for `classes`, and `say` is told what became of its tensors."""
    weights = read_weights(checkpoint)
    if weights.num_classes is not None:
        return load_network(checkpoint)
    config = resolve_model_name(Config(model=ModelSettings(name=AUTO, weights=checkpoint)))
    card = ModelCard(
        name=config.model.name,
        arguments=config.model.arguments,
        classes=tuple(classes),
        preprocessing=config.data.input,
    )
    model = model_from_card(card).eval()
    say(load_into(model, weights, reset_head=True).summary())
    for parameter in head_of(model).parameters():
        nn.init.zeros_(parameter)  # so that the features of two calls are of the same network
    return model, card


def with_head(
    model: nn.Module, card: ModelCard, head: LinearHead, classes: Sequence[str]
) -> tuple[nn.Module, ModelCard]:
    """The network with this linear layer as its head, and its card: softmax scores, averaged over the views."""
    plain = {"multi_label": False, "thresholds": None, "fusion": "mean", "measured": None}
    new_card = card.model_copy(update={"classes": tuple(classes), **plain})
    new, name = model_from_card(new_card).eval(), head_name(model)
    layer = {"weight": torch.from_numpy(head.weight).float(), "bias": torch.from_numpy(head.bias).float()}
    new.load_state_dict(model.state_dict() | {f"{name}.{key}": value for key, value in layer.items()})
    return new, new_card


def measured(found: Probed, predictor: Predictor, videos: VideoList) -> Measured:
    """What the card says of the linear layer's accuracy."""
    return Measured(protocol=str(predictor.protocol), num_videos=len(videos), list=videos.source, percent=found.percent)


def origin(checkpoint: str, predictor: Predictor, task: ProbeTask) -> dict[str, Any]:
    """What results.json says of where its numbers come from."""
    return {
        "checkpoint": {"path": checkpoint, "weights": weights_digest(predictor.model)},
        "network": predictor.card.name,
        "protocol": str(predictor.protocol),
        "precision": str(predictor.precision),
        "preprocessing": predictor.card.preprocessing.model_dump(mode="json"),
        "train": {"list": task.train.videos.source, "videos": len(task.train.videos)},
        "test": {"list": task.test.videos.source, "videos": len(task.test.videos)},
        "classes": list(task.train.videos.classes),
        "seed": task.seed,
        "split_group": task.split_group,
    }


def _stages(predictor: Predictor, task: ProbeTask) -> list[str]:
    """Which features are needed: pooled ones, and for an attentive probe the maps of the last stage."""
    known, name = stages_of(predictor.model), predictor.card.name
    if POOLED not in known:
        cure = "use a checkpoint of one of our own networks, such as mvitv2_s_16x4"
        raise lacks(name, "feature", "does not provide the feature that its head classifies", cure)
    if task.attentive and known == [POOLED]:
        raise lacks(name, "stage_maps", "does not provide the maps that an attentive probe needs", "drop --attentive")
    return [POOLED, known[-1]] if task.attentive else [POOLED]


def _groups(task: ProbeTask) -> np.ndarray | None:
    """(n,) the number of each training video's group, if they have any."""
    if task.split_group is None:
        return None
    names = groups_of([record.path for record in task.train.videos.records], task.split_group)
    return np.unique(names, return_inverse=True)[1]


def _both_lists(
    predictor: Predictor, task: ProbeTask, groups: np.ndarray | None, stage: str, cache: Path
) -> tuple[VideoViews, VideoViews, Bad]:
    """Views of the training videos that could be decoded, of all test videos, and what could not be."""
    (train, bad), (test, bad_too) = (_views(predictor, one, stage, cache) for one in (task.train, task.test))
    train = replace(train, groups=groups)
    decoded = np.flatnonzero(train.decoded)
    if not len(decoded) or not test.decoded.any():
        source = (task.test if len(decoded) else task.train).videos.source
        raise ConfigError(f"{source}: none of its videos can be decoded, the first: {[*bad, *bad_too][0][1]}")
    return train.of(decoded), test, [*bad, *bad_too]


def _views(predictor: Predictor, task: Task, stage: str, cache: Path) -> tuple[VideoViews, Bad]:
    asked = Task(task.videos, task.root, stage, task.decoder, task.timeout)
    folder, bad = cached_features(predictor, asked, cache)
    by_path, records = read_views(folder, stage), list(task.videos.records)
    parts = [by_path.get(record.path) for record in records]
    there = [part for part in parts if part is not None]
    video = np.repeat(np.arange(len(records)), [0 if part is None else len(part) for part in parts])
    features = np.concatenate(there) if there else np.zeros((0, 1), np.float32)
    return VideoViews(features, video, np.array([record.label for record in records])), bad


def _check_numbers(task: ProbeTask) -> None:
    """ConfigError for numbers of videos or draws below 1, which only a program can ask for."""
    for name, numbers in (("shots", task.shots), ("draws", (task.draws,))):
        if min(numbers, default=1) < 1:
            raise ConfigError(f"{name} = {min(numbers)}: expected whole numbers from 1")


def _shots(task: ProbeTask, labels: np.ndarray) -> list[int]:
    """The numbers of shots; ConfigError where a class has fewer videos than one of them, or there is one class."""
    names, counts = np.unique(labels, return_counts=True)
    videos = task.train.videos
    if len(names) < 2:
        raise ConfigError(
            f"{videos.source}: all its videos are of the class '{videos.classes[names[0]]}', expected two or more classes"
        )
    most, fewest, rarest = max(task.shots, default=0), int(counts.min()), names[counts.argmin()]
    if most > fewest:
        decoded = " that can be decoded" if (videos.records.labels == rarest).sum() > fewest else ""
        raise ConfigError(
            f"--shots {most}: '{videos.classes[rarest]}' has only {fewest} training "
            f"video{'' if fewest == 1 else 's'}{decoded}: lower it"
        )
    return list(task.shots) or usual_shots(labels)
