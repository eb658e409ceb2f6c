"""Verbs that apply a trained network to videos: predict, explain."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from rich.table import Table

from mvit_video.cli.common import (
    add_checkpoint,
    add_device,
    add_output,
    add_precision,
    add_shard,
    at_least_one,
    console,
    print_error,
    say,
)
from mvit_video.data.lists.text import lines_of
from mvit_video.data.video.guard_start import launcher
from mvit_video.errors import ConfigError, DecodeError
from mvit_video.printable import csv_text, json_text, printable
from mvit_video.shards import parse_shard

NOTHING = "no video on standard input: write one path per line"
SECONDS_BETWEEN_NOTES = 10.0


def predict(arguments: argparse.Namespace) -> int:
    """Predict the class of videos, over time for long ones (--timeline), or of a live stream (--stream).

    A file that cannot be decoded costs one line, the others are still done, and the exit code is 1.
    """
    _check_options(arguments)
    launcher.start_early()
    from mvit_video.inference.predictor import Predictor, expand_paths

    source = _live_source(arguments) if arguments.stream else None
    paths = expand_paths(_expand_standard_input(arguments.paths), lambda note: say(f"note: {note}"))
    words = arguments.checkpoint, arguments.device, arguments.protocol
    predictor = Predictor.from_checkpoint(*words, precision=arguments.precision)
    if source is not None:
        return _predict_stream(predictor, source, arguments)
    if arguments.timeline:
        return _predict_timelines(predictor, list(paths), arguments)
    if arguments.shard:
        return _predict_part(predictor, list(paths), arguments)
    write, count, failed = WRITERS[arguments.format or "table"], 0, 0
    if arguments.format == "csv":
        _print_csv("path", "rank", "label", "score", *(["reached"] if predictor.card.multi_label else []))
    for prediction in predictor.each(paths, arguments.top or 5):
        count += 1
        failed += prediction.error is not None
        if prediction.error is not None and arguments.format != "jsonl":
            print_error(prediction.error)
        else:
            write(prediction)
    if not count:
        raise ConfigError(NOTHING)
    return 1 if failed else 0


def _check_options(arguments: argparse.Namespace) -> None:
    """Raise ConfigError for options that conflict or need each other."""
    if bool(arguments.paths) == bool(arguments.stream):
        raise ConfigError("expected videos, folders, patterns or - (a list on standard input), or --stream")
    if (arguments.timeline or bool(arguments.shard)) != bool(arguments.output):
        raise ConfigError("--timeline or --shard, and --output DIR, must be used together")
    if arguments.shard:
        parse_shard(arguments.shard)
    if arguments.shard and (arguments.timeline or arguments.stream or arguments.format):
        raise ConfigError("--shard writes JSON lines of whole videos: drop --timeline, --stream, --format and --json")
    if arguments.stream and (arguments.timeline or arguments.top or arguments.format in ("table", "csv")):
        raise ConfigError("--stream writes JSON lines of the top label only: drop --timeline, --format and --top")
    if arguments.timeline and (arguments.format or arguments.top):
        raise ConfigError("--timeline writes files with the top label over time: drop --format, --json and --top")
    if arguments.protocol and (arguments.timeline or arguments.stream):
        raise ConfigError("--protocol is for whole videos: drop it with --timeline and --stream")
    if arguments.window_step and not (arguments.timeline or arguments.stream):
        raise ConfigError("--window-step is for --timeline and --stream only")
    if arguments.allow_network and not arguments.stream:
        raise ConfigError("--allow-network is for --stream only: download a file first")


def _expand_standard_input(paths: Iterable[str]) -> Iterator[str]:
    """Expand - to the paths on standard input, one per line, as raw file system bytes."""
    for path in paths:
        if path == "-":
            yield from (os.fsdecode(line).rstrip("\r\n") for line in lines_of(sys.stdin.buffer) if line.strip())
        else:
            yield path


def _predict_part(predictor, paths: list[str], arguments: argparse.Namespace) -> int:
    from mvit_video.inference.parts import PREDICTIONS, predict_part
    from mvit_video.locks import alone_in
    from mvit_video.paths import fresh_folder
    from mvit_video.shards import PART

    if not paths:
        raise ConfigError(NOTHING)
    shard, bad = parse_shard(arguments.shard), list[str]()
    with alone_in(arguments.output, say):
        folder = fresh_folder(arguments.output, (PREDICTIONS, PART), arguments.overwrite)
        words = paths, arguments.top or 5, shard, folder
        count = predict_part(predictor, *words, lambda prediction: bad.append(prediction.error or ""))
    for error in filter(None, bad):
        print_error(error)
    say(f"shard {shard}: {count} of {len(paths)} videos, see {folder / PREDICTIONS}")
    return 1 if any(bad) else 0


def _predict_timelines(predictor, paths: list[str], arguments: argparse.Namespace) -> int:
    from mvit_video.locks import alone_in
    from mvit_video.report.outputs import TIMELINE_FILES, folders_for, timeline_outputs

    if not paths:
        raise ConfigError(NOTHING)
    failed = 0
    with alone_in(arguments.output, say):
        for path, folder in folders_for(paths, arguments.output, TIMELINE_FILES, arguments.overwrite):
            try:
                error = timeline_outputs(predictor, path, folder, arguments.window_step, say)
            except DecodeError as reason:
                error = str(reason)
            if error:
                failed += 1
                print_error(error)
    return 1 if failed else 0


def _live_source(arguments: argparse.Namespace):
    from mvit_video.inference.stream import live_source

    return live_source(arguments.stream, arguments.allow_network)


def _predict_stream(predictor, source, arguments: argparse.Namespace) -> int:
    """Print a JSON line per prediction, notes on stderr, and a summary at the end."""
    from mvit_video.inference.stream import live_predictions

    count, dropped, noted = 0, 0, time.monotonic() - SECONDS_BETWEEN_NOTES
    predictions = live_predictions(predictor, source, arguments.window_step)
    try:
        for prediction in predictions:
            print(json_text(prediction.as_dict()), flush=True)
            count += 1
            if prediction.dropped > dropped and time.monotonic() - noted > SECONDS_BETWEEN_NOTES:
                say(f"falling behind: {prediction.dropped} windows dropped, latency {prediction.latency:.1f} s")
                noted = time.monotonic()
            dropped = prediction.dropped
    except KeyboardInterrupt:
        say("interrupted")
    finally:
        predictions.close()
    say(f"{source.name}: {count} predictions, {dropped} windows dropped")
    return 0


def explain(arguments: argparse.Namespace) -> int:
    """Explain a prediction by a heat map over the frames: an image, an annotated copy of the video, and numbers."""
    from mvit_video.inference.predictor import Predictor
    from mvit_video.locks import alone_in
    from mvit_video.report.outputs import EXPLAIN_FILES, explain_outputs, folders_for

    predictor = Predictor.from_checkpoint(arguments.checkpoint, arguments.device, precision=arguments.precision)
    with alone_in(arguments.output, say):
        [(path, folder)] = folders_for([arguments.video], arguments.output, EXPLAIN_FILES, arguments.overwrite)
        explain_outputs(predictor, path, folder, arguments.label, say)
    return 0


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths", nargs="*", metavar="PATH", help="videos, folders of them, patterns, or - for a list on standard input"
    )
    add_checkpoint(parser)
    parser.add_argument("--format", choices=tuple(WRITERS), help="output format (default: table)")
    parser.add_argument("--json", dest="format", action="store_const", const="jsonl", help="the same as --format jsonl")
    parser.add_argument("--top", type=at_least_one, help="number of labels (default: 5)")
    parser.add_argument("--protocol", metavar="NxM", help="clips × crops per video (default: the checkpoint's)")
    parser.add_argument("--timeline", action="store_true", help="labels over time: segments, plot, annotated copy")
    parser.add_argument(
        "--stream", metavar="SOURCE", help="a camera such as /dev/video0, - for standard input, a pipe, or a URL"
    )
    parser.add_argument(
        "--allow-network", action="store_true", help="allow --stream to open an rtsp, http or https URL"
    )
    parser.add_argument(
        "--window-step", type=_seconds, metavar="SECONDS", help="step between windows (default: a quarter of a clip)"
    )
    add_output(parser, "the timeline or part, with a subfolder for each of several timelines", required=False)
    add_shard(parser, "the videos")
    add_precision(parser)
    add_device(parser)


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", metavar="VIDEO", help="a video file")
    add_checkpoint(parser)
    parser.add_argument("--label", metavar="NAME", help="class to explain (default: the predicted one)")
    add_output(parser, "explain.png, explain.mp4 and explain.json")
    add_precision(parser)
    add_device(parser)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds above 0")
    return seconds


def _print_json(prediction) -> None:
    print(json_text(prediction.as_dict()), flush=True)


def _print_table(prediction) -> None:
    title = printable(prediction.path)
    table = Table(title=title, title_justify="left", min_width=min(len(title), 60))
    table.add_column("label", overflow="fold")
    table.add_column("score", justify="right")
    if prediction.labels is not None:
        table.add_column("reached")
    for label, score in prediction.predictions:
        table.add_row(printable(label), f"{score:.3f}", *_reached(prediction, label, "yes", "no"))
    console().print(table)


def _print_rows(prediction) -> None:
    """Rows of a video, one per label, best first."""
    for rank, (label, score) in enumerate(prediction.predictions, 1):
        _print_csv(prediction.path, rank, label, f"{score:.6f}", *_reached(prediction, label, 1, 0))
    sys.stdout.flush()


def _reached(prediction, label: str, yes: object, no: object) -> list:
    """Of a network for several labels, whether this is one of them."""
    return [] if prediction.labels is None else [yes if label in prediction.labels else no]


def _print_csv(*cells: object) -> None:
    print(csv_text([cells]), end="")


WRITERS: dict[str, Callable] = {"table": _print_table, "jsonl": _print_json, "csv": _print_rows}
VERBS = ((predict, _add_predict), (explain, _add_explain))
