"""Dispatch: when operators use Triton kernels, and when they fall back to plain PyTorch operations.

Every function in `ops` falls back to plain modules and operations for modules with hooks and under exporters, tracers,
operation counters and torch.func transforms.
"""

import warnings
from collections.abc import Collection
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as all_modules
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

HAS_TRITON = find_spec("triton") is not None  # PyTorch's GPU builds for Linux install it
KERNELS_CURE = "install triton in the version that torch names, and a C compiler"
KERNEL_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = [getattr(all_modules, f"_global{hooks}") for hooks in _HOOKS]  # counters and profilers set these


def kernels_for(x: Tensor) -> Any:
    """The Triton kernels if they support x (on a GPU, at most 32 bits, Triton installed), else None."""
    if x.device.type != "cuda" or x.dtype not in KERNEL_TYPES or not HAS_TRITON:
        return None
    return working_kernels(x.device)


@cache
def working_kernels(device: torch.device) -> Any:
    """The package `ops.triton`; None, with a warning, if a first kernel does not run."""
    kernels, reason = try_kernels(device)
    if reason:
        warnings.warn(
            f"{reason}: networks take PyTorch's own pooling, several times slower; {KERNELS_CURE}", stacklevel=2
        )
    return kernels


def try_kernels(device: torch.device) -> tuple[Any, str]:
    """The kernels and "", or None and the reason: Triton compiles its launchers with the system's C compiler."""
    try:
        from mvit_video.model.ops import triton as kernels

        ones = torch.ones(2, 16, device=device)
        kernels.layer_norm(ones, ones[0], ones[0], 1e-6, torch.float32)
    except Exception as reason:  # whatever it is, PyTorch's own functions still work
        return (
            None,
            f"Triton runs no kernel on {device} ({(str(reason).strip() or type(reason).__name__).splitlines()[0]})",
        )
    return kernels, ""


def hook_tables(module: nn.Module) -> list[dict[int, Any]]:
    """The dictionaries of a module's hooks, then those of global hooks: all empty if nobody listens."""
    return [getattr(module, hooks) for hooks in _HOOKS] + _GLOBAL_HOOKS


def can_fuse(types: Collection[type[nn.Module]], *modules: nn.Module) -> bool:
    """Whether modules are exactly of these types and have no hooks, so that their weights fully describe them."""
    if any(_GLOBAL_HOOKS):
        return False
    return all(type(module) in types and not any(getattr(module, hooks) for hooks in _HOOKS) for module in modules)


def is_observed() -> bool:
    """Whether a tracer, a dispatch mode (such as a FLOP counter) or a torch.func transform must see plain operations."""
    return not torch.compiler.is_compiling() and _is_observed()


def _is_observed() -> bool:
    return torch._C._is_tracing() or torch._C._are_functorch_transforms_active() or is_in_torch_dispatch_mode(False)


def must_decompose() -> bool:
    """`is_observed`, or under an exporter, whose files must not depend on this package's operators."""
    return torch.compiler.is_exporting() or is_observed()


def skip_fusion() -> bool:
    """`must_decompose`, or under a compiler, which fuses and recomputes plain operations by itself."""
    return torch.compiler.is_compiling() or torch.compiler.is_exporting() or _is_observed()


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products: autocast's where it is enabled, else that of x."""
    device = x.device.type
    enabled = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # "meta" has no autocast
    return torch.get_autocast_dtype(device) if enabled else x.dtype
