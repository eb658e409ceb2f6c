"""What runs a trained network fastest on this CPU, and how exactly: torch, onnxruntime and OpenVINO in turn in one process.

A round is a run of each. Scores are compared with those of torch in fp32, on the middle clip of each video or random clips.
"""

# B clips, T/H/W frames and pixels, K classes

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.table import Table

from mvit_video.benchmark.networks import (
    MIB,
    WARM_UP,
    describe_machine,
    load_average,
    load_line,
    machine_line,
    new_table,
    speed_ratio,
)
from mvit_video.benchmark.resident import is_known, measured_apart
from mvit_video.config.schema import InputSettings
from mvit_video.data.dataset import read_views
from mvit_video.data.video.guard import Guard
from mvit_video.errors import CheckpointError, ConfigError
from mvit_video.inference.export import example_clips
from mvit_video.inference.predictor import expand_paths, open_video
from mvit_video.inference.runners import RUNNERS, Loaded, runner_named
from mvit_video.model.weights.card import CARD_KEY, ModelCard, read_card
from mvit_video.model.weights.convert import load_network
from mvit_video.plugins import named_plugins
from mvit_video.progress import progress_bar

RANDOM_CLIPS = 8
MEMORY = "growth of the resident set of a fresh process, package and network included, at the peak of its first run"


@dataclass(frozen=True)
class Contender:
    """A runner with a file; `key` is how it was asked for, such as openvino:bf16."""

    key: str
    file: str

    @property
    def runner(self) -> str:
        return runner_named(self.key)[0]

    @property
    def precision(self) -> str:
        return runner_named(self.key)[1]

    def name(self, benchmark: "RunnerBenchmark") -> str:
        """For readers: with its file where others differ in that alone."""
        if len(benchmark.files) < 2 or self.file not in benchmark.files:
            return self.key
        short = {Path(file).name for file in benchmark.files}
        return f"{self.key} {Path(self.file).name if len(short) == len(benchmark.files) else self.file}"

    def load(self) -> Loaded:
        return RUNNERS[self.runner].load(self.file, torch.get_num_threads(), self.precision)


@dataclass(frozen=True)
class RunnerBenchmark:
    """What to measure: each runner, torch on the checkpoint, the others on every ONNX file of it. ConfigError for what cannot be."""

    runners: tuple[str, ...]
    checkpoint: str
    files: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    batch: int = 1
    repeats: int = 10

    def __post_init__(self) -> None:
        reading = [word for word in self.runners if RUNNERS[runner_named(word)[0]].reads_onnx]
        if reading and not self.files:
            raise ConfigError(
                f"runner {reading[0]} needs an ONNX file: pass --onnx FILE, which `mvit-video export --format onnx` writes"
            )
        if self.files and not reading:
            raise ConfigError(f"--onnx {self.files[0]}: none of the runners reads it: add onnxruntime or openvino")
        for file in self.files:
            if not Path(file).is_file():
                raise ConfigError(f"--onnx {file}: no such file")
        for words in (self.runners, self.files):
            if len({*words}) < len(words):
                raise ConfigError(f"'{max(words, key=words.count)}' is named twice: name it once")

    def contenders(self) -> Iterator[Contender]:
        for word in self.runners:
            onnx = RUNNERS[runner_named(word)[0]].reads_onnx
            yield from (Contender(word, file) for file in (self.files if onnx else (self.checkpoint,)))


def run_runner_benchmark(benchmark: RunnerBenchmark) -> dict[str, Any]:
    """Measure: `conditions`, `runners`, `failed` and the number of `clips` compared, as plain values for JSON.

    A runner that is not installed, or lacks the precision, is in `failed` with the reason. Raises CheckpointError for a file
    that is not of the checkpoint, and DecodeError for a video that cannot be decoded.
    """
    result: dict[str, Any] = dict(conditions=_conditions(benchmark), runners=[], failed=[], clips=0)
    card = load_network(benchmark.checkpoint)[1]
    loaded: list[Loaded] = []
    for contender in benchmark.contenders():
        start = time.perf_counter()
        try:
            network = contender.load()
        except ConfigError as reason:
            result["failed"].append({"name": contender.name(benchmark), "reason": str(reason)})
            continue
        record = _described(contender, benchmark) | {"load_seconds": time.perf_counter() - start}
        _check(network, card, contender.file, benchmark)
        record["peak_memory_bytes"] = _peak_memory(contender, card, benchmark.batch)
        loaded.append(network)
        result["runners"].append(record)
    if loaded:
        result["clips"] = _compare(
            loaded, result["runners"], benchmark, card
        )  # first: a bad video costs no measurement
        _measure_times(loaded, result["runners"], example_clips(card, benchmark.batch).numpy(), benchmark.repeats)
    result["conditions"]["load_average_after"] = load_average()
    return result


def _conditions(benchmark: RunnerBenchmark) -> dict[str, Any]:
    return describe_machine("torch", "onnxruntime", "openvino") | {
        "checkpoint": benchmark.checkpoint,
        "batch": benchmark.batch,
        "repeats": benchmark.repeats,
        "warm_up_runs": WARM_UP,
        "memory_method": MEMORY if is_known() else None,
    }


def _described(contender: Contender, benchmark: RunnerBenchmark) -> dict[str, Any]:
    file = Path(contender.file)
    return {
        "name": contender.name(benchmark),
        "runner": contender.runner,
        "precision": contender.precision,
        "file": contender.file,
        "bytes": file.stat().st_size if file.is_file() else None,
    }


def _check(network: Loaded, card: ModelCard, file: str, benchmark: RunnerBenchmark) -> None:
    """Whether an ONNX file is of the checkpoint, as far as cards tell, and takes the batch."""
    if network.batch not in (None, benchmark.batch):
        raise ConfigError(f"{file}: takes {network.batch} clips at a time: pass --batch {network.batch}")
    if file == benchmark.checkpoint:
        return
    if CARD_KEY not in network.metadata:
        raise CheckpointError(f"{file}: was not written by `mvit-video export --format onnx`: it has no card")
    theirs = read_card(network.metadata, file)
    for name in ("name", "arguments", "classes", "preprocessing"):
        if getattr(theirs, name) != getattr(card, name):
            raise CheckpointError(
                f"{file}: was exported from another checkpoint than {benchmark.checkpoint} (its {name} differ): "
                "pass the one that it is from"
            )


def _peak_memory(contender: Contender, card: ModelCard, batch: int) -> int | None:
    if not is_known():
        return None
    shape = [batch, 3, card.preprocessing.num_frames, *card.preprocessing.crop_hw]
    request: dict[str, Any] = dict(runner=contender.runner, precision=contender.precision, file=contender.file)
    request |= dict(shape=shape, threads=torch.get_num_threads(), plugins=named_plugins())
    return measured_apart("mvit_video.benchmark.runner_memory", request, f"{contender.key} at batch {batch}")


def _measure_times(loaded: Sequence[Loaded], records: list[dict], clips: np.ndarray, repeats: int) -> None:
    """Put wall and processor seconds of each run into the records, and how many times as fast as the first runner it was."""
    for record in records:
        record |= {"seconds": [], "cpu_seconds": []}
    with progress_bar("benchmark", (WARM_UP + repeats) * len(loaded)) as bar:
        for number in range(WARM_UP + repeats):
            for network, record in zip(loaded, records, strict=True):
                start, cpu_start = time.perf_counter(), time.process_time()
                network.run(clips)
                seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
                if number >= WARM_UP:
                    record["seconds"].append(seconds)
                    record["cpu_seconds"].append(cpu_seconds)
                bar.advance(1, record["name"])
    for record in records:
        record["speed"] = speed_ratio(record["seconds"], records[0]["seconds"])
        record["cpu_speed"] = speed_ratio(record["cpu_seconds"], records[0]["cpu_seconds"])
        record["clips_per_second"] = len(clips) / median(record["seconds"])


def _compare(loaded: Sequence[Loaded], records: list[dict], benchmark: RunnerBenchmark, card: ModelCard) -> int:
    """Put each runner's agreement with torch in fp32 into its record; returns the number of clips."""
    exact = RUNNERS["torch"].load(benchmark.checkpoint, torch.get_num_threads(), "fp32")
    wanted, differences = list[np.ndarray](), [list[np.ndarray]() for _ in loaded]
    same = [0] * len(loaded)
    for clips in batches(clips_of(benchmark.videos, card), benchmark.batch):
        short = benchmark.batch - len(clips)  # files of a fixed batch take no fewer
        padded = np.concatenate([clips, np.repeat(clips[-1:], short, 0)])
        wanted.append(softmax(exact.run(padded)[: len(clips)]))
        for place, network in enumerate(loaded):
            found = softmax(network.run(padded)[: len(clips)])
            differences[place].append(np.abs(found - wanted[-1]).max(1))
            same[place] += int((found.argmax(1) == wanted[-1].argmax(1)).sum())
    count = sum(map(len, wanted))
    for record, parts, equal in zip(records, differences, same, strict=True):
        each = np.concatenate(parts)
        record["agreement"] = {
            "same_label_percent": 100 * equal / count,
            "largest_difference": float(each.max()),
            "mean_difference": float(each.mean()),
        }
    return count


def clips_of(videos: Sequence[str], card: ModelCard) -> Iterator[np.ndarray]:
    """The middle clip of each video, or random clips: (3, T, H, W), normalised."""
    if not videos:
        yield from example_clips(card, RANDOM_CLIPS, seed=1).numpy()
        return
    with Guard().scoped() as guard:
        for path in expand_paths(videos):
            yield _middle_clip(path, guard, card.preprocessing)


def _middle_clip(path: str, guard: Guard, settings: InputSettings) -> np.ndarray:
    with open_video(path, guard) as reader:
        clip: np.ndarray = read_views(reader, settings, 1, 1)[0].numpy()
        return clip


def batches(clips: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """(B, 3, T, H, W) of `size` clips; the last may have fewer."""
    rest = iter(clips)
    while part := list(islice(rest, size)):
        yield np.stack(part)


def softmax(logits: np.ndarray) -> np.ndarray:
    """In float64, so that differences are the runner's."""
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def runner_tables(result: dict[str, Any]) -> list[Table | str]:
    """The result for a terminal of 80 columns: speed and memory, agreement, and the conditions."""
    conditions = result["conditions"]
    return [
        _speed_table(result["runners"], conditions["batch"]),
        _agreement_table(result["runners"], result["clips"]),
        machine_line(conditions),
        load_line(conditions),
        f"measured: batch {conditions['batch']}, {conditions['repeats']} rounds after {conditions['warm_up_runs']}",
        f"memory: {conditions['memory_method'] or 'not measured on this system'}",
    ]


def _speed_table(records: Sequence[dict], batch: int) -> Table:
    table = new_table(
        f"Median of a clip, wall and processor time, times as fast as {records[0]['name']}, and peak memory",
        *("runner", "ms", "times", "CPU ms", "times", "min–max", "load s", "MiB"),
    )
    for record in records:
        wall, processor = (_milliseconds(record[kind], batch) for kind in ("seconds", "cpu_seconds"))
        speed, peak = record["cpu_speed"], record["peak_memory_bytes"]
        table.add_row(
            record["name"],
            wall,
            f"{record['speed']['median']:.2f}",
            processor,
            f"{speed['median']:.2f}",
            f"{speed['min']:.2f}–{speed['max']:.2f}",
            f"{record['load_seconds']:.1f}",
            "-" if peak is None else f"{peak / MIB:,.0f}",
        )
    return table


def _milliseconds(seconds: Sequence[float], batch: int) -> str:
    value = 1000 * median(seconds) / batch
    return f"{value:,.{1 if value < 100 else 0}f}"


def _agreement_table(records: Sequence[dict], clips: int) -> Table:
    table = new_table(
        f"Scores (0 to 1) against torch in fp32, {clips} clips: largest difference of a class",
        *("runner", "at most", "mean of clips", "same label"),
    )
    for record in records:
        found = record["agreement"]
        differences = [f"{found[name]:.1e}" for name in ("largest_difference", "mean_difference")]
        table.add_row(record["name"], *differences, f"{found['same_label_percent']:.2f} %")
    return table
