"""Clip-level evaluation of a list of videos: views → scores → results."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from mvit_video.config.schema import Config, Preprocessing
from mvit_video.data.annotations import VideoList
from mvit_video.data.dataset import ViewDataset
from mvit_video.data.loader import view_loader
from mvit_video.errors import ConfigError
from mvit_video.evaluation.metrics import mean_class_accuracy, top_k_accuracy
from mvit_video.evaluation.views import Reorder, VideoScores, score_videos
from mvit_video.model.checkpoints import ModelCard
from mvit_video.progress import progress_bar


@dataclass(frozen=True)
class Protocol:
    """Views per video: clips × crops."""

    clips: int
    crops: int

    @classmethod
    def parse(cls, text: str) -> "Protocol":
        """`5x1` -> 5 clips, 1 crop. Crops are 1 (centre), 2 (the ends) or 3."""
        clips, x, crops = text.partition("x")
        if not (x and clips.isdigit() and crops.isdigit() and int(clips) > 0 and int(crops) in (1, 2, 3)):
            raise ConfigError(f"protocol '{text}' is not CLIPSxCROPS with 1, 2 or 3 crops: write 5x1, 5x3 or 1x3, say")
        return cls(int(clips), int(crops))

    def __str__(self) -> str:
        return f"{self.clips}x{self.crops}"


class Evaluator:
    """Scores one list of videos under one protocol, as often as asked."""

    def __init__(
        self, videos: VideoList, config: Config, preprocessing: Preprocessing, protocol: Protocol, device: torch.device
    ):
        self.videos, self.config, self.device = videos, config, device
        data = config.data
        self.dataset = ViewDataset(
            videos, data.root, preprocessing, protocol.clips, protocol.crops, data.decoder, data.decode_timeout
        )

    def scores(self, model: nn.Module, reorder: Reorder | None = None, title: str = "evaluating") -> VideoScores:
        loader = view_loader(self.dataset, self.config.data.workers)
        with progress_bar(title, len(self.videos)) as bar:
            result = score_videos(
                model,
                loader,
                len(self.videos),
                len(self.videos.classes),
                self.config.evaluation.views_per_batch,
                self.device,
                reorder,
                on_video=bar.advance,
            )
        for bad in result.bad:  # their labels count too: a video that cannot be decoded is a wrong answer
            result.names[bad.index] = bad.path
            result.labels[bad.index] = self.videos.records[bad.index].label
        return result


def validator(videos: VideoList, config: Config, device: torch.device) -> Callable[[nn.Module], dict[str, float]]:
    """What training calls: one centre view per video -> {"top1", "top5"}."""
    evaluator = Evaluator(videos, config, config.data.preprocessing(), Protocol(1, 1), device)
    return lambda model: accuracies(evaluator.scores(model, title="validating"))


def accuracies(scores: VideoScores) -> dict[str, float]:
    """top1 and top5 in percent, over all videos, those that could not be decoded included."""
    arrays = (scores.scores, scores.labels, scores.decoded)
    return {"top1": top_k_accuracy(*arrays, 1), "top5": top_k_accuracy(*arrays, 5)}


def results(scores: VideoScores, classes: tuple[str, ...], protocol: Protocol, seconds: float) -> dict:
    """What results.json holds; accuracies in percent, `protocol` as clips × crops."""
    return accuracies(scores) | {
        "mean_class_accuracy": mean_class_accuracy(scores.scores, scores.labels, scores.decoded),
        "num_videos": len(scores.labels),
        "num_classes": len(classes),
        "protocol": str(protocol),
        "undecodable": [{"path": bad.path, "where": bad.where, "reason": bad.reason} for bad in scores.bad],
        "seconds": seconds,
        "cpu_count": os.cpu_count(),
    }


def evaluate(
    model: nn.Module, card: ModelCard, videos: VideoList, config: Config, protocol: Protocol, device: torch.device
) -> tuple[VideoScores, dict]:
    """Scores and results of a checkpoint on a list of videos, with the checkpoint's own preprocessing."""
    check_agreement(card, config, videos)
    start = time.monotonic()
    scores = Evaluator(videos, config, card.preprocessing, protocol, device).scores(model)
    return scores, results(scores, card.classes, protocol, time.monotonic() - start)


def check_agreement(card: ModelCard, config: Config, videos: VideoList) -> None:
    """Raise ConfigError where the checkpoint was trained for other input or other classes than the config says."""
    trained, asked = card.preprocessing.model_dump(), config.data.preprocessing().model_dump()
    for name, value in trained.items():
        if asked[name] != value:
            raise ConfigError(
                f"data.{name} is {asked[name]} in the config, but the checkpoint was trained with {value}: make them agree"
            )
    if card.classes != videos.classes:
        pairs = zip(card.classes, videos.classes, strict=False)
        place = next(
            (i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), min(len(card.classes), len(videos.classes))
        )
        ours, theirs = (names[place] if place < len(names) else "nothing" for names in (card.classes, videos.classes))
        raise ConfigError(
            f"{videos.source}: class {place} is '{theirs}' there but '{ours}' in the checkpoint "
            f"({len(videos.classes)} and {len(card.classes)} classes): evaluate on a list with the same classes"
        )
