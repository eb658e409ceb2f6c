"""Which way a computation goes: through kernels of our own, or through the modules and functions of PyTorch."""

import warnings
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

HAS_TRITON = find_spec("triton") is not None  # it comes with PyTorch's builds for GPUs on Linux
KERNELS_CURE = "install triton in the version that torch names, and a C compiler"
KERNEL_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def kernels_for(x: Tensor, compilable: bool = False) -> Any:
    """The module `kernels` where it can take x: on a GPU with Triton, in up to 32 bits, and not into an exported file.

    While a graph is compiled only for what says that it is an operator of a library; compilers fuse the rest themselves.
    """
    if x.device.type != "cuda" or x.dtype not in KERNEL_TYPES or not HAS_TRITON:
        return None
    if torch.compiler.is_exporting() or torch.jit.is_tracing() or (torch.compiler.is_compiling() and not compilable):
        return None
    if torch.compiler.is_compiling():
        from mvit_video.model.ops import triton as kernels

        return kernels
    return working_kernels(x.device)


@cache
def working_kernels(device: torch.device) -> Any:
    """The module `kernels`; None after a warning where a first kernel does not run."""
    kernels, reason = try_kernels(device)
    if reason:
        warnings.warn(
            f"{reason}: networks take PyTorch's own pooling, several times slower; {KERNELS_CURE}", stacklevel=2
        )
    return kernels


def try_kernels(device: torch.device) -> tuple[Any, str]:
    """The module `kernels` and no reason, or None and why not: Triton builds each kernel with the machine's C compiler."""
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


def is_plain(kind: type[nn.Module], *modules: nn.Module) -> bool:
    """Whether modules are PyTorch's own of one kind, without hooks, so that their weights say all that they do."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return all(type(module) is kind and not any(getattr(module, hook) for hook in hooks) for module in modules)


def compute_dtype(x: Tensor) -> torch.dtype:
    """What matrix products compute in: autocast's type where it is on, else x's."""
    device = x.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # the first is not for "meta"
    return torch.get_autocast_dtype(device) if on else x.dtype
