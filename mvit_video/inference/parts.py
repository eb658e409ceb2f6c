"""Labels of many videos by several machines: a shard's predictions as JSON lines, and those of all."""

from collections.abc import Callable, Sequence
from pathlib import Path

from mvit_video.inference.predictor import Prediction, Predictor
from mvit_video.model.weights.fingerprint import weights_digest
from mvit_video.paths import write_whole
from mvit_video.printable import json_text
from mvit_video.shards import Part, Shard, digest, write_part

PREDICTIONS = "predictions.jsonl"


def predict_part(
    predictor: Predictor, paths: Sequence[str], top: int, shard: Shard, folder: Path, tell: Callable[[Prediction], None]
) -> int:
    """The predictions of a shard's videos, in predictions.jsonl; returns how many there are."""
    lines, places = list[str](), shard.places(len(paths))
    for prediction in predictor.each([paths[place] for place in places], top):
        lines.append(json_text(prediction.as_dict()))
        tell(prediction)
    write_whole(folder / PREDICTIONS, "".join(f"{line}\n" for line in lines))
    job = {
        "videos": digest(paths),
        "top": top,
        "protocol": str(predictor.protocol),
        "precision": str(predictor.precision),
        "checkpoint": weights_digest(predictor.model),
    }
    write_part(folder, "predict", shard, job, {"videos": len(paths)})
    return len(lines)


def merge_predictions(parts: Sequence[Part], output: Path) -> int:
    """The lines of all videos in their order, as `predict --format jsonl` prints them; returns how many are errors."""
    total = parts[0].content["videos"]
    lines = [""] * total
    for part in parts:
        found = (part.folder / PREDICTIONS).read_text(encoding="utf-8").splitlines(keepends=True)
        for place, line in zip(part.shard.places(total), found, strict=True):
            lines[place] = line
    write_whole(output / PREDICTIONS, "".join(lines))
    return sum('"error": ' in line and '"predictions": ' not in line for line in lines)
