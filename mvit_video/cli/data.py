"""Verbs about datasets: demo-data."""

import argparse

from mvit_video.cli.common import add_output, at_least_one, say


def demo_data(arguments: argparse.Namespace) -> int:
    """Write the demonstration dataset: H.264 files, train.csv, val.csv, classes.txt, and a longer video with its segments."""
    from mvit_video.data.synthetic import write_dataset

    folder = write_dataset(
        arguments.output, arguments.train, arguments.val, arguments.seed, arguments.workers, arguments.overwrite
    )
    say(f"{arguments.train} training and {arguments.val} validation videos are in {folder}")
    return 0


def _add_demo_data(parser: argparse.ArgumentParser) -> None:
    add_output(parser, "the dataset")
    parser.add_argument("--train", type=at_least_one, default=768, help="training videos (default: 768)")
    parser.add_argument("--val", type=at_least_one, default=160, help="validation videos (default: 160)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=at_least_one, default=2, help="processes that draw and encode (default: 2)")


VERBS = ((demo_data, _add_demo_data),)
