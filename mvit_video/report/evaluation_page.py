"""The report of an evaluation: accuracy, protocol, mistakes and calibration."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mvit_video.config.schema import DataSettings
from mvit_video.engine.metrics_log import read_metrics
from mvit_video.errors import DecodeError
from mvit_video.evaluation.metrics import calibration, confused_pairs, confusion_matrix
from mvit_video.evaluation.results import NAMES, class_rows
from mvit_video.evaluation.views import VideoScores
from mvit_video.figures import loss_and_accuracy
from mvit_video.report.page import Number, Report, Section, matrix_data, reliability
from mvit_video.report.strips import ClipStrip, clip_strip

MISTAKES, PAIRS, CLASSES = 12, 20, 10


def evaluation_report(
    scores: VideoScores, classes: Sequence[str], result: dict, data: DataSettings, run: Path | None = None
) -> Report:
    """Build the report of an evaluation; training curves come from the run's folder, if there is one."""
    card = result["checkpoint"]["card"]
    single = [] if scores.multi_label else [confusion_section(scores, classes), *_pairs(scores, classes)]
    doubt = [] if scores.multi_label else [*_mistakes(scores, classes, data), *_calibration(scores, result)]
    return Report(
        title=f"{card['name']} on {Path(result['list']).name}",
        lead=f"{_in_a_sentence(result)} {result['protocol_in_words']}",
        numbers=_headline(result),
        sections=[
            *_training(run),
            *single,
            *_classes(scores, classes),
            *doubt,
            *_undecodable(result),
            _origin(result),
        ],
        footer=f"95 % intervals: Wilson's of top-1 and top-5, else bootstrap over the videos, {result['bootstrap']['resamples']} "
        f"resamples, seed {result['bootstrap']['seed']}. Written by mvit_video {result['versions']['mvit_video']}.",
    )


def _in_a_sentence(result: dict) -> str:
    """What came out, for a person who does not know the words of the field."""
    count = f"{result['num_videos']:,} videos"
    if "top1" not in result:
        return f"The network was asked for the labels of {count} that it had not been trained on, {result['num_classes']} labels in all."
    guess = 100 / result["num_classes"]
    return (
        f"The network named the right one of {result['num_classes']} classes for {result['top1']:.1f} % of {count}; guessing would "
        f"be right for {guess:.1f} %."
    )


def _headline(result: dict) -> list[Number]:
    numbers = [
        Number(
            f"{result[key]:.2f} %",
            name,
            "95 % interval {:.1f}\u00a0to\u00a0{:.1f}".format(*result["intervals_95"][key]),
        )
        for key, name in NAMES.items()
        if key in result
    ]
    if result.get("expected_calibration_error") is not None:
        error = f"{100 * result['expected_calibration_error']:.2f} %"
        numbers.append(Number(error, "expected calibration error", f"{result['calibration_bins']} bins"))
    lost = result["num_videos"] - result["num_decoded"]
    note = f"{lost} of them could not be decoded" if lost else "all were decoded"
    return [*numbers, Number(f"{result['num_videos']:,}", f"videos of {result['num_classes']} classes", note)]


def _training(run: Path | None) -> list[Section]:
    steps, validations = (_records(run / name) if run else [] for name in ("metrics.jsonl", "validation.jsonl"))
    if not steps:
        return []
    text = "Loss and top-1 accuracy of each training batch, and top-1 of the validations, from the checkpoint's folder."
    return [Section("Training", text, loss_and_accuracy(steps, validations))]


def _records(path: Path) -> list[dict]:
    """Read the numeric records of a log; empty if the file is something else."""
    try:
        records = [record for record in read_metrics(path) if isinstance(record, dict)]
    except (OSError, UnicodeDecodeError):
        return []
    return [{key: value for key, value in record.items() if isinstance(value, (int, float))} for record in records]


def confusion_section(scores: VideoScores, classes: Sequence[str]) -> Section:
    """Zoomable confusion matrix."""
    matrix = confusion_matrix(scores.scores, scores.labels, scores.decoded)
    return Section(
        "Confusion matrix",
        "True classes in rows, predicted ones in columns; classes that are mistaken for one another stand side by side. "
        "Right answers lie on the diagonal, in blue, mistakes beside it, in orange. The colour's strength is the root of the "
        "share of the true class's videos, so that rare mistakes can be seen.",
        matrix=matrix_data(matrix, classes, np.bincount(scores.labels, minlength=len(classes))),
    )


def _pairs(scores: VideoScores, classes: Sequence[str]) -> list[Section]:
    matrix = confusion_matrix(scores.scores, scores.labels, scores.decoded)
    totals = np.bincount(scores.labels, minlength=len(classes))
    rows = [
        (classes[true], classes[predicted], videos, round(100 * videos / totals[true], 1))
        for true, predicted, videos in confused_pairs(matrix, PAIRS)
    ]
    if not rows:
        return []
    columns = ("true", "predicted", "videos", "% of the class")
    return [Section("Most confused pairs", "The most frequent mistakes.", columns=columns, rows=rows)]


def _classes(scores: VideoScores, classes: Sequence[str]) -> list[Section]:
    key = "average_precision" if scores.multi_label else "top1"
    rows = [row for row in class_rows(scores, classes) if row[key] is not None]
    rows.sort(key=lambda row: row[key])
    kind = "average precision" if scores.multi_label else "top-1 accuracy"
    columns = ("class", "videos", f"{kind} in %", *(() if scores.multi_label else ("most often mistaken for",)))
    parts = [("Classes, worst first", rows)]
    if len(rows) > 2 * CLASSES:
        parts = [("Worst classes", rows[:CLASSES]), ("Best classes", rows[::-1][:CLASSES])]
    text = f"By {kind}; {len(rows)} classes have videos."
    return [Section(title, text, columns=columns, rows=[_row(row, key) for row in part]) for title, part in parts]


def _row(row: dict, key: str) -> tuple:
    if key != "top1":
        return row["class"], row["videos"], round(row[key], 1)
    mistake = f"{row['mistaken_for']} ({row['mistaken_videos']})" if row["mistaken_for"] is not None else "–"
    return row["class"], row["videos"], round(row[key], 1), mistake


def confident_mistakes(scores: VideoScores, count: int) -> list[int]:
    """Rows of the decoded videos that are wrong, those with the highest score for the wrong class first."""
    wrong = scores.decoded & (scores.scores.argmax(1) != scores.labels)
    order = np.argsort(-scores.scores.max(1), kind="stable")
    return [int(row) for row in order if wrong[row]][:count]


def _mistakes(scores: VideoScores, classes: Sequence[str], data: DataSettings) -> list[Section]:
    strips, lost = list[ClipStrip](), 0
    for row in confident_mistakes(scores, MISTAKES):
        best, true = int(scores.scores[row].argmax()), int(scores.labels[row])
        facts = (
            ("predicted", f"{classes[best]} ({scores.scores[row, best]:.2f})"),
            ("true", f"{classes[true]} ({scores.scores[row, true]:.2f})"),
        )
        try:
            strips.append(clip_strip(scores.names[row], data.root, data.decoder, data.decode_timeout, facts))
        except DecodeError:  # the views could be decoded, but another frame cannot
            lost += 1
    if not strips:
        return []
    text = "Wrong answers with the highest scores; followed by the true class and its score. Click a strip to play it."
    more = f" {lost} more cannot be shown: frames between those that were scored are damaged." if lost else ""
    return [Section("Most confident mistakes", text + more, strips=strips)]


def _calibration(scores: VideoScores, result: dict) -> list[Section]:
    error = result["expected_calibration_error"]
    if error is None:
        return []
    return [
        Section(
            "Calibration",
            f"Accuracy over confidence in {result['calibration_bins']} bins of equal "
            f"width. The expected calibration error, the mean distance from the diagonal over the decoded videos, is "
            f"{100 * error:.2f} %.",
            [reliability(calibration(scores.scores, scores.labels, scores.decoded, result["calibration_bins"]))],
        )
    ]


def _undecodable(result: dict) -> list[Section]:
    rows = [
        (bad["path"], bad["where"].replace(" ", "\u00a0"), bad["reason"].removeprefix(f"{bad['path']}: "))
        for bad in result["undecodable"]
    ]
    if not rows:
        return []
    text = "Counted as wrong answers."
    return [Section("Videos that could not be decoded", text, columns=("video", "row", "reason"), rows=rows)]


def _origin(result: dict) -> Section:
    checkpoint, versions = result["checkpoint"], result["versions"]
    rows = [
        ("protocol", result["protocol"]),
        ("list of videos", result["list"]),
        ("checkpoint", checkpoint["path"]),
        ("sha256", checkpoint["sha256"]),
        ("device", f"{result['device']}, {result['processes']} process{'es' * (result['processes'] > 1)}"),
        ("precision", result["precision"]),
        ("speed", f"{result['views_per_second']:.1f} views a second, {result['seconds']:.0f} s in all"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    return Section(
        "Where these numbers come from", "All settings are in results.json.", columns=("fact", "value"), rows=rows
    )
