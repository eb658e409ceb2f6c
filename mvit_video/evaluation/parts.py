"""Evaluations over several machines: the scores of a shard's videos, and the result of all of them."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mvit_video.data.dataset import BadVideo
from mvit_video.engine.distributed import is_rank_zero, world_size
from mvit_video.evaluation.evaluate import EvaluationTask
from mvit_video.evaluation.protocols import Protocol
from mvit_video.evaluation.results import EvaluationResult, results
from mvit_video.evaluation.scores_file import SCORES, load_scores, save_scores
from mvit_video.evaluation.views import VideoScores
from mvit_video.shards import Part, Shard, digest, write_part

OF_A_MACHINE = ("device", "versions")  # may differ between parts


def evaluate_part(task: EvaluationTask, shard: Shard, folder: Path | None) -> VideoScores:
    """Score a shard's videos and save them in `folder`, which only rank 0 needs. Every process must call this."""
    scores, seconds = task.scored(shard)
    if folder is not None and is_rank_zero():
        origin = task.origin()
        rows = ([record.path, record.row, *record.labels] for record in task.videos.records)
        job = {name: value for name, value in origin.items() if name not in (*OF_A_MACHINE, "checkpoint")}
        job |= {"protocol": str(task.protocol), "videos": digest(rows), "checkpoint": origin["checkpoint"]["sha256"]}
        save_scores(folder / SCORES, scores, task.card.classes)
        bad = [asdict(video) for video in scores.bad]
        content = {"origin": origin, "seconds": seconds, "processes": world_size(), "bad": bad}
        write_part(folder, "evaluate", shard, job, content)
    return scores


def merged_result(parts: Sequence[Part]) -> EvaluationResult:
    """The result that one process would have computed; `seconds` and `processes` are summed over the parts."""
    loaded = [load_scores(part.folder) for part in parts]
    first, classes = loaded[0]
    bad = [BadVideo(**values) for part in parts for values in part.content["bad"]]
    scores = VideoScores(
        first.names,
        first.labels,
        np.add.reduce([found.scores for found, _ in loaded]),
        np.logical_or.reduce([found.decoded for found, _ in loaded]),
        sorted(bad, key=lambda video: video.index),
    )
    origin: dict[str, Any] = parts[0].content["origin"]
    seconds = sum(part.content["seconds"] for part in parts)
    numbers = results(scores, classes, Protocol.parse(parts[0].job["protocol"]), seconds)
    return EvaluationResult(
        scores, classes, numbers | {"processes": sum(part.content["processes"] for part in parts)} | origin
    )
