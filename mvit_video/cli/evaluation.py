"""The verb evaluate."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvit_video.cli.common import (
    add_allow_missing,
    add_config,
    add_device,
    add_precision,
    add_shard,
    at_least_one,
    overrides,
    print_error,
    print_rows,
    say,
    show,
)
from mvit_video.data.lists.failures import summary_lines
from mvit_video.errors import ConfigError

if TYPE_CHECKING:
    from mvit_video.data.dataset import BadVideo
    from mvit_video.evaluation.results import EvaluationResult


def evaluate(arguments: argparse.Namespace) -> int:
    """Score every video of data.test (or data.val) over several views; or with --scores, compare and fuse two results.

    Writes results.json, scores.npz, per_class.csv, confusion.csv and report.html to --output. Under torchrun the
    processes share the videos.
    """
    if arguments.scores:
        return _compare(arguments)
    from mvit_video.engine.distributed import process_group

    with process_group():
        return _evaluate(arguments)


def _evaluate(arguments: argparse.Namespace) -> int:
    from mvit_video import api
    from mvit_video.config.load import load_config
    from mvit_video.engine.distributed import is_rank_zero
    from mvit_video.evaluation.results import REPORT

    given = load_config(arguments.config, overrides(arguments)), arguments.checkpoint, arguments.output
    words: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in ("protocol", "frames", "resolution", "precision", "device", "overwrite")
    }
    if arguments.shard:
        bad = api.evaluate_shard(*given, arguments.shard, say=say, **words)
        if is_rank_zero():
            _print_undecodable(bad)
            say(f"shard {arguments.shard}: scores saved to {arguments.output}")
        return 0
    result = api.evaluate(*given, say=say, **words)
    if is_rank_zero():
        _print_result(arguments, result, Path(arguments.output) / REPORT)
    return 0


def _print_result(arguments: argparse.Namespace, result: "EvaluationResult", page: Path) -> None:
    """Print a line per undecodable video, or per cause, and one for the result."""
    _print_undecodable(result.undecodable)
    views = result.content["protocol"] + (f", frames {arguments.frames}" if arguments.frames != "in-order" else "")
    views += f", at {arguments.resolution} pixels" if arguments.resolution else ""
    views += f", {result.content['precision']}"
    say(f"{_accuracies_text(result.content)} of {result.num_videos} videos, {views}; details in {page}")


def _print_undecodable(undecodable: "Iterable[BadVideo]") -> None:
    for line in summary_lines((bad.path, f"{bad.reason} ({bad.where})") for bad in undecodable):
        print_error(f"{line}: counted as wrong")


def _compare(arguments: argparse.Namespace) -> int:
    from mvit_video.evaluation.compare import comparison, comparison_rows
    from mvit_video.evaluation.results import FILES, write_results
    from mvit_video.evaluation.scores_file import SCORES
    from mvit_video.paths import check_fresh, fresh_folder

    views = (
        arguments.protocol
        or arguments.resolution
        or arguments.precision
        or arguments.shard
        or arguments.frames != "in-order"
    )
    if arguments.config or arguments.checkpoint or views:
        raise ConfigError(
            "--scores cannot be combined with CONFIG, --checkpoint, --protocol, --frames, --resolution, --precision or --shard"
        )
    if arguments.output:
        _refuse_input(arguments.scores, Path(arguments.output) / SCORES)
        check_fresh(Path(arguments.output), FILES, arguments.overwrite)
    result, fused, classes = comparison(tuple(arguments.scores), tuple(arguments.weights))
    columns, rows, lines = comparison_rows(result)
    print_rows(f"{result['num_videos']} videos, {result['num_classes']} classes", columns, rows, (1, 2, 3, 4))
    for line in lines:
        show(line)
    if arguments.output:
        write_results(fresh_folder(arguments.output, FILES, arguments.overwrite), fused, classes, result)
    return 0


def _refuse_input(inputs: Sequence[str], output: Path) -> None:
    """Raise ConfigError if writing `output` would overwrite an input."""
    for path in inputs:
        file = Path(path) / output.name if Path(path).is_dir() else Path(path)
        if file.exists() and output.exists() and file.samefile(output):
            raise ConfigError(f"{path}: is an input and is never overwritten: choose another --output")


def _accuracies_text(result: dict) -> str:
    from mvit_video.evaluation.results import NAMES

    return ", ".join(f"{name} {result[key]:.2f} %" for key, name in NAMES.items() if key in result)


class _InsteadOfConfig(argparse.Action):
    """--scores, which makes the arguments of an evaluation optional."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, values)
        for action in parser._actions:
            action.required = False


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not 0 < weight < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return weight


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="FILE",
        help="a model.safetensors written by train, a public checkpoint, or a name from `mvit-video models`",
    )
    parser.add_argument(
        "--protocol",
        metavar="NAME",
        help="kinetics-5x1, kinetics-5x3, ssv2-1x3, or clips × crops per video such as 5x1 (default: the config's)",
    )
    parser.add_argument(
        "--frames",
        default="in-order",
        metavar="ORDER",
        help="reversed, or shuffled:SEED, to measure how much frame order matters (default: in-order)",
    )
    parser.add_argument(
        "--resolution",
        type=at_least_one,
        metavar="N",
        help="shorter side of the crop in pixels, if different from training",
    )
    parser.add_argument(
        "--scores",
        nargs=2,
        metavar=("A", "B"),
        action=_InsteadOfConfig,
        help="instead of CONFIG and --checkpoint: two output folders (or scores.npz) to compare and fuse",
    )
    parser.add_argument(
        "--weights",
        nargs=2,
        type=_weight,
        default=(1.0, 1.0),
        metavar=("WA", "WB"),
        help="weights of A and B in the fusion",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the results; optional with --scores")
    parser.add_argument("--overwrite", action="store_true", help="delete the output of an earlier run there")
    add_allow_missing(parser)
    add_shard(parser, "the videos")
    add_precision(parser, default=None)
    add_device(parser)


VERBS = ((evaluate, _add_evaluate),)
