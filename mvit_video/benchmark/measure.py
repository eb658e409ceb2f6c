"""One network's cost: parameters, multiply-adds, the time of a step and the memory that it needs at its peak.

A step is a forward pass (`inference`: evaluation mode, inference mode) or a forward and backward pass of the cross
entropy (`training`: training mode, gradients start from none, no optimiser). Networks have new weights and random
input: neither changes what a step costs.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mvit_video.benchmark.resident import forget_peak, is_known, measured_apart, resident_peak
from mvit_video.errors import ConfigError
from mvit_video.model.graphs import graphed
from mvit_video.model.precision import DTYPES, Precision
from mvit_video.model.registry import build_model, model_entry
from mvit_video.plugins import load_plugins, named_plugins

PHASES = ("inference", "training")
CONVENTION = (
    "One multiply-add is one operation, counted by fvcore for one clip: convolutions, linear layers, matrix products "
    "and einsum, and its estimate for norms (5 per value of a layer norm, 2 of a batch norm in evaluation). Softmax, "
    "activations, pooling and additions are not counted; attention is counted on the plain formula q·kᵀ, q·R and p·v, "
    "without the channels that the fast form appends."
)
MEMORY_METHOD = {
    "cuda": "bytes of tensors at the peak of one step above those held before it (torch.cuda.max_memory_allocated)",
    "cpu": "growth of the resident set at the peak of the first step of a fresh process (VmHWM of /proc, Linux only), "
    "libraries that the step loads included",
}


REFERENCE = "reference/"  # in front of a name of ours: the same network with the plain attention formula


Arguments = Mapping[str, Any]  # of a network's constructor, in place of those that its name stands for


def new_network(name: str, arguments: Arguments | None = None) -> nn.Module:
    """A network of a benchmark: what `build_model` takes, or REFERENCE and a name of a network that has a plain form."""
    ours = name.removeprefix(REFERENCE)
    plain = {} if ours == name else model_entry(ours).capabilities.plain
    return build_model(ours, **dict(plain) | dict(arguments or {}))


def input_size(name: str, arguments: Arguments | None = None) -> tuple[int, int, int]:
    """Frames, height and width that it is measured with: what it is made for."""
    entry = model_entry(name.removeprefix(REFERENCE))
    return replace(entry, arguments=dict(entry.arguments) | dict(arguments or {})).input_size


class Subject:
    """A network on a device with one batch of its input (B, 3, T, H, W), the usual one, that of `arguments`, or `size`;
    `mode` is eager, compiled or graphs."""

    def __init__(
        self,
        name: str,
        batch: int,
        dtype: str,
        device: torch.device,
        arguments: Arguments | None = None,
        size: Sequence[int] | None = None,
    ) -> None:
        ours = name.removeprefix(REFERENCE)
        if ours != name and not model_entry(ours).capabilities.plain:
            raise ConfigError(f"{name}: '{ours}' has no plain formula to measure: name it without '{REFERENCE}'")
        self.name, self.mode, self.device, self.dtype = name, "eager", device, DTYPES[dtype]
        self.arguments = dict(arguments or {})
        self.model = new_network(name, arguments).to(device)
        self.run: Any = self.model
        generator = torch.Generator().manual_seed(0)  # networks with the same input size get the same clips
        self.clips = torch.randn(batch, 3, *(size or input_size(name, arguments)), generator=generator).to(device)
        self.labels = torch.zeros(batch, dtype=torch.long, device=device)

    def compiled(self) -> "Subject":
        """The same network, weights and clips, through torch.compile with its defaults."""
        twin = object.__new__(Subject)
        twin.__dict__.update(self.__dict__, mode="compiled", run=torch.compile(self.model))
        return twin

    def graphed(self) -> "Subject":
        """The same, recorded as a CUDA graph and replayed: inference only."""
        precision = Precision(next(name for name, dtype in DTYPES.items() if dtype == self.dtype), self.device)
        twin = object.__new__(Subject)
        twin.__dict__.update(self.__dict__, mode="graphs", run=graphed(self.model, precision))
        return twin

    @property
    def phases(self) -> tuple[str, ...]:
        """What it can be measured in."""
        return PHASES[:1] if self.mode == "graphs" else PHASES

    def step(self, phase: str) -> None:
        """One forward pass, or one forward and backward pass, as far as it has been queued to the device."""
        training = phase == "training"
        # parameters stay float32, and loss scaling is left out, since it costs no time to speak of
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        if training:
            self.model.zero_grad(set_to_none=True)
        with torch.inference_mode(not training), autocast:
            logits = self.run(self.clips)
        if training:
            F.cross_entropy(logits.float(), self.labels).backward()

    def seconds(self, phase: str) -> float:
        """Wall time of one step, the device's work included."""
        _finish(self.device)
        start = time.perf_counter()
        self.step(phase)
        _finish(self.device)
        return time.perf_counter() - start

    def prepare(self, phase: str) -> None:
        """Training or evaluation mode, and no gradients of an earlier step."""
        self.model.train(phase == "training")
        self.model.zero_grad(set_to_none=True)


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(
    name: str, device: torch.device | None = None, arguments: Arguments | None = None
) -> dict[str, Any]:
    """Multiply-adds of one clip by CONVENTION: `giga_per_clip`, its parts `by_operator`, and calls `not_counted`.

    The network runs once, in evaluation: fvcore traces it, which tensors without data (meta) do not allow.
    """
    from fvcore.nn import FlopCountAnalysis

    plain = name if name.startswith(REFERENCE) else REFERENCE + name
    clip = torch.zeros(1, 3, *input_size(name, arguments), device=device)
    analysis = FlopCountAnalysis(new_network(plain, arguments).to(device).eval(), clip)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    with torch.no_grad():
        operators: Counter = analysis.by_operator()
    return {
        "giga_per_clip": sum(operators.values()) / 1e9,
        "by_operator": {operator: count / 1e9 for operator, count in operators.most_common()},
        "not_counted": dict(analysis.unsupported_ops().most_common()),
        "convention": CONVENTION,
    }


def peak_memory(subject: Subject, phase: str) -> int | None:
    """Bytes that one step needs at its peak, above the network and its input; MEMORY_METHOD says how they are found.

    None where they cannot be told: for graphs, which keep their memory between steps, and on a CPU for a compiled network, whose
    compiler's own memory would count, and on systems without /proc. Raises ConfigError where the step itself fails for want of
    memory.
    """
    if subject.mode == "graphs":
        return None
    if subject.device.type == "cuda":
        return _peak_on_cuda(subject, phase)
    if subject.mode != "eager" or not is_known():
        return None
    return _peak_in_fresh_process(subject, phase)


def _peak_on_cuda(subject: Subject, phase: str) -> int:
    subject.prepare(phase)
    subject.step(phase)  # the first step compiles, and fills caches that stay
    subject.prepare(phase)
    _finish(subject.device)
    torch.cuda.reset_peak_memory_stats(subject.device)
    before = torch.cuda.memory_allocated(subject.device)
    subject.step(phase)
    _finish(subject.device)
    return torch.cuda.max_memory_allocated(subject.device) - before


def _peak_in_fresh_process(subject: Subject, phase: str) -> int:
    dtype = next(name for name, kind in DTYPES.items() if kind == subject.dtype)
    request = dict(name=subject.name, arguments=subject.arguments, batch=len(subject.clips), dtype=dtype, phase=phase)
    request |= dict(threads=torch.get_num_threads(), plugins=named_plugins())
    return measured_apart(__name__, request, f"{subject.name} in {phase} at batch {len(subject.clips)}")


def _first_step(
    name: str,
    batch: int,
    dtype: str,
    phase: str,
    threads: int,
    plugins: Sequence[str] = (),
    arguments: Arguments | None = None,
    size: Sequence[int] | None = None,
) -> int:
    """The body of the fresh process: growth of its resident set at the peak of its first step, in bytes."""
    load_plugins(plugins)
    torch.set_num_threads(threads)
    subject = Subject(name, batch, dtype, torch.device("cpu"), arguments, size)
    subject.prepare(phase)
    forget_peak()  # of importing and building
    before = resident_peak()
    subject.step(phase)
    return resident_peak() - before


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    print(_first_step(**json.loads(sys.argv[1])))
