"""The verb that measures networks, and what runs them: benchmark."""

import argparse
from typing import Any

from rich.console import Console

from mvit_video.cli.common import add_device, at_least_one, print_error
from mvit_video.errors import ConfigError

ONLY_NETWORKS: dict[str, Any] = {
    "against": None,
    "train": False,
    "compile": False,
    "dtype": "fp32",
    "overrides": [],
}  # and their defaults
ONLY_RUNNERS: dict[str, Any] = {"checkpoint": None, "onnx": [], "videos": []}


def benchmark(arguments: argparse.Namespace) -> int:
    """Measure a network: parameters, multiply-adds, clips per second, peak memory; with --against two of them in turn.

    With --runner, what runs a trained network: torch a checkpoint, onnxruntime and OpenVINO the ONNX file exported from it, in
    turn on the CPU, with time, memory, and agreement with torch in fp32.
    """
    from mvit_video.paths import output_file, write_json

    output = output_file(arguments.json) if arguments.json else None
    result, tables = _runners(arguments) if arguments.runner else _networks(arguments)
    for missing in result["failed"]:
        print_error(f"{missing['name']} is skipped: {missing['reason']}")
    if not tables:
        return 1
    Console(markup=False, highlight=False).print(*tables, sep="\n")
    if output:
        write_json(output, result)
    return 0


def _networks(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[Any]]:
    """The result and what to print of it, nothing where nothing could be measured."""
    from mvit_video.benchmark.networks import Benchmark, benchmark_tables, run_benchmark
    from mvit_video.inference.predictor import choose_device

    _refuse(arguments, ONLY_RUNNERS, "is for --runner: add --runner torch, or drop it")
    names = ("model", "against", "train", "compile", "graphs", "dtype", "batch", "repeats")
    what = {name: getattr(arguments, name) for name in names}
    result = run_benchmark(Benchmark.of_words(arguments.overrides, device=choose_device(arguments.device), **what))
    return result, benchmark_tables(result) if result["networks"] else []


def _runners(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[Any]]:
    from mvit_video.benchmark.runners import RunnerBenchmark, run_runner_benchmark, runner_tables

    _refuse(arguments, ONLY_NETWORKS, "does not go with --runner: drop it")
    if arguments.device not in ("auto", "cpu"):
        raise ConfigError(f"--device {arguments.device}: runners are measured on the CPU: drop it")
    if arguments.checkpoint is None:
        raise ConfigError("--runner needs --checkpoint FILE: the network whose answers are compared")
    result = run_runner_benchmark(
        RunnerBenchmark(
            tuple(word.strip() for word in arguments.runner.split(",")),
            arguments.checkpoint,
            tuple(arguments.onnx),
            tuple(arguments.videos),
            arguments.batch,
            arguments.repeats,
        )
    )
    return result, runner_tables(result) if result["runners"] else []


def _refuse(arguments: argparse.Namespace, defaults: dict[str, Any], why: str) -> None:
    for name, usual in defaults.items():
        if (given := getattr(arguments, name)) != usual:
            raise ConfigError(f"{given[0] if name == 'overrides' else f'--{name}'} {why}")


def _add_benchmark(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", metavar="NAME", help="a name that `mvit-video models` prints, with random weights")
    what.add_argument(
        "--runner",
        metavar="NAME,...",
        help="what runs --checkpoint: torch, torch:bf16, onnxruntime, openvino, openvino:bf16, in turn",
    )
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
    parser.add_argument(
        "--graphs",
        action="store_true",
        help="also measure inference by CUDA graphs, as predict and evaluate run it on GPUs",
    )
    parser.add_argument("--dtype", default="fp32", help="fp32 (default), bf16 or fp16, by autocast")
    parser.add_argument("--batch", type=at_least_one, default=1, help="clips per step (default: 1)")
    parser.add_argument("--repeats", type=at_least_one, default=10, help="measured steps per network (default: 10)")
    parser.add_argument("--json", metavar="FILE", help="write all results, including raw times, to this file")
    add_device(parser)
    only = parser.add_argument_group("with --runner")
    only.add_argument("--checkpoint", metavar="FILE", help="the network, and what its answers are compared with")
    only.add_argument(
        "--onnx",
        action="append",
        default=[],
        metavar="FILE",
        help="an ONNX file exported from it, for onnxruntime and openvino; may be repeated",
    )
    only.add_argument(
        "--videos",
        nargs="+",
        default=[],
        metavar="VIDEO",
        help="files or folders whose middle clips are compared (default: 8 random clips)",
    )


VERBS = ((benchmark, _add_benchmark),)
