"""Verbs about networks and checkpoints: models, convert."""

import argparse

from mvit_video.cli.common import print_rows, say


def models(arguments: argparse.Namespace) -> int:
    """List the networks that `model.name` takes, and the public checkpoints that `model.weights` takes."""
    from mvit_video.model.weights import zoo

    if arguments.markdown:
        print(zoo.model_zoo_page(), end="")
        return 0
    print_rows("networks", zoo.MODEL_COLUMNS, zoo.model_rows(), (1, 2))
    print_rows("baselines from other packages", zoo.BASELINE_COLUMNS, zoo.baseline_rows(), (1,))
    if rows := list(zoo.plugin_rows()):
        print_rows("networks from plugins", zoo.PLUGIN_COLUMNS, rows, (1,))
    print_rows("public checkpoints (accuracies as published)", zoo.ZOO_COLUMNS, zoo.zoo_rows(), (1, 2, 3))
    return 0


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", action="store_true", help="the page MODEL_ZOO.md instead of tables")


def convert(arguments: argparse.Namespace) -> int:
    """Convert a checkpoint from any known format to another: ours, PySlowFast's or torchvision's.

    A native checkpoint records its input. If the source does not, the input is assumed and printed; data.KEY=VALUE
    (data.num_frames, data.sampling, data.mean ...) and evaluation.protocol=NxM set it.
    """
    from mvit_video.data.lists.class_names import PUBLISHED, published_classes, read_classes
    from mvit_video.model.weights.convert import convert
    from mvit_video.model.weights.zoo import input_text

    given = arguments.classes
    classes = published_classes(given) if given in PUBLISHED else read_classes(given) if given else None
    done = convert(
        arguments.source,
        arguments.to,
        arguments.output,
        arguments.model,
        classes,
        arguments.overwrite,
        arguments.overrides,
    )
    say(f"{done.report.summary()}; written to {arguments.output}")
    if done.card is not None:
        how = "assumed input, which data.KEY=VALUE changes" if done.assumed else "input"
        say(f"{how}: {input_text(done.card.preprocessing)}; views: {done.card.protocol}")
    return 0


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a file, an http(s) address, or a name that `models` lists")
    parser.add_argument(
        "--to",
        required=True,
        metavar="FORMAT",
        help="native, pyslowfast, torchvision, or a format registered by a plugin",
    )
    parser.add_argument("--output", required=True, metavar="FILE")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output file")
    parser.add_argument("--model", metavar="NAME", help="the network, if it cannot be recognised by its shapes")
    parser.add_argument(
        "--classes", metavar="FILE", help="a file of class names, one per line, or kinetics400 or ssv2; for --to native"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="input of the network, for --to native")


VERBS = ((models, _add_models), (convert, _add_convert))
