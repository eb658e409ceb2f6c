"""The verb that learns from few labels: probe."""

import argparse

from mvit_video.cli.common import (
    add_allow_missing,
    add_checkpoint,
    add_config,
    add_device,
    add_output,
    add_precision,
    at_least_one,
    overrides,
    print_error,
    print_rows,
    say,
    whole_number,
)


def probe(arguments: argparse.Namespace) -> int:
    """Learn classes from few videos without training the network: classifiers of its features, on any CPU.

    Extracts the features of data.train and data.test (or data.val) once, and prints the accuracy of nearest neighbours,
    logistic regression and, with --attentive, an attentive probe, for 1, 2, 4 ... and all training videos of each class.
    Writes results.json, and model.safetensors with the logistic regression as its head, for predict and all other verbs.
    A video that cannot be decoded costs one line, and the exit code is 1.
    """
    from mvit_video import api
    from mvit_video.config.load import load_config
    from mvit_video.data.lists.failures import summary_lines

    result = api.probe(
        load_config(arguments.config, overrides(arguments)),
        arguments.checkpoint,
        arguments.output,
        attentive=arguments.attentive,
        shots=arguments.shots,
        draws=arguments.draws,
        seed=arguments.seed,
        protocol=arguments.protocol,
        features=arguments.features,
        precision=arguments.precision,
        device=arguments.device,
        overwrite=arguments.overwrite,
        say=say,
    )
    for line in summary_lines(result.undecodable):
        print_error(line)
    _print(result)
    say(f"{result.weights}: logistic regression of all {result.content['train']['videos']} training videos as its head")
    return 1 if result.undecodable else 0


def _print(result) -> None:
    """A row for each classifier, a column for each number of videos."""
    train, test, protocol = (result.content[name] for name in ("train", "test", "protocol"))
    shots = list(dict.fromkeys(one.shots for one in result.shots))
    titles = [f"all {train['videos']}" if count is None else f"{count} per class" for count in shots]
    cells: dict[str, list[str]] = {}
    for one in result.shots:
        low, high = one.interval_95
        cells.setdefault(one.method, []).append(f"{one.top1:.1f} ({low:.1f} to {high:.1f})")
    title = f"top-1 of {test['videos']} test videos, {protocol} views, with 95 % intervals; training videos:"
    rows = [(method, *values) for method, values in cells.items()]
    print_rows(title, ("classifier", *titles), rows, tuple(range(1, len(titles) + 1)))


def _add_probe(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_checkpoint(parser)
    add_output(parser, "results.json, model.safetensors and features/")
    parser.add_argument(
        "--attentive",
        action="store_true",
        help="also an attentive probe of the last stage's maps: a second pass over the videos, and more room on the disk",
    )
    parser.add_argument(
        "--shots",
        type=at_least_one,
        nargs="+",
        default=[],
        metavar="N",
        help="numbers of training videos of each class (default: 1, 2, 4 ... as far as each class has more)",
    )
    parser.add_argument(
        "--draws", type=at_least_one, default=10, metavar="N", help="random choices of these videos (default: 10)"
    )
    parser.add_argument("--seed", type=whole_number, default=0, help="of the random choices (default: 0)")
    parser.add_argument("--protocol", metavar="NxM", help="clips × crops per video (default: evaluation.protocol)")
    parser.add_argument(
        "--features", metavar="DIR", help="where features are kept for the next call (default: features/ in --output)"
    )
    add_allow_missing(parser)
    add_precision(parser)
    add_device(parser)


VERBS = ((probe, _add_probe),)
