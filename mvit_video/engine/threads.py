"""How many of a CPU's cores compute a training step: the others decode its clips."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mvit_video.config.schema import Config
from mvit_video.engine.plan import giga_multiply_adds

DECODING = 0.06  # 10⁹ multiply-adds that take a core as long to train as a clip to decode (docs/performance.md)
CHOSEN = "OMP_NUM_THREADS"


@contextmanager
def fitting_threads(config: Config, device: torch.device) -> Iterator[str]:
    """Inside, PyTorch computes with `threads_for` threads on a CPU; yields a sentence about them if they are fewer, else "".

    OMP_NUM_THREADS takes precedence. Networks of unknown cost keep all threads.
    """
    cores = torch.get_num_threads()
    cost = giga_multiply_adds(config) if device.type == "cpu" and cores > 1 and CHOSEN not in os.environ else None
    threads = cores if cost is None else threads_for(cost, cores)
    sentence = f"{threads} of {cores} threads compute, the others decode ({CHOSEN} sets another number)"
    torch.set_num_threads(threads)
    try:
        yield sentence if threads < cores else ""
    finally:
        torch.set_num_threads(cores)


def threads_for(cost: float, cores: int) -> int:
    """Threads of a network of `cost` 10⁹ multiply-adds a clip: its share of all work, decoding included.

    Threads that wait for one that decoding has displaced take longer than fewer threads. Depends on the network alone, so
    that a resumed run computes the same bits.

    >>> threads_for(0.052, 2), threads_for(64.2, 2), threads_for(0.052, 16)
    (1, 2, 7)
    """
    return max(round(cores * cost / (cost + DECODING)), 1)
