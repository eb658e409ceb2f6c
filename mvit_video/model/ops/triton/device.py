"""Triton launches on the current GPU, even if its arguments are on another one."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def on_tensor_device(launch: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the GPU of the first argument, a tensor, is the current one during the call."""

    @wraps(launch)
    def guarded(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.cuda.device_of(first):  # a no-op for other devices
            return launch(first, *args, **kwargs)

    return guarded
