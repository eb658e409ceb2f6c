"""Triton launches on the current GPU, whatever its arguments lie on."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def on_its_device(launch: Callable[..., Any]) -> Callable[..., Any]:
    """`launch`, with the GPU of its first argument, a tensor, as the current one."""

    @wraps(launch)
    def guarded(first: Tensor, *rest: Any, **named: Any) -> Any:
        with torch.cuda.device_of(first):  # nothing happens where it lies elsewhere
            return launch(first, *rest, **named)

    return guarded
