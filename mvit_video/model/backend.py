"""Which way a computation goes: through kernels of our own, or through the modules and functions of PyTorch."""

from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor, nn

HAS_TRITON = find_spec("triton") is not None  # it comes with PyTorch's builds for GPUs on Linux
KERNEL_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def kernels_for(x: Tensor, compilable: bool = False) -> ModuleType | None:
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
