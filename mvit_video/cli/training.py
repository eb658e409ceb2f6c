"""Verbs for training: train, pretrain, configs, settings, curves, demo, convert-config."""

import argparse
from typing import TYPE_CHECKING

from mvit_video.cli.common import (
    add_allow_missing,
    add_config,
    add_device,
    add_output,
    at_least_one,
    overrides,
    print_rows,
    say,
    show,
    whole_number,
)
from mvit_video.printable import counted

if TYPE_CHECKING:
    from mvit_video.config.schema import Config


def train(arguments: argparse.Namespace) -> int:
    """Train a network; writes model.safetensors, config.yaml, metrics.jsonl and checkpoints/ to --output.

    Under torchrun the processes share each step's clips. SIGTERM, SIGUSR1 or Ctrl-C end the run after the step in hand,
    with its state saved and exit code 75.
    """
    from mvit_video.engine.distributed import process_group

    with process_group():
        return _train(arguments)


def pretrain(arguments: argparse.Namespace) -> int:
    """Pre-train a network without labels; the weights start a training with `train CONFIG model.weights=DIR/model.safetensors`.

    Predicts histograms of oriented gradients of hidden parts of clips (MaskFeat). data.train is a list, whose labels are not
    used, or any folder of videos. Writes, resumes and ends as train does.
    """
    from mvit_video.engine.distributed import process_group

    with process_group():
        return _train(arguments, masked=True)


def _train(arguments: argparse.Namespace, masked: bool = False) -> int:
    from mvit_video import api
    from mvit_video.config.load import load_config
    from mvit_video.engine.distributed import is_rank_zero

    implied = [] if arguments.seed is None else [f"train.seed={arguments.seed}"]
    implied += ["train.objective=masked"] if masked else []
    config = load_config(arguments.config, [*overrides(arguments), *implied])
    if arguments.dry_run:
        show(_plan(config, arguments))
        return 0
    resume, overwrite = arguments.resume == "auto", arguments.overwrite
    run = api.pretrain if masked else api.train
    result = run(config, arguments.output, device=arguments.device, resume=resume, overwrite=overwrite, say=say)
    if is_rank_zero():
        say(f"done: weights saved to {result.weights}")
    return 0


def _plan(config: "Config", arguments: argparse.Namespace) -> str:
    from mvit_video.api import check_evaluation, check_labels_objective
    from mvit_video.engine.dry_run import dry_run
    from mvit_video.inference.predictor import choose_device
    from mvit_video.model.weights.auto import resolve_model_name

    if arguments.verb == "train":
        check_labels_objective(config)
    config = resolve_model_name(config)
    check_evaluation(config)
    return dry_run(config, choose_device(arguments.device), arguments.num_videos, arguments.num_classes)


class _DryRun(argparse.Action):
    """--dry-run, which makes --output optional."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        namespace.dry_run = True
        for action in parser._actions:
            action.required = action.required and action.dest != "output"


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_pretrain(parser)
    parser.add_argument(
        "--num-classes", type=at_least_one, metavar="N", help="for --dry-run without a list: number of classes"
    )


def _add_pretrain(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(num_classes=None)
    add_config(parser)
    add_output(parser, "the run")
    parser.add_argument("--seed", type=whole_number, metavar="N", help="the same as train.seed=N")
    parser.add_argument(
        "--dry-run", action=_DryRun, nargs=0, default=False, help="print the plan of the run and exit; needs no data"
    )
    parser.add_argument(
        "--num-videos", type=at_least_one, metavar="N", help="for --dry-run without a list: number of training videos"
    )
    parser.add_argument(
        "--resume", choices=("auto",), help="continue from the newest saved state in --output, if there is one"
    )
    add_allow_missing(parser)
    add_device(parser)


def settings(arguments: argparse.Namespace) -> int:
    """List every setting of a config file with its default and what it does."""
    from mvit_video.config.load import describe_settings

    for key, default, sentence in describe_settings():
        print(f"{key} = {default}\n    {sentence}")
    return 0


def configs(arguments: argparse.Namespace) -> int:
    """List the configurations that come with the package; a CONFIG argument takes their names."""
    from mvit_video.config.shipped import configs_folder, describe, shipped_configs

    rows = [(name, describe(file)) for name, file in shipped_configs().items()]
    print_rows(f"configurations in {configs_folder()}", ("name", "for"), rows, ())
    return 0


def curves(arguments: argparse.Namespace) -> int:
    """Plot training loss and validation accuracy of several runs."""
    from mvit_video.engine.hooks.curves import draw_runs

    draw_runs(arguments.runs, arguments.output, arguments.overwrite)
    say(f"{counted(len(arguments.runs), 'run')} plotted to {arguments.output}")
    return 0


def _add_curves(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a folder of train; NAME_0, NAME_1 ... share a colour, as seeds do"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="PNG file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output file")


def demo(arguments: argparse.Namespace) -> int:
    """Run everything on the demonstration dataset: data, training, evaluation, prediction, timeline, report."""
    from mvit_video.demo import run_demo
    from mvit_video.inference.predictor import choose_device
    from mvit_video.locks import alone_in

    device = choose_device(arguments.device)
    with alone_in(arguments.output, say):
        report = run_demo(arguments.config, arguments.output, arguments.overwrite, device, say)
    say(f"done: open {report} in a browser")
    return 0


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", nargs="?", default="demo/motion", help="demo/motion if left out")
    add_output(parser, "the data, the run and the report")
    add_device(parser)


def convert_config(arguments: argparse.Namespace) -> int:
    """Convert a PySlowFast configuration of an MViT to ours, and report what became of each key."""
    from mvit_video.config.slowfast import convert_slowfast
    from mvit_video.paths import output_file, write_whole

    output = output_file(arguments.output, arguments.overwrite)
    conversion = convert_slowfast(arguments.source)
    write_whole(output, conversion.to_yaml())
    show(conversion.report())
    say(f"written to {output}")
    return 0


def _add_convert_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SLOWFAST_YAML", help="a file, such as PySlowFast's configs/Kinetics/MVITv2_S_16x4.yaml"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="our YAML file")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output file")


VERBS = (
    (train, _add_train),
    (pretrain, _add_pretrain),
    (curves, _add_curves),
    (convert_config, _add_convert_config),
    (configs, lambda parser: None),
    (settings, lambda parser: None),
    (demo, _add_demo),
)
