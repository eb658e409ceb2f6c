"""Files of an evaluation: results.json, scores.npz and two tables, each written whole or not at all."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mvit_video.config.schema import Config, InputSettings
from mvit_video.data.dataset import BadVideo
from mvit_video.data.lists.read import VideoList
from mvit_video.download import known_sha256
from mvit_video.engine.distributed import world_size
from mvit_video.evaluation import metrics
from mvit_video.evaluation.protocols import Protocol
from mvit_video.evaluation.scores_file import SCORES, save_scores
from mvit_video.evaluation.views import VideoScores
from mvit_video.model.precision import Precision
from mvit_video.model.weights.card import ModelCard
from mvit_video.model.weights.load import checkpoint_file
from mvit_video.paths import write_json, write_whole
from mvit_video.printable import csv_text
from mvit_video.version import __version__

RESULTS, PER_CLASS, CONFUSION, REPORT = "results.json", "per_class.csv", "confusion.csv", "report.html"
FILES = (RESULTS, SCORES, PER_CLASS, CONFUSION, REPORT)
RESAMPLES, SEED = 1000, 0
NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_class_accuracy": "mean class accuracy",
    "mean_average_precision": "mean average precision",
}


@dataclass(frozen=True)
class EvaluationResult:
    """How good a network was found to be on a list of videos. Accuracies are in percent, over all videos of the list.

    >>> result = mvit_video.evaluate("config.yaml", "model.safetensors")  # doctest: +SKIP
    >>> result.top1, result.intervals_95["top1"]  # doctest: +SKIP
    (62.5, (58.1, 66.7))
    """

    scores: VideoScores
    """Each video's name, labels and scores, and whether it could be decoded."""
    classes: tuple[str, ...]
    content: dict[str, Any]
    """Everything that results.json holds: numbers, and where they come from."""

    @property
    def top1(self) -> float | None:
        """Share of the videos whose best class is correct; None where videos have several labels."""
        return self.content.get("top1")

    @property
    def top5(self) -> float | None:
        """Share of the videos whose class is among the five best; None where videos have several labels."""
        return self.content.get("top5")

    @property
    def mean_class_accuracy(self) -> float | None:
        """Top-1 of each class's videos, averaged over the classes; None where videos have several labels."""
        return self.content.get("mean_class_accuracy")

    @property
    def mean_average_precision(self) -> float | None:
        """Of lists whose videos have several labels, else None."""
        return self.content.get("mean_average_precision")

    @property
    def accuracies(self) -> dict[str, float]:
        """Those of the numbers above that there are, by their names."""
        return {name: self.content[name] for name in NAMES if name in self.content}

    @property
    def intervals_95(self) -> dict[str, tuple[float, float]]:
        """The 95 % interval of each accuracy."""
        return {name: (low, high) for name, (low, high) in self.content["intervals_95"].items()}

    @property
    def num_videos(self) -> int:
        """Videos of the list; each counts once."""
        return len(self.scores.names)

    @property
    def undecodable(self) -> list[BadVideo]:
        """Videos that could not be decoded, which count as wrong."""
        return self.scores.bad

    def write(self, folder: Path) -> None:
        """results.json, scores.npz, per_class.csv and, with one label per video, confusion.csv."""
        write_results(folder, self.scores, self.classes, self.content)


def accuracies(scores: VideoScores) -> dict[str, float]:
    """top1 and top5 in percent, over all videos, those that could not be decoded included.

    Of a multi-label list, mean_average_precision in percent.
    """
    arrays = (scores.scores, scores.labels, scores.decoded)
    if scores.multi_label:
        return {"mean_average_precision": metrics.mean_average_precision(*arrays) or 0.0}
    return {"top1": metrics.top_k_accuracy(*arrays, 1), "top5": metrics.top_k_accuracy(*arrays, 5)}


def results(scores: VideoScores, classes: tuple[str, ...], protocol: Protocol, seconds: float) -> dict[str, Any]:
    """The part of results.json that follows from the scores; accuracies in percent."""
    return measures(scores) | {
        "num_videos": len(scores.names),
        "num_decoded": int(scores.decoded.sum()),
        "num_classes": len(classes),
        "protocol": str(protocol),
        "clips": protocol.clips,
        "crops": protocol.crops,
        "undecodable": [{"path": bad.path, "where": bad.where, "reason": bad.reason} for bad in scores.bad],
        "seconds": seconds,
        "clips_per_second": int(scores.decoded.sum()) * protocol.clips / seconds,
        "views_per_second": int(scores.decoded.sum()) * protocol.views / seconds,
        "processes": world_size(),
        "cpu_count": os.cpu_count(),
    }


def measures(scores: VideoScores) -> dict[str, Any]:
    """Every number about the scores with its 95 % interval: a share of videos has Wilson's, the others a bootstrap's."""
    statistics = accuracies(scores)
    arrays = (scores.scores, scores.labels, scores.decoded)
    calibrated: dict[str, Any] = {}
    if not scores.multi_label:
        statistics["mean_class_accuracy"] = metrics.mean_class_accuracy(*arrays)
        error = metrics.calibration(*arrays).error
        calibrated = {"expected_calibration_error": error, "calibration_bins": metrics.CALIBRATION_BINS}
    drawn = metrics.bootstrap(weighted_measures(scores), len(scores.names), RESAMPLES, SEED)
    intervals = {name: metrics.interval(values) for name, values in zip(statistics, drawn.T, strict=True)}
    if not scores.multi_label:
        hits = {f"top{k}": int(metrics.top_k_hits(*arrays, k).sum()) for k in (1, 5)}
        intervals |= {name: metrics.wilson(count, len(scores.names)) for name, count in hits.items()}
    return statistics | {
        "intervals_95": intervals,
        "bootstrap": {"resamples": RESAMPLES, "seed": SEED},
        **calibrated,
    }


def weighted_measures(scores: VideoScores) -> Callable[[np.ndarray], list[float]]:
    """The statistic for `bootstrap`: the accuracies, in the order of `measures`, when video i counts weights[i] times."""
    arrays = (scores.scores, scores.labels, scores.decoded)
    if scores.multi_label:
        precisions = metrics.ranked_precisions(*arrays)
        return lambda weights: [metrics.mean_precision(precisions(weights)) or 0.0]
    best, five = (metrics.top_k_hits(*arrays, k) for k in (1, 5))

    def statistic(weights: np.ndarray) -> list[float]:
        top1, top5 = (100.0 * float(weights @ hits) / len(hits) for hits in (best, five))
        return [top1, top5, metrics.mean_over_classes(best, scores.labels, weights)]

    return statistic


def circumstances(
    videos: VideoList,
    config: Config,
    protocol: Protocol,
    precision: Precision,
    multi_label: bool,
    frames: str,
    shown: InputSettings,
) -> dict[str, Any]:
    """The part of results.json that describes the origin of its numbers, without the checkpoint."""
    device = precision.device
    versions = {"mvit_video": __version__, "torch": torch.__version__, "numpy": np.__version__}
    return {
        "protocol_in_words": protocol.in_words(shown, multi_label, frames, config.evaluation.fusion),
        "frames": frames,
        "crop_size": list(shown.crop_hw),
        "list": videos.source,
        "config": config.model_dump(mode="json"),
        "precision": str(precision),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": versions | {"python": sys.version.split()[0]},
    }


def described_checkpoint(checkpoint: str, card: ModelCard) -> dict[str, Any]:
    """The part of results.json that describes the weights: their source, the sha256 of their file, and their card."""
    digest = known_sha256(checkpoint_file(checkpoint))
    return {"path": checkpoint, "sha256": digest, "card": card.model_dump(mode="json")}


def class_rows(scores: VideoScores, classes: Sequence[str]) -> list[dict[str, Any]]:
    """One row per class, for per_class.csv and the report. Percentages; None for those of no videos."""
    if scores.multi_label:
        values = metrics.average_precisions(scores.scores, scores.labels, scores.decoded)
        return [
            {"class": name, "videos": int(count), "average_precision": _percent(value)}
            for name, count, value in zip(classes, scores.labels.sum(0), values, strict=True)
        ]
    arrays = (scores.scores, scores.labels, scores.decoded)
    matrix, hits, five = metrics.confusion_matrix(*arrays), *(metrics.top_k_hits(*arrays, k) for k in (1, 5))
    rows = []
    for place, name in enumerate(classes):
        own = scores.labels == place
        beside = np.where(np.arange(len(classes)) == place, 0, matrix[place])
        mistake = int(beside.argmax())
        rows.append(
            {
                "class": name,
                "videos": int(own.sum()),
                "undecodable": int((own & ~scores.decoded).sum()),
                "top1": _percent(hits[own].mean()) if own.any() else None,
                "top5": _percent(five[own].mean()) if own.any() else None,
                "predicted": int(matrix[:, place].sum()),
                "precision": _percent(matrix[place, place] / matrix[:, place].sum())
                if matrix[:, place].any()
                else None,
                "mistaken_for": classes[mistake] if beside[mistake] else None,
                "mistaken_videos": int(beside[mistake]),
            }
        )
    return rows


def _percent(share: float) -> float | None:
    return None if np.isnan(share) else 100.0 * float(share)


def write_results(folder: Path, scores: VideoScores, classes: Sequence[str], result: dict[str, Any]) -> None:
    """results.json, scores.npz, per_class.csv and, with one label per video, confusion.csv."""
    save_scores(folder / SCORES, scores, classes)
    rows = class_rows(scores, classes)
    write_csv(folder / PER_CLASS, list(rows[0]), [list(row.values()) for row in rows])
    if not scores.multi_label:
        matrix = metrics.confusion_matrix(scores.scores, scores.labels, scores.decoded)
        lost = np.bincount(scores.labels[~scores.decoded], minlength=len(classes))
        table = np.column_stack([matrix, lost]).tolist()
        content = [[name, *row] for name, row in zip(classes, table, strict=True)]
        write_csv(folder / CONFUSION, ["true \\ predicted", *classes, "(not decoded)"], content)
    write_json(folder / RESULTS, result)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Commas, one header; None is an empty cell."""
    write_whole(path, csv_text([header, *rows]))
