"""The demonstration, from nothing to a report: data, training, evaluation, controls, a video, a long video."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from mvit_video.api import train
from mvit_video.config.load import load_config
from mvit_video.config.schema import Config
from mvit_video.data.lists.selection import training_lists
from mvit_video.data.synthetic import write_dataset
from mvit_video.data.video.guard import open_reader
from mvit_video.engine.metrics_log import read_metrics
from mvit_video.engine.run_folder import WEIGHTS
from mvit_video.errors import Interrupted
from mvit_video.evaluation.evaluate import evaluator_from
from mvit_video.evaluation.frame_only import frame_only_accuracy
from mvit_video.evaluation.protocols import Protocol
from mvit_video.evaluation.results import accuracies, results
from mvit_video.evaluation.views import VideoScores, reversed_frames, shuffled_frames
from mvit_video.figures import frame_strips, loss_and_accuracy
from mvit_video.inference.predictor import Predictor
from mvit_video.inference.timeline import Segment, Timeline, label_timeline
from mvit_video.paths import fresh_folder, write_json, write_whole
from mvit_video.report.evaluation_page import confusion_section
from mvit_video.report.page import Number, Report, Section
from mvit_video.report.render import timeline_figure
from mvit_video.report.strips import part_middles

NUM_TRAIN, NUM_VAL = 768, 160
SHUFFLES = 4
OWNED = ("data", "run", WEIGHTS, "results.json", "report.html", "predictions.json", "timeline.json")


def run_demo(config_path: str, output: str, overwrite: bool, device: torch.device, say: Callable[[str], None]) -> Path:
    """Do all of it in the folder `output`; returns the path of the report.

    Raises Interrupted where a signal has asked to stop.
    """
    start = time.monotonic()
    folder = fresh_folder(output, OWNED, overwrite)
    config = load_config(config_path, [f"data.root={folder / 'data'}"])
    say(f"writing {NUM_TRAIN + NUM_VAL} videos to {folder / 'data'}")
    write_dataset(folder / "data", NUM_TRAIN, NUM_VAL, config.train.seed, workers=2)
    run = folder / "run"
    try:
        trained = train(config, run, device=str(device), say=say)
    except Interrupted:  # its run could go on, but not what comes after it
        raise Interrupted("stopped: run demo again with --overwrite to start over") from None
    write_whole(folder / WEIGHTS, trained.weights.read_bytes())

    predictor = Predictor.from_checkpoint(folder / WEIGHTS, str(device), precision=config.evaluation.precision)
    scores, result = _evaluate(predictor, config, say)
    timeline = label_timeline(predictor, folder / "data" / "long.mp4")
    predictions = [p.as_dict() for p in predictor([folder / "data" / scores.names[row] for row in range(8)])]
    result["seconds"] = time.monotonic() - start
    write_json(folder / "results.json", result)
    write_json(folder / "predictions.json", predictions)
    write_json(folder / "timeline.json", [segment.as_dict() for segment in timeline.segments])
    report = _report(folder, run, predictor, scores, result, timeline, predictions)
    report.write(folder / "report.html")
    return folder / "report.html"


def _evaluate(predictor: Predictor, config: Config, say: Callable[[str], None]) -> tuple[VideoScores, dict]:
    """The result with its three controls: shuffled frames (mean over orders), reversed frames, one frame alone."""
    train, val = training_lists(config.data)
    assert val is not None
    protocol = Protocol.parse(config.evaluation.protocol)
    evaluator = evaluator_from(config, val, predictor.card.preprocessing, protocol, predictor.precision)
    start = time.monotonic()
    scores = evaluator.scores(predictor.model)
    result = results(scores, val.classes, protocol, time.monotonic() - start)
    shuffled = [
        accuracies(
            evaluator.scores(predictor.model, shuffled_frames(seed), f"frames shuffled, {seed + 1} of {SHUFFLES}")
        )["top1"]
        for seed in range(SHUFFLES)
    ]
    backwards = evaluator.scores(predictor.model, reversed_frames, "frames reversed")
    say("training a 2D network on single frames, for comparison")
    alone = frame_only_accuracy(train, val, config.data, config.train.seed)
    return scores, result | {
        "precision": str(predictor.precision),
        "top1_shuffled_frames": float(np.mean(shuffled)),
        "top1_reversed_frames": accuracies(backwards)["top1"],
        "top1_frame_only": alone,
    }


def _report(
    folder: Path,
    run: Path,
    predictor: Predictor,
    scores: VideoScores,
    result: dict,
    timeline: Timeline,
    predictions: list,
) -> Report:
    classes, card = predictor.card.classes, predictor.card
    sections = [
        Section(
            "Training",
            "Loss and top-1 accuracy of each training batch, and top-1 on the held-out videos.",
            loss_and_accuracy(read_metrics(run / "metrics.jsonl"), read_metrics(run / "validation.jsonl")),
        ),
        confusion_section(scores, classes),
        Section(
            "Held-out videos and their predicted labels",
            "One video of each class, eight frames in order of time.",
            [
                frame_strips(
                    [
                        _strip(folder, scores.names[row], classes[scores.labels[row]], p)
                        for row, p in enumerate(predictions)
                    ]
                )
            ],
        ),
        *_timeline_sections(folder, timeline, classes),
    ]
    return Report(
        title="mvit_video: a video MViTv2 trained from scratch on motion alone",
        lead="Eight motions of one textured object, written as H.264 files. No single frame tells the class, and the order "
        "of the frames decides between a motion and its opposite: an unordered set of frames can show the axis at best, "
        "which is 50 % here.",
        numbers=_headline(result, len(classes)),
        sections=sections,
        footer=f"{card.name}, {sum(p.numel() for p in predictor.model.parameters()):,} parameters, trained and measured on this "
        f"machine ({result['cpu_count']} CPU cores, {predictor.device.type}) in {result['seconds']:.0f} s in all.",
    )


def _headline(result: dict, num_classes: int) -> list[Number]:
    held_out = f"{result['num_videos']} held-out videos, {result['protocol']} views"
    rows = (
        ("top1", "top-1 accuracy", held_out),
        ("top5", "top-5 accuracy", f"of {num_classes} classes"),
        ("top1_shuffled_frames", "top-1, frames shuffled", f"mean over {SHUFFLES} orders"),
        ("top1_reversed_frames", "top-1, frames reversed", "every class has its opposite here"),
        ("top1_frame_only", "top-1 from single frames", f"2D network; chance is {100 / num_classes:.1f} %"),
    )
    return [Number(f"{result[key]:.1f} %", name, note) for key, name, note in rows]


def _timeline_sections(folder: Path, timeline: Timeline, classes: Sequence[str]) -> list[Section]:
    truth = [Segment(score=1.0, **segment) for segment in json.loads((folder / "data" / "long.json").read_text())]
    return [
        Section(
            "A longer video with several actions in a row",
            "The clip that the network sees slides over the video; runs of equal labels become segments.",
            [timeline_figure(timeline, classes, list(_frames_of(folder / "data" / "long.mp4")), truth)],
        ),
        Section(
            "Segments of the longer video",
            "Times in seconds.",
            columns=("from", "to", "label", "mean score"),
            rows=[(round(s.start, 2), round(s.end, 2), s.label, round(s.score, 3)) for s in timeline.segments],
        ),
    ]


def _strip(folder: Path, name: str, true: str, prediction: dict) -> tuple[np.ndarray, str]:
    best = prediction["predictions"][0]
    return _frames_of(folder / "data" / name), f"{Path(name).name}: {best['label']} ({best['score']:.2f}), true: {true}"


def _frames_of(path: Path, count: int = 8) -> np.ndarray:
    """Frames from the middles of `count` equal parts of a video."""
    with open_reader(path) as reader:
        return reader.frames(part_middles(len(reader), count))
