"""Verbs about networks and checkpoints: models, convert, benchmark."""

import argparse

from rich.console import Console

from mvit_video.cli.common import add_device, at_least_one, print_error, print_rows, say


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


def benchmark(arguments: argparse.Namespace) -> int:
    """Measure a network: parameters, multiply-adds, clips per second, peak memory; with --against two of them in turn."""
    from mvit_video.benchmark.networks import Benchmark, benchmark_tables, run_benchmark
    from mvit_video.inference.predictor import choose_device
    from mvit_video.paths import output_file, write_json

    output = output_file(arguments.json) if arguments.json else None
    names = ("model", "against", "train", "compile", "dtype", "batch", "repeats")
    what = {name: getattr(arguments, name) for name in names}
    plan = Benchmark.of_words(arguments.overrides, device=choose_device(arguments.device), **what)
    result = run_benchmark(plan)
    for missing in result["failed"]:
        print_error(f"{missing['name']} is skipped: {missing['reason']}")
    if not result["networks"]:
        return 1
    Console(markup=False, highlight=False).print(*benchmark_tables(result), sep="\n")
    if output:
        write_json(output, result)
    return 0


def _add_benchmark(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="NAME", help="a name that `mvit-video models` prints")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="model.arguments.NAME of the model, such as model.arguments.token_mixing=hwin; data.num_frames and "
        "data.crop_size of the clips",
    )
    parser.add_argument(
        "--against",
        metavar="NAME",
        help="also measure this network, in alternation, and print ratios; reference/NAME is the plain formula",
    )
    parser.add_argument("--train", action="store_true", help="also measure forward and backward passes")
    parser.add_argument("--compile", action="store_true", help="also measure the model with torch.compile")
    parser.add_argument("--dtype", default="fp32", help="fp32 (default), bf16 or fp16, by autocast")
    parser.add_argument("--batch", type=at_least_one, default=1, help="clips per step (default: 1)")
    parser.add_argument("--repeats", type=at_least_one, default=10, help="measured steps per network (default: 10)")
    parser.add_argument("--json", metavar="FILE", help="write all results, including raw times, to this file")
    add_device(parser)


VERBS = ((models, _add_models), (convert, _add_convert), (benchmark, _add_benchmark))
