"""The console script `mvit-video`: one function per verb, each a table of contents."""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mvit_video.errors import ConfigError, DecodeError, MvitVideoError
from mvit_video.version import __version__


def train(arguments: argparse.Namespace) -> int:
    """Train a network; leaves model.safetensors, config.yaml, metrics.jsonl and checkpoints/ in --output."""
    from mvit_video.config.load import load_config
    from mvit_video.engine.run import train_run
    from mvit_video.evaluation.evaluate import validator
    from mvit_video.inference.predictor import choose_device

    config = load_config(arguments.config, arguments.overrides)
    device = choose_device(arguments.device)
    weights = train_run(
        config,
        arguments.output,
        device,
        lambda videos: validator(videos, config, device),
        _say,
        resume=arguments.resume == "auto",
        overwrite=arguments.overwrite,
    )
    _say(f"done: the weights are in {weights}")
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """Score every video of data.test (or data.val) over several views; writes results.json to --output."""
    from mvit_video.config.load import load_config
    from mvit_video.data.annotations import read_videos
    from mvit_video.evaluation.evaluate import Protocol, evaluate
    from mvit_video.inference.predictor import choose_device
    from mvit_video.model.checkpoints import load_checkpoint
    from mvit_video.paths import fresh_folder, write_json

    config = load_config(arguments.config, arguments.overrides)
    device = choose_device(arguments.device)
    protocol = Protocol.parse(arguments.protocol or config.evaluation.protocol)
    model, card = load_checkpoint(arguments.checkpoint)
    source = config.data.test or config.data.val
    if source is None:
        raise ConfigError("neither data.test nor data.val is set: name the list of videos to evaluate on")
    videos = read_videos(source, config.data.root, card.classes)
    output = fresh_folder(arguments.output, ("results.json",), arguments.overwrite)
    _, result = evaluate(model.to(device), card, videos, config, protocol, device)
    write_json(output / "results.json", result)
    for bad in result["undecodable"]:
        _complain(f"{bad['reason']} ({bad['where']}): counted as wrong")
    _say(
        f"top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} % of {result['num_videos']} videos, "
        f"{result['protocol']} views each; details in {output / 'results.json'}"
    )
    return 0


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
                _complain(str(reason))
            continue
        if arguments.json:
            print(json.dumps(prediction.as_dict(), ensure_ascii=False), flush=True)
        else:
            _print_table(prediction)
    return 1 if failed else 0


def demo_data(arguments: argparse.Namespace) -> int:
    """Write the demonstration dataset: H.264 files, train.csv, val.csv, classes.txt, and a longer video with its segments."""
    from mvit_video.data.synthetic import write_dataset

    folder = write_dataset(
        arguments.output, arguments.train, arguments.val, arguments.seed, arguments.workers, arguments.overwrite
    )
    _say(f"{arguments.train} training and {arguments.val} validation videos are in {folder}")
    return 0


def demo(arguments: argparse.Namespace) -> int:
    """The whole way on the demonstration dataset: data, training, evaluation, prediction, timeline, report."""
    from mvit_video.demo import run_demo
    from mvit_video.inference.predictor import choose_device

    report = run_demo(arguments.config, arguments.output, arguments.overwrite, choose_device(arguments.device), _say)
    _say(f"done: open {report} in a browser")
    return 0


def models(arguments: argparse.Namespace) -> int:
    """List the networks that `model.name` takes, and the public checkpoints that `model.weights` takes."""
    from mvit_video.model import zoo

    if arguments.markdown:
        print(zoo.model_zoo_page(), end="")
        return 0
    _print_rows("networks", zoo.MODEL_COLUMNS, zoo.model_rows(), (1, 2))
    _print_rows("baselines of other packages, for comparison", zoo.BASELINE_COLUMNS, zoo.baseline_rows(), (1,))
    _print_rows("public checkpoints (accuracies as published)", zoo.ZOO_COLUMNS, zoo.zoo_rows(), (1, 2, 3))
    return 0


def convert(arguments: argparse.Namespace) -> int:
    """Write a checkpoint of any known format in another: ours, PySlowFast's or torchvision's."""
    from mvit_video.data.annotations import read_classes
    from mvit_video.model.convert import convert

    classes = read_classes(arguments.classes) if arguments.classes else None
    report = convert(arguments.source, arguments.to, arguments.output, arguments.model, classes, arguments.overwrite)
    _say(f"{report.summary()}; written to {arguments.output}")
    return 0


def benchmark(arguments: argparse.Namespace) -> int:
    """Measure a network: parameters, multiply-adds, clips per second, peak memory; with --against two of them in turn."""
    from mvit_video.inference.predictor import choose_device
    from mvit_video.model.benchmark import Plan, benchmark_tables, run_benchmark
    from mvit_video.paths import output_file, write_json

    output = output_file(arguments.json) if arguments.json else None
    names = ("model", "against", "train", "compile", "dtype", "batch", "repeats")
    plan = Plan(device=choose_device(arguments.device), **{name: getattr(arguments, name) for name in names})
    result = run_benchmark(plan)
    for missing in result["failed"]:
        _complain(f"{missing['name']} is left out: {missing['reason']}")
    if not result["networks"]:
        return 1
    Console(markup=False, highlight=False).print(*benchmark_tables(result), sep="\n")
    if output:
        write_json(output, result)
    return 0


def settings(arguments: argparse.Namespace) -> int:
    """List every setting of a config file with its default and what it does."""
    from mvit_video.config.load import describe_settings

    for key, default, sentence in describe_settings():
        print(f"{key} = {default}\n    {sentence}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mvit-video", description="Video action recognition around MViTv2.")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_train(_verb(verbs, train))
    _add_evaluate(_verb(verbs, evaluate))
    _add_predict(_verb(verbs, predict))
    _add_demo_data(_verb(verbs, demo_data))
    _add_demo(_verb(verbs, demo))
    _add_models(_verb(verbs, models))
    _add_convert(_verb(verbs, convert))
    _add_benchmark(_verb(verbs, benchmark))
    _verb(verbs, settings)
    return parser


def _verb(verbs, function) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        function.__name__.replace("_", "-"), help=function.__doc__.splitlines()[0], description=function.__doc__
    )
    parser.set_defaults(run=function)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, such as configs/demo/motion.yaml")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that win over the file's")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda, cuda:1 ...")


def _add_output(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--output", required=True, metavar="DIR", help=f"folder for {what}")
    parser.add_argument("--overwrite", action="store_true", help="delete what an earlier call left there")


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    _add_output(parser, "the run")
    parser.add_argument(
        "--resume", choices=("auto",), help="go on from the newest saved state in --output, if there is one"
    )
    _add_device(parser)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument(
        "--checkpoint", required=True, metavar="FILE", help="a model.safetensors that train has written"
    )
    parser.add_argument(
        "--protocol", metavar="NxM", help="clips × crops per video, such as 5x1 (default: the config's)"
    )
    _add_output(parser, "results.json")
    _add_device(parser)


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help="video files, or folders of them")
    parser.add_argument(
        "--checkpoint", required=True, metavar="FILE", help="a model.safetensors that train has written"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of tables")
    parser.add_argument("--top", type=_at_least_one, default=5, help="how many labels (default: 5)")
    parser.add_argument("--protocol", metavar="NxM", help="clips × crops per video (default: the checkpoint's)")
    _add_device(parser)


def _add_demo_data(parser: argparse.ArgumentParser) -> None:
    _add_output(parser, "the dataset")
    parser.add_argument("--train", type=_at_least_one, default=768, help="training videos (default: 768)")
    parser.add_argument("--val", type=_at_least_one, default=160, help="validation videos (default: 160)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=_at_least_one, default=2, help="processes that draw and encode (default: 2)")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="configs/demo/motion.yaml")
    _add_output(parser, "the data, the run and the report")
    _add_device(parser)


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", action="store_true", help="the page MODEL_ZOO.md instead of tables")


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a file, an http(s) address, or a name that `models` lists")
    parser.add_argument("--to", required=True, choices=("native", "pyslowfast", "torchvision"))
    parser.add_argument("--output", required=True, metavar="FILE")
    parser.add_argument("--overwrite", action="store_true", help="replace the output file if there is one")
    parser.add_argument("--model", metavar="NAME", help="the network, where the shapes do not tell")
    parser.add_argument("--classes", metavar="FILE", help="class names, one a line, for --to native")


def _add_benchmark(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="NAME", help="a name that `mvit-video models` prints")
    parser.add_argument("--against", metavar="NAME", help="measure this one in turn with the model, and print ratios")
    parser.add_argument("--train", action="store_true", help="measure forward and backward passes as well")
    parser.add_argument("--compile", action="store_true", help="measure the model through torch.compile as well")
    parser.add_argument("--dtype", default="fp32", help="fp32 (default), bf16 or fp16, by autocast")
    parser.add_argument("--batch", type=_at_least_one, default=1, help="clips in a step (default: 1)")
    parser.add_argument("--repeats", type=_at_least_one, default=10, help="measured steps of each (default: 10)")
    parser.add_argument("--json", metavar="FILE", help="write everything, raw times included, to this file")
    _add_device(parser)


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1")
    return int(text)


def _print_table(prediction) -> None:
    table = Table(title=prediction.path, title_justify="left", min_width=min(len(prediction.path), 60))
    table.add_column("label")
    table.add_column("score", justify="right")
    for label, score in prediction.predictions:
        table.add_row(label, f"{score:.3f}")
    Console(markup=False, highlight=False).print(table)


def _print_rows(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int]) -> None:
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place in numbers else "left", no_wrap=place == 0, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False).print(table)


def _say(text: str) -> None:
    Console(stderr=True, markup=False, highlight=False, soft_wrap=True).print(text)


def _complain(text: str) -> None:
    print(f"error: {text}", file=sys.stderr, flush=True)


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    """KEY=VALUE words may stand anywhere, also behind options, where argparse alone does not take them."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(words)
    stray = [word for word in rest if word.startswith("-") or "=" not in word or not hasattr(arguments, "overrides")]
    if stray:
        parser.error(f"unrecognized arguments: {' '.join(stray)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    if getattr(arguments, "resume", None) and arguments.overwrite:
        parser.error("--resume and --overwrite exclude each other")
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    """Run one verb. Errors that a user can cause are one line on stderr and exit code 1; usage errors are 2."""
    arguments = _parse(words)
    try:
        return arguments.run(arguments)
    except (MvitVideoError, OSError) as reason:
        if arguments.debug:
            raise
        if isinstance(reason, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        text = str(reason) if isinstance(reason, MvitVideoError) else _os_error(reason)
        _complain(" ".join(text.split()))
        return 1
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130


def _os_error(reason: OSError) -> str:
    where = f"{Path(os.fsdecode(reason.filename))}: " if reason.filename else ""
    return f"{where}{reason.strerror or reason}"


if __name__ == "__main__":
    sys.exit(main())
