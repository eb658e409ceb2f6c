"""What runs a network on a CPU: torch a checkpoint, onnxruntime and OpenVINO the ONNX file that `export` writes.

torch is imported only where it is the runner, so that a process with another one is as large as that one needs.
"""

# B clips, T/H/W frames and pixels, K classes

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from mvit_video.errors import CheckpointError, ConfigError, clipped, did_you_mean

OPENVINO_PRECISIONS = {"fp32": "f32", "bf16": "bf16"}

Run = Callable[[np.ndarray], np.ndarray]  # clips (B, 3, T, H, W) float32, normalised -> logits (B, K) float32


@dataclass(frozen=True)
class Loaded:
    """A network in a runner."""

    run: Run
    batch: int | None = None
    """The number of clips that it takes; None for any."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Of the ONNX file: the card is among it."""


@dataclass(frozen=True)
class Runner:
    """How a file gets into a runner, and what it may compute in; the first is what it does unless told otherwise."""

    load: Callable[[str, int, str], Loaded]
    """(file, threads, precision) -> what runs it. ConfigError where the package or the precision is missing,
    CheckpointError for a file that cannot be read."""
    precisions: tuple[str, ...]
    reads_onnx: bool = True


def with_torch(checkpoint: str, threads: int, precision: str = "fp32") -> Loaded:
    """The network of a checkpoint as `predict` runs it on the CPU. `threads` are torch's own in all of the process."""
    import torch

    from mvit_video.model.precision import resolve_precision
    from mvit_video.model.weights.convert import load_network

    torch.set_num_threads(threads)
    number_format = resolve_precision(precision, torch.device("cpu"))
    held = number_format.held(load_network(checkpoint)[0]).eval()

    def run(clips: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), number_format.autocast():
            logits: np.ndarray = held(torch.from_numpy(clips)).float().numpy()
            return logits

    return Loaded(run)


def with_onnxruntime(file: str | bytes, threads: int, precision: str = "file") -> Loaded:
    """An ONNX file, or its content, in onnxruntime. It computes in what the file says, whatever the `precision`."""
    runtime = package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads leave cores to others
    try:
        session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as reason:  # its own kinds, one for each of its error codes
        raise _unreadable(file, "onnxruntime", reason) from None
    _check_names(file, *([port.name for port in ports] for ports in (session.get_inputs(), session.get_outputs())))
    batch = session.get_inputs()[0].shape[0]
    return Loaded(
        lambda clips: session.run(["logits"], {"clips": clips})[0],
        batch if isinstance(batch, int) else None,
        session.get_modelmeta().custom_metadata_map,
    )


@cache
def _openvino_core() -> Any:
    """One for the whole process: each sets a stack for signal handlers, and of several the first to go leaves an invalid one."""
    return package("openvino").Core()


def with_openvino(file: str, threads: int, precision: str = "fp32") -> Loaded:
    """An ONNX file in OpenVINO, which rounds products to bf16 where it is asked to."""
    frontend, core = package("openvino.frontend"), _openvino_core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ConfigError("runner openvino:bf16: this CPU does not compute in bf16: use openvino")
    hints = {
        "INFERENCE_PRECISION_HINT": OPENVINO_PRECISIONS[precision],
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        reader = frontend.FrontEndManager().load_by_framework("onnx")  # no other kind of file
        network = reader.convert(reader.load(file))
        compiled = core.compile_model(network, "CPU", hints)
    except Exception as reason:  # of its own kinds too
        raise _unreadable(file, "OpenVINO", reason) from None
    _check_names(
        file, *([name for port in ports for name in port.names] for ports in (network.inputs, network.outputs))
    )
    batch = network.input(0).partial_shape[0]
    metadata = network.get_rt_info(["framework"]).astype(dict) if network.has_rt_info(["framework"]) else {}
    return Loaded(
        lambda clips: compiled({"clips": clips})["logits"].copy(),  # the next call writes into the same memory
        batch.get_length() if batch.is_static else None,
        {name: value.astype(str) for name, value in metadata.items()},
    )


RUNNERS = {
    "torch": Runner(with_torch, ("fp32", "bf16", "fp16"), reads_onnx=False),
    "onnxruntime": Runner(with_onnxruntime, ("file",)),
    "openvino": Runner(with_openvino, ("fp32", "bf16")),
}


def runner_named(word: str) -> tuple[str, str]:
    """A runner's name and the precision of `NAME` or `NAME:PRECISION`. ConfigError for others."""
    name, colon, precision = word.partition(":")
    if name not in RUNNERS:
        raise ConfigError(
            f"runner '{name}' is unknown{did_you_mean(name, RUNNERS)}: choose from {', '.join(every_runner())}"
        )
    known = RUNNERS[name].precisions
    if colon and (precision not in known or known == ("file",)):
        raise ConfigError(f"runner '{word}': has no such precision: choose from {', '.join(every_runner())}")
    return name, precision or known[0]


def every_runner() -> list[str]:
    """What `runner_named` takes."""
    return [
        name if place == 0 else f"{name}:{precision}"
        for name, runner in RUNNERS.items()
        for place, precision in enumerate(runner.precisions)
    ]


def package(name: str) -> ModuleType:
    """Import a package of an extra; ConfigError says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as reason:
        wanted = name.partition(".")[0]
        raise ConfigError(f"package '{wanted}' cannot be imported ({reason}): run 'pip install {wanted}'") from None


def _check_names(file: str | bytes, inputs: list[str], outputs: list[str]) -> None:
    """CheckpointError for the file of another network."""
    if (inputs, outputs) != (["clips"], ["logits"]):
        given = f"its inputs are {', '.join(inputs) or 'none'}, its outputs {', '.join(outputs) or 'none'}"
        raise CheckpointError(
            f"{_name(file)}: {given}, expected clips and logits: write it with `mvit-video export --format onnx`"
        )


def _name(file: str | bytes) -> str:
    return file if isinstance(file, str) else "the ONNX file"


def _unreadable(file: str | bytes, runner: str, reason: Exception) -> CheckpointError:
    *_, why = str(reason).strip().splitlines()
    return CheckpointError(
        f"{_name(file)}: {runner} cannot run it ({clipped(why)}): write it with `mvit-video export --format onnx`"
    )
