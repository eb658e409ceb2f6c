"""Verbs that train: train, settings, and the demonstration."""

import argparse

from mvit_video.cli.common import add_allow_missing, add_config, add_device, add_output, overrides, say


def train(arguments: argparse.Namespace) -> int:
    """Train a network; leaves model.safetensors, config.yaml, metrics.jsonl and checkpoints/ in --output."""
    from mvit_video.config.load import load_config
    from mvit_video.engine.run import train_run
    from mvit_video.evaluation.evaluate import validator
    from mvit_video.inference.predictor import choose_device

    config = load_config(arguments.config, overrides(arguments))
    device = choose_device(arguments.device)
    weights = train_run(
        config,
        arguments.output,
        device,
        lambda videos: validator(videos, config, device),
        say,
        resume=arguments.resume == "auto",
        overwrite=arguments.overwrite,
    )
    say(f"done: the weights are in {weights}")
    return 0


def _add_train(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_output(parser, "the run")
    parser.add_argument(
        "--resume", choices=("auto",), help="go on from the newest saved state in --output, if there is one"
    )
    add_allow_missing(parser)
    add_device(parser)


def settings(arguments: argparse.Namespace) -> int:
    """List every setting of a config file with its default and what it does."""
    from mvit_video.config.load import describe_settings

    for key, default, sentence in describe_settings():
        print(f"{key} = {default}\n    {sentence}")
    return 0


def demo(arguments: argparse.Namespace) -> int:
    """The whole way on the demonstration dataset: data, training, evaluation, prediction, timeline, report."""
    from mvit_video.demo import run_demo
    from mvit_video.inference.predictor import choose_device

    report = run_demo(arguments.config, arguments.output, arguments.overwrite, choose_device(arguments.device), say)
    say(f"done: open {report} in a browser")
    return 0


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="configs/demo/motion.yaml")
    add_output(parser, "the data, the run and the report")
    add_device(parser)


VERBS = ((train, _add_train), (settings, lambda parser: None), (demo, _add_demo))
