"""Who sees whom, side by side: token mixers in one MViT, their cost, and what networks with them learn.

    python -m mvit_video.benchmark.mixers docs/mixers.json --costs --time 16x224
    python -m mvit_video.benchmark.mixers docs/mixers.json data.root=demo_output/data --accuracy demo --runs runs/mixers
    python -m mvit_video.benchmark.mixers docs/mixers.json --page docs/mixers.md

The first file keeps all numbers; each command adds its own to it, and leaves out trainings whose numbers are there with the same settings.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import ceil
from operator import mul
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mvit_video.benchmark.measure import Subject, count_parameters, new_network, peak_memory
from mvit_video.benchmark.mixers_page import mixers_page
from mvit_video.benchmark.networks import cpu_name
from mvit_video.config.load import load_config, with_overrides
from mvit_video.engine.resolve import resolve
from mvit_video.engine.run import train_run
from mvit_video.engine.run_folder import WEIGHTS
from mvit_video.errors import ConfigError, MvitVideoError
from mvit_video.evaluation.evaluate import evaluation_task, validator
from mvit_video.model.mvit import MViTArguments
from mvit_video.model.partition import largest_divisor
from mvit_video.model.registry import model_arguments
from mvit_video.paths import write_json, write_whole
from mvit_video.printable import printable

Say = Callable[[str], None]
MIXERS = ("all", "all, lepe", "hwin", "window", "window, shifted", "window, grid", "stripes")
DATASETS = {"demo": "configs/demo/motion.yaml", "utd": "configs/custom/utd_mhad_depth.yaml"}
ORDERS = 2  # of shuffled frames
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Comparison:
    """Whose costs are compared: `network` made for clips of `side` pixels, and given clips of `sizes` (frames, pixels)."""

    network: str
    side: int
    sizes: tuple[tuple[int, int], ...]

    def arguments(self, mixer: str, frames: int) -> dict[str, Any]:
        """Of the network that sees clips of so many frames: windows of hwin are as large as its grid at `side` pixels."""
        return mixer_arguments(mixer, self.network) | {"num_frames": frames, "crop_size": self.side}


S = Comparison("mvitv2_s_16x4", 224, ((16, 224), (32, 224), (40, 312), (32, 448)))


def mixer_arguments(mixer: str, network: str) -> dict[str, Any]:
    """The arguments that make `network` with a mixer: the same widths and depths.

    A window holds as many tokens as the pooled keys of the whole grid are, and its keys are not pooled, so that every query
    sees as many keys with both at the size that the network is named for. Stripes are about as large; they need two heads.
    """
    given = MViTArguments(**model_arguments(network))
    (frames, *side), stride = given.grid, given.kv_stride
    rows, columns = (max(length // step, 1) for length, step in zip(side, stride[1:], strict=True))
    window = f"{frames}x{rows}x{columns}"
    unpooled: dict[str, Any] = {"kv_stride": [1, 1, 1]}
    if mixer == "all":
        return {}
    if mixer == "all, lepe":
        return {"positions": "lepe"}
    if mixer == "hwin":
        return {"token_mixing": "hwin"}
    if mixer == "stripes":
        steps = accumulate((stride[1] for stride in given.q_strides), mul)
        widths = [side[0] // step for step in steps]
        stripes = [f"stripes {frames}x{largest_divisor(w, ceil(rows * columns / w))}" for w in widths]
        return unpooled | {"token_mixing": stripes, "num_heads": 2 * given.num_heads}
    return unpooled | {"token_mixing": ", ".join(f"{word} {window}" for word in mixer.split(", "))}


def attention_multiply_adds(name: str, arguments: dict[str, Any], size: Sequence[int]) -> float:
    """Multiply-adds, in 1e9, of the products of attention for one clip of `size`: q·kᵀ, the terms of positions and p·v.

    Counted by PyTorch's counter on tensors without data, with the plain formula.
    """
    with torch.device("meta"):
        model, clip = new_network(f"reference/{name}", arguments).eval(), torch.zeros(1, 3, *size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(clip)
    counts = counter.get_flop_counts()["Global"]
    products = [count for operator, count in counts.items() if "bmm" in str(operator) or "attention" in str(operator)]
    return sum(products) / 2e9


def add_costs(record: dict[str, Any], options: argparse.Namespace, say: Say, of: Comparison = S) -> None:
    """Put parameters and multiply-adds of all sizes, and time and memory of those to measure, into the record."""
    timed = [parsed_size(text) for text in options.time]
    for mixer in options.mixers:
        found = record.setdefault("mixers", {}).setdefault(mixer, {})
        with torch.device("meta"):
            found["parameters"] = count_parameters(new_network(of.network, of.arguments(mixer, of.sizes[0][0])))
        found["attention"] = {
            f"{frames}x{side}": attention_multiply_adds(of.network, of.arguments(mixer, frames), (frames, side, side))
            for frames, side in of.sizes
        }
        say(f"{mixer}: {found['parameters']:,} parameters, attention {found['attention']}")
    for frames, side in timed:
        measured = _measured(of, (frames, side), options, say)
        for mixer, figures in measured.items():
            record["mixers"][mixer].setdefault("measured", {})[f"{frames}x{side}"] = figures
        machine = {"cpu": cpu_name(), "torch": str(torch.__version__), "load_average": round(os.getloadavg()[1], 1)}
        record.setdefault("machines", {})[f"{frames}x{side}"] = machine


def _measured(of: Comparison, size: tuple[int, int], options: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Processor time of a forward pass of one clip, in turn in this process, and the peak memory of its first, in a fresh one."""
    frames, side = size
    torch.set_num_threads(1)
    subjects = {
        mixer: Subject(of.network, 1, "fp32", CPU, of.arguments(mixer, frames), (frames, side, side))
        for mixer in options.mixers
    }
    found: dict[str, Any] = {mixer: {"seconds": []} for mixer in subjects}
    for turn in range(options.repeats + 1):
        for mixer, subject in subjects.items():
            subject.prepare("inference")
            start = time.process_time()
            subject.step("inference")
            if turn:  # the first warms up
                found[mixer]["seconds"].append(time.process_time() - start)
    for mixer, subject in subjects.items():
        found[mixer]["peak_bytes"] = peak_memory(subject, "inference")
        say(f"{mixer}, {frames}x{side}: {found[mixer]}")
    return found


def add_accuracies(
    record: dict[str, Any], dataset: str, options: argparse.Namespace, save: Callable[[], None], say: Say
) -> None:
    """Train a network for each mixer and seed by one recipe, and put its accuracies, frames in order and shuffled, into the record."""
    place = record.setdefault("accuracy", {}).setdefault(dataset, {})
    recipe = load_config(DATASETS[dataset], options.overrides)
    settings = [word for word in options.overrides if not word.startswith("data.root=")]
    for seed in options.seeds:
        for mixer in options.mixers:
            done = place.setdefault(mixer, {})
            if done.get(str(seed), {}).get("settings") == settings:
                continue
            arguments = mixer_arguments(mixer, recipe.model.name)
            folder = Path(options.runs) / dataset / mixer.replace(", ", "_") / str(seed)
            config = with_overrides(recipe, {"model.arguments": arguments, "train.seed": seed})
            run = resolve(config, folder, CPU, say, overwrite=True)
            train_run(run, partial(validator, config=config, device=CPU), say)
            weights = str(folder / WEIGHTS)
            orders = ["in-order", *(f"shuffled:{order}" for order in range(ORDERS))]
            top1 = [evaluation_task(config, weights, CPU, frames=order).run().accuracies["top1"] for order in orders]
            done[str(seed)] = {
                "top1": top1[0],
                "shuffled": top1[1:],
                "epochs": run.config.train.epochs,
                "settings": settings,
                "machine": {"cpu": cpu_name(), "torch": str(torch.__version__)},
            }
            say(f"{mixer}, seed {seed}: {done[str(seed)]}")
            save()


def parsed_size(text: str) -> tuple[int, int]:
    """Frames and pixels of FRAMESxPIXELS; ConfigError for another text."""
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"size '{text}': write frames and pixels, as in 16x224")
    return int(parts[0]), int(parts[1])


def main(words: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mvit_video.benchmark.mixers", description="token mixers compared")
    parser.add_argument("record", metavar="FILE", help="JSON that keeps the numbers, such as docs/mixers.json")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="with --accuracy: settings of the recipe, such as data.root=DIR",
    )
    parser.add_argument("--costs", action="store_true", help="count parameters and multiply-adds")
    parser.add_argument(
        "--time", nargs="*", default=[], metavar="TxS", help="with --costs: measure clips such as 16x224"
    )
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="measured passes of each (default: 3)")
    parser.add_argument(
        "--accuracy", choices=tuple(DATASETS), help="train and evaluate on the demonstration or UTD-MHAD"
    )
    parser.add_argument(
        "--runs", metavar="DIR", default="runs/mixers", help="folder of the runs (default: runs/mixers)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    parser.add_argument(
        "--mixers", nargs="+", default=MIXERS, choices=MIXERS, metavar="NAME", help="default: all of them"
    )
    parser.add_argument("--page", metavar="FILE", help="write the page, such as docs/mixers.md")
    options = parser.parse_args(None if words is None else list(words))
    file = Path(options.record)
    record = json.loads(file.read_text()) if file.exists() else {}

    def save() -> None:
        write_json(file, record)

    def say(text: str) -> None:
        print(printable(text, keep="\n"), file=sys.stderr)

    try:
        if options.costs:
            add_costs(record, options, say)
            save()
        if options.accuracy:
            add_accuracies(record, options.accuracy, options, save, say)
        if options.page:
            write_whole(options.page, mixers_page(record))
    except MvitVideoError as reason:
        say(f"error: {reason}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
