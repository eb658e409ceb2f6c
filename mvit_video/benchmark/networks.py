"""What `mvit-video benchmark` does: one network measured, or two in turn in one process, so that both see the same machine.

A round takes one step of each network (A B A B ...), and a ratio belongs to one round. What slows the machine for a
while then slows both sides of a ratio, and the spread of the ratios says how far their median can be trusted.
"""

import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.table import Table

from mvit_video.benchmark.measure import (
    DTYPES,
    MEMORY_METHOD,
    PHASES,
    REFERENCE,
    Subject,
    count_multiply_adds,
    count_parameters,
    peak_memory,
)
from mvit_video.config.load import config_from_dict
from mvit_video.errors import ConfigError, did_you_mean
from mvit_video.model.registry import model_entry
from mvit_video.progress import Bar, progress_bar

SIZES = ("data.num_frames", "data.crop_size")  # settings of the clips that both networks are given
WARM_UP = 2  # steps of each network and phase before the first that counts; the first also compiles
MIB = 2**20


@dataclass(frozen=True)
class Benchmark:
    """What to measure. ConfigError for a name, dtype or number that cannot be."""

    model: str
    device: torch.device
    against: str | None = None
    train: bool = False
    compile: bool = False
    graphs: bool = False
    dtype: str = "fp32"
    batch: int = 1
    repeats: int = 10
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of the model, in place of those that its name stands for."""
    size: Mapping[str, Any] = field(default_factory=dict)
    """num_frames and crop_size of the clips of both networks, in place of the model's usual ones."""

    def __post_init__(self) -> None:
        for name in (self.model, self.against):
            if name is not None:
                model_entry(name.removeprefix(REFERENCE))
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype '{self.dtype}' is unknown: choose from {', '.join(DTYPES)}")
        if self.graphs and (self.device.type != "cuda" or not model_entry(self.model).capabilities.graphs):
            raise ConfigError(
                f"--graphs records CUDA graphs: {self.model} on {self.device} has none: take a network of ours and --device cuda"
            )
        for name in ("batch", "repeats"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} is too small: at least 1 is needed")

    @classmethod
    def of_words(cls, words: Sequence[str], **what: Any) -> "Benchmark":
        """With settings of the command line: model.arguments.KEY=VALUE, data.num_frames and data.crop_size."""
        for word in words:
            key = word.partition("=")[0]
            if key not in SIZES and not key.startswith("model.arguments."):
                raise ConfigError(
                    f"'{word}': a benchmark does not know '{key}'{did_you_mean(key, SIZES)}: choose from "
                    f"model.arguments.NAME, {' and '.join(SIZES)}"
                )
        config = config_from_dict({}, "the network", words)
        given = {word.partition("=")[0] for word in words}
        size = {
            key.removeprefix("data."): getattr(config.data, key.removeprefix("data.")) for key in SIZES if key in given
        }
        return cls(arguments=config.model.arguments, size=size, **what)

    @property
    def phases(self) -> tuple[str, ...]:
        return PHASES if self.train else PHASES[:1]


def run_benchmark(benchmark: Benchmark) -> dict[str, Any]:
    """Measure: `conditions`, `networks`, `ratios` and `failed`, as plain values for JSON.

    A network whose package cannot be imported is in `failed` with the reason, and the rest is still measured. Raises
    ConfigError where the batch does not fit the memory, or torch.compile fails.
    """
    result: dict[str, Any] = dict(conditions=describe_conditions(benchmark), networks=[], ratios=[], failed=[])
    try:
        subjects = _build_subjects(benchmark, result["failed"])
        counts = {
            key: count_multiply_adds(subject.name, benchmark.device, subject.arguments)
            for key, subject in {_key(subject): subject for subject in subjects}.items()
        }
        result["networks"] = [_describe(subject) | {"multiply_adds": counts[_key(subject)]} for subject in subjects]
        pairs = list(zip(subjects, result["networks"], strict=True))
        tasks = {phase: [pair for pair in pairs if phase in pair[0].phases] for phase in benchmark.phases}
        with progress_bar("benchmark", sum(map(len, tasks.values())) * (WARM_UP + 1 + benchmark.repeats)) as bar:
            for phase, measured in tasks.items():
                _measure_phase(measured, phase, benchmark.repeats, bar)
    except RuntimeError as reason:
        if isinstance(reason, torch.OutOfMemoryError) or "can't allocate memory" in str(reason):  # of a GPU, of a CPU
            raise ConfigError(
                f"batch {benchmark.batch} in {benchmark.dtype} does not fit the memory of {benchmark.device}: make --batch smaller"
            ) from None
        if not _is_from_compiler(reason):
            raise
        first_line = str(reason).strip().splitlines()[0]
        raise ConfigError(f"{benchmark.model} cannot be compiled here ({first_line}): drop --compile") from None
    result["conditions"]["load_average_after"] = load_average()
    result["ratios"] = compare(result["networks"])
    return result


def _build_subjects(benchmark: Benchmark, failed: list[dict[str, str]]) -> list[Subject]:
    """The networks in the order of a round: the model, its compiled twin, its graphs, the one to compare with."""
    subjects: list[Subject] = []
    own, size = dict(benchmark.arguments), dict(benchmark.size)
    for name, is_model, arguments in ((benchmark.model, True, own | size), (benchmark.against, False, size)):
        if name is None:
            continue
        try:
            subject = Subject(name, benchmark.batch, benchmark.dtype, benchmark.device, arguments)
        except ConfigError as reason:
            failed.append({"name": name, "reason": str(reason)})
        else:
            subjects.append(subject)
            subjects += [subject.compiled()] if is_model and benchmark.compile else []
            subjects += [subject.graphed()] if is_model and benchmark.graphs else []
    return subjects


def _key(subject: Subject) -> str:
    """What two subjects with equal counts have in common."""
    return f"{subject.name} {subject.arguments}"


def _is_from_compiler(reason: Exception) -> bool:
    return any(kind.__module__.startswith(("torch._dynamo", "torch._inductor")) for kind in type(reason).__mro__)


def _describe(subject: Subject) -> dict[str, Any]:
    return {
        "name": subject.name,
        "arguments": {name: value for name, value in subject.arguments.items() if f"data.{name}" not in SIZES},
        "mode": subject.mode,
        "input": list(subject.clips.shape),
        "parameters": count_parameters(subject.model),
    }


def _measure_phase(pairs: Sequence[tuple[Subject, dict]], phase: str, repeats: int, bar: Bar) -> None:
    """Put seconds, clips per second and peak memory of one phase into the networks' records."""
    for subject, record in pairs:
        record[phase] = {"seconds": [], "peak_memory_bytes": peak_memory(subject, phase)}
        bar.advance(1, f"{subject.name}, {phase}, memory")
    for subject, _ in pairs:
        subject.prepare(phase)
        for _ in range(WARM_UP):
            subject.step(phase)
            bar.advance(1, f"{subject.name}, {phase}, warm-up")
    for _ in range(repeats):
        for subject, record in pairs:
            record[phase]["seconds"].append(subject.seconds(phase))
            bar.advance(1, f"{subject.name}, {phase}")
    for subject, record in pairs:
        record[phase]["clips_per_second"] = len(subject.clips) / median(record[phase]["seconds"])


def compare(networks: Sequence[dict]) -> list[dict[str, Any]]:
    """Every network against the last one, or a compiled one that is last against its eager form.

    Per phase `speed` (above 1: faster than the other) and `memory` (below 1: less than the other; None if unknown).
    """
    if not networks:
        return []
    yardstick = networks[-1] if networks[-1]["mode"] == "eager" else networks[0]
    ratios = []
    for network in networks:
        if network is yardstick:
            continue
        ratio: dict[str, Any] = {"of": _title(network), "against": _title(yardstick)}
        for phase in PHASES:
            if phase in network:
                mine, other = network[phase]["peak_memory_bytes"], yardstick[phase]["peak_memory_bytes"]
                speed = speed_ratio(network[phase]["seconds"], yardstick[phase]["seconds"])
                ratio[phase] = {"speed": speed, "memory": mine / other if mine and other else None}
        ratios.append(ratio)
    return ratios


def speed_ratio(seconds: Sequence[float], against: Sequence[float]) -> dict[str, Any]:
    """How many times faster, round by round: `values` and their median, min, max and quartiles q1 and q3.

    >>> speed_ratio([1.0, 1.0, 2.0], [2.0, 3.0, 2.0])["median"]
    2.0
    """
    values = np.asarray(against) / np.asarray(seconds)
    spread = np.percentile(values, [50, 0, 25, 75, 100])
    return {"values": values.tolist(), **dict(zip(("median", "min", "q1", "q3", "max"), spread.tolist(), strict=True))}


def describe_conditions(benchmark: Benchmark) -> dict[str, Any]:
    """The machine, the versions and what is measured: what somebody needs to get the same figures."""
    return describe_machine("torch", "torchvision", "pytorchvideo", "fvcore") | {
        "gpu": torch.cuda.get_device_name(benchmark.device) if benchmark.device.type == "cuda" else None,
        "device": str(benchmark.device),
        "dtype": benchmark.dtype if benchmark.dtype == "fp32" else f"{benchmark.dtype} (autocast, parameters in fp32)",
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "batch": benchmark.batch,
        "repeats": benchmark.repeats,
        "warm_up_steps": WARM_UP,
        "memory_method": MEMORY_METHOD.get(benchmark.device.type),
    }


def describe_machine(*packages: str) -> dict[str, Any]:
    """The processor, how much of it is used, and versions."""
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average_before": load_average(),
        "versions": {name: _version(name) for name in packages},
        "python": platform.python_version(),
    }


def machine_line(conditions: dict[str, Any], gpu: str = "") -> str:
    """The processor and the versions for a reader."""
    packages = ", ".join(f"{name} {number or 'missing'}" for name, number in conditions["versions"].items())
    return (
        f"machine: {conditions['cpu']}, {conditions['cores']} cores, {conditions['threads']} threads{gpu}; {packages}"
    )


def load_line(conditions: dict[str, Any]) -> str:
    """How busy the machine was."""
    return f"load average: {conditions['load_average_before']} before, {conditions['load_average_after']} after"


def cpu_name() -> str:
    """What the machine calls its processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def load_average() -> float | None:
    """Processes that wanted a core in the last minute; more of them than cores, and the ratios spread."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _version(package: str) -> str | None:
    if package == "torch":
        return str(torch.__version__)  # with its build, such as +cpu
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def benchmark_tables(result: dict[str, Any]) -> list[Table | str]:
    """The result for a terminal of 80 columns: what the networks are, what they reach, ratios, and the conditions."""
    tables: list[Table | str] = [_networks_table(result["networks"]), _speed_table(result["networks"])]
    if result["ratios"]:
        tables.append(_ratios_table(result["ratios"]))
    return [*tables, *_condition_lines(result["conditions"])]


def _networks_table(networks: Sequence[dict]) -> Table:
    table = new_table("Networks", "network", "input (B×3×T×H×W)", "parameters", "multiply-adds")
    for network in networks:
        if network["mode"] == "eager":
            size = "×".join(map(str, network["input"]))
            giga = f"{network['multiply_adds']['giga_per_clip']:.2f} G/clip"
            table.add_row(_title(network), size, f"{network['parameters']:,}", giga)
    return table


def _speed_table(networks: Sequence[dict]) -> Table:
    table = new_table("Speed (median) and peak memory above the network", "network", "phase", "clips/s", "MiB")
    for phase in PHASES:
        for network in networks:
            if phase in network:
                figures = network[phase]
                peak = figures["peak_memory_bytes"]
                speed = f"{figures['clips_per_second']:,.2f}"
                table.add_row(_title(network), phase, speed, "-" if peak is None else f"{peak / MIB:,.0f}")
    return table


def _ratios_table(ratios: Sequence[dict]) -> Table:
    table = new_table(
        f"Against {ratios[0]['against']}: times as fast, times the memory",
        *("network", "phase", "median", "min–max", "quartiles", "memory"),
    )
    for phase in PHASES:
        for ratio in ratios:
            if phase in ratio:
                speed, memory = ratio[phase]["speed"], ratio[phase]["memory"]
                between = [f"{speed[low]:.2f}–{speed[high]:.2f}" for low, high in (("min", "max"), ("q1", "q3"))]
                share = "-" if memory is None else f"{memory:.2f}"
                table.add_row(ratio["of"], phase, f"{speed['median']:.2f}", *between, share)
    return table


def _condition_lines(conditions: dict[str, Any]) -> list[str]:
    return [
        machine_line(conditions, f", GPU {conditions['gpu'] or 'not used'}"),
        load_line(conditions),
        f"measured: {conditions['dtype']}, batch {conditions['batch']}, {conditions['repeats']} rounds after "
        f"{conditions['warm_up_steps']} warm-up steps; training is forward and backward, without an optimiser",
        f"memory: {conditions['memory_method'] or 'not measured on this device'}",
    ]


def new_table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 or column == "phase" else "right", overflow="fold")
    return table


def _title(network: dict) -> str:
    words = [f"{name}={value}" for name, value in network.get("arguments", {}).items()]
    return ", ".join([network["name"], *words, *([] if network["mode"] == "eager" else [network["mode"]])])
