"""Verbs that use a trained network: predict."""

import argparse
import json

from rich.console import Console
from rich.table import Table

from mvit_video.cli.common import add_device, at_least_one, complain
from mvit_video.errors import DecodeError


def predict(arguments: argparse.Namespace) -> int:
    """Name what happens in videos; a file that cannot be decoded costs one line, and the exit code is 1."""
    from mvit_video.inference.predictor import Predictor, find_videos

    predictor = Predictor.from_checkpoint(arguments.checkpoint, arguments.device, arguments.protocol)
    failed = 0
    for path in find_videos(arguments.paths):
        try:
            prediction = predictor(path, arguments.top)
        except DecodeError as reason:
            failed += 1
            if arguments.json:
                print(json.dumps({"path": path, "error": str(reason)}, ensure_ascii=False), flush=True)
            else:
                complain(str(reason))
            continue
        if arguments.json:
            print(json.dumps(prediction.as_dict(), ensure_ascii=False), flush=True)
        else:
            _print_table(prediction)
    return 1 if failed else 0


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help="video files, or folders of them")
    parser.add_argument(
        "--checkpoint", required=True, metavar="FILE", help="a model.safetensors that train has written"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of tables")
    parser.add_argument("--top", type=at_least_one, default=5, help="how many labels (default: 5)")
    parser.add_argument("--protocol", metavar="NxM", help="clips × crops per video (default: the checkpoint's)")
    add_device(parser)


def _print_table(prediction) -> None:
    table = Table(title=prediction.path, title_justify="left", min_width=min(len(prediction.path), 60))
    table.add_column("label")
    table.add_column("score", justify="right")
    for label, score in prediction.predictions:
        table.add_row(label, f"{score:.3f}")
    Console(markup=False, highlight=False).print(table)


VERBS = ((predict, _add_predict),)
