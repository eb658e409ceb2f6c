"""CUDA graphs for inference: a forward pass is captured once per shape of clips, then replayed with one launch.

A GPU computes S faster than Python launches its roughly 850 kernels. A replay runs the captured kernels on the captured
memory, so clips are copied in and logits out. Whatever else could change a forward pass (hooks, training mode, gradients,
tracers, replaced weights) is detected, and the network is called as usual.
"""

# B clips, T/H/W frames and pixels, K classes

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mvit_video.model.ops.device import hook_tables, skip_fusion
from mvit_video.model.ops.tables import held_tables
from mvit_video.model.precision import Precision
from mvit_video.model.registry import capabilities_of

MAX_GRAPHS = 4  # shapes; each keeps its clips and logits, all other memory is shared
MAX_SEEN = 256
WARM_UPS = 3  # passes before a capture: kernels are compiled, libraries choose algorithms, caches fill
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-3}  # of a replay's logits, relative to the largest or to 1

Forward = Callable[[Tensor], Tensor]  # clips (B, 3, T, H, W) -> logits (B, K)


def graphed(model: nn.Module, precision: Precision) -> Forward:
    """What runs a network for inference under `precision.autocast()`: on a GPU through graphs if it can be captured, else itself."""
    if precision.device.type != "cuda" or not capabilities_of(model).graphs:
        return model
    return GraphedNetwork(model, precision, CudaBackend(precision.device))


class Backend(Protocol):
    """What captures and replays; tests have one that needs no GPU."""

    def capture(self, run: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Warm `run` up, then capture a call: its output, and a function that computes it again into the same memory."""


class CudaBackend:
    """Captures on a stream of its own. All graphs share one memory pool, since no two of them run at once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def capture(self, run: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        with torch.cuda.device(self.device):
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                for _ in range(WARM_UPS):
                    run()
            torch.cuda.current_stream().wait_stream(self.stream)
            graph = torch.cuda.CUDAGraph()
            # thread_local: reader threads may pin memory meanwhile
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                output = run()

        def replay() -> None:
            with torch.cuda.device(self.device):
                graph.replay()

        return output, replay


@dataclass(frozen=True)
class _Graph:
    clips: Tensor
    logits: Tensor
    replay: Callable[[], None]
    tables: Sequence[Tensor]
    """Cached tensors that it reads, kept alive."""

    def __call__(self, clips: Tensor) -> Tensor:
        """Logits of the clips, which may be fewer than were captured: earlier clips then fill the batch."""
        self.clips[: len(clips)].copy_(clips)
        self.replay()
        return self.logits[: len(clips)].clone()


class GraphedNetwork:
    """A network in eval mode, called like the network itself, in inference mode and under `precision.autocast()`.

    The first batch of a shape runs eagerly, the second is captured, for up to `max_graphs` shapes. A batch smaller than a
    captured one, such as the last of a list, is padded to it. Weights that change in place are followed; if they are replaced,
    graphs are captured again. If a capture fails, for example out of memory, a warning says so and everything runs eagerly.
    """

    def __init__(self, model: nn.Module, precision: Precision, backend: Backend, max_graphs: int = MAX_GRAPHS) -> None:
        self.model, self.precision, self.backend, self.max_graphs = model, precision, backend, max_graphs
        self.graphs: list[_Graph] = []
        self._seen: set[tuple[Any, ...]] = set()
        self._failed = False
        self._lock = Lock()
        modules = list(model.modules())
        self._hooks = [hooks for module in modules for hooks in hook_tables(module)]
        self._tensors = [tensors for module in modules for tensors in (module._parameters, module._buffers)]
        self._addresses: list[int] = []

    def __call__(self, clips: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W) -> logits (B, K)."""
        if not self._failed and self._can_replay():
            with self._lock:
                self._forget_replaced_weights()
                graph = self._graph_for(clips)
                if graph is not None:
                    return graph(clips)
        logits: Tensor = self.model(clips)
        return logits

    def _can_replay(self) -> bool:
        """Whether a forward pass depends on the clips alone, and nobody observes it."""
        observed = any(self._hooks) or skip_fusion()
        return torch.is_inference_mode_enabled() and not self.model.training and not observed

    def _forget_replaced_weights(self) -> None:
        addresses = [
            tensor.data_ptr() for tensors in self._tensors for tensor in tensors.values() if tensor is not None
        ]
        if addresses != self._addresses:
            self.graphs, self._addresses = [], addresses

    def _graph_for(self, clips: Tensor) -> _Graph | None:
        """The smallest graph that holds the clips; a new one for a repeated size, if that one would waste over a quarter."""
        fitting = [each for each in self.graphs if _holds(each.clips, clips)]
        best = min(fitting, key=lambda each: len(each.clips), default=None)
        key = (*clips.shape, clips.dtype, clips.device)
        again = key in self._seen
        if len(self._seen) == MAX_SEEN:
            self._seen.clear()
        self._seen.add(key)
        close = best is not None and 4 * len(clips) >= 3 * len(best.clips)
        if close or not again or len(self.graphs) == self.max_graphs:
            return best
        return self._captured(clips)

    def _captured(self, clips: Tensor) -> _Graph | None:
        """A new graph, if its logits are the network's; otherwise None, and no graphs from now on."""
        try:
            static = torch.zeros_like(clips)
            with held_tables() as tables:
                graph = _Graph(static, *self.backend.capture(lambda: self._forward(static)), tables)
            found, wanted = graph(clips).float(), self._forward(clips).float()
            difference = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1.0))
            if not difference <= TOLERANCE[self.precision.name]:
                raise RuntimeError(f"its logits differ from the network's by {difference:.0e}")
        except RuntimeError as reason:  # includes torch.OutOfMemoryError
            first = (str(reason).strip() or type(reason).__name__).splitlines()[0]
            warnings.warn(
                f"CUDA graphs are off, kernels are launched one by one: capture failed ({first})", stacklevel=2
            )
            self._failed, self.graphs = True, []
            return None
        self.graphs.append(graph)
        return graph

    def _forward(self, clips: Tensor) -> Tensor:
        """Without autocast's cache: a graph must not read copies of weights that are freed after the pass."""
        with torch.inference_mode(), self.precision.autocast(cached=False):
            logits: Tensor = self.model(clips)
            return logits


def _holds(captured: Tensor, clips: Tensor) -> bool:
    alike = captured.shape[1:] == clips.shape[1:] and (captured.dtype, captured.device) == (clips.dtype, clips.device)
    return alike and len(clips) <= len(captured)
