"""Which way an operator goes: through Triton kernels, or PyTorch's own functions; and when a network is looked into.

Every function of this room takes the ordinary way, module by module, where someone wants to see it: modules with hooks,
exporters, tracers, counters and the transforms of torch.func.
"""

import warnings
from collections.abc import Collection
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

HAS_TRITON = find_spec("triton") is not None  # it comes with PyTorch's builds for GPUs on Linux
KERNELS_CURE = "install triton in the version that torch names, and a C compiler"
KERNEL_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_HOOKS_ON_ALL = [getattr(every_module, f"_global{hooks}") for hooks in _HOOKS]  # counters and profilers set these


def kernels_for(x: Tensor) -> Any:
    """The Triton kernels where they can take x: on a GPU with Triton, in up to 32 bits; else None."""
    if x.device.type != "cuda" or x.dtype not in KERNEL_TYPES or not HAS_TRITON:
        return None
    return working_kernels(x.device)


@cache
def working_kernels(device: torch.device) -> Any:
    """The package `ops.triton`; None after a warning where a first kernel does not run."""
    kernels, reason = try_kernels(device)
    if reason:
        warnings.warn(
            f"{reason}: networks take PyTorch's own pooling, several times slower; {KERNELS_CURE}", stacklevel=2
        )
    return kernels


def try_kernels(device: torch.device) -> tuple[Any, str]:
    """The kernels and no reason, or None and why not: Triton builds each kernel with the machine's C compiler."""
    try:
        from mvit_video.model.ops import triton as kernels

        ones = torch.ones(2, 16, device=device)
        kernels.layer_norm(ones, ones[0], ones[0], 1e-6, torch.float32)
    except Exception as reason:  # whatever it is, PyTorch's own functions do the same
        return (
            None,
            f"Triton runs no kernel on {device} ({(str(reason).strip() or type(reason).__name__).splitlines()[0]})",
        )
    return kernels, ""


def is_plain(kinds: Collection[type[nn.Module]], *modules: nn.Module) -> bool:
    """Whether modules are exactly of these kinds and nobody listens to them, so that their weights say all they do."""
    if any(_HOOKS_ON_ALL):
        return False
    return all(type(module) in kinds and not any(getattr(module, hooks) for hooks in _HOOKS) for module in modules)


def is_watched() -> bool:
    """Whether a tracer, a counter of operations or a transform of torch.func looks on: they get PyTorch's own operations."""
    if torch.compiler.is_compiling():
        return False
    return torch.jit.is_tracing() or torch._C._are_functorch_transforms_active() or is_in_torch_dispatch_mode(False)


def is_decomposed() -> bool:
    """`is_watched`, or an exporter is at work, whose file must not need this package."""
    return torch.compiler.is_exporting() or is_watched()


def is_fused_anyway() -> bool:
    """`is_decomposed`, or a compiler is at work, which fuses and makes again what is simple by itself."""
    return torch.compiler.is_compiling() or is_decomposed()


def compute_dtype(x: Tensor) -> torch.dtype:
    """What matrix products compute in: autocast's type where it is on, else x's."""
    device = x.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # the first is not for "meta"
    return torch.get_autocast_dtype(device) if on else x.dtype
