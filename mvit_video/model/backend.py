"""Which way a computation goes: through kernels of our own, or through the modules and functions of PyTorch."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

HAS_TRITON = find_spec("triton") is not None  # it comes with PyTorch's builds for GPUs on Linux
KERNEL_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def kernels_for(x: Tensor, compilable: bool = False) -> Any:
    """The module `kernels` where it can take x: on a GPU with Triton, in up to 32 bits, and not into an exported file.

    While a graph is compiled only for what says that it is an operator of a library; compilers fuse the rest themselves.
    """
    if x.device.type != "cuda" or x.dtype not in KERNEL_TYPES or not HAS_TRITON:
        return None
    if torch.compiler.is_exporting() or torch.jit.is_tracing() or (torch.compiler.is_compiling() and not compilable):
        return None
    from mvit_video.model import kernels

    return kernels


def is_plain(norm: nn.Module, *layers: nn.Module, kind: type[nn.Module] = nn.Linear) -> bool:
    """Whether a norm and layers are PyTorch's own, without hooks, so that their weights say all that they do."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooked = any(getattr(module, kind_of_hook) for module in (norm, *layers) for kind_of_hook in hooks)
    return not hooked and type(norm) is nn.LayerNorm and all(type(layer) is kind for layer in layers)


def compute_dtype(x: Tensor) -> torch.dtype:
    """What matrix products compute in: autocast's type where it is on, else x's."""
    device = x.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)  # the first is not for "meta"
    return torch.get_autocast_dtype(device) if on else x.dtype
