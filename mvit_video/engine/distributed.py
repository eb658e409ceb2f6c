"""Processes started by torchrun: their ranks, and collectives over their values.

Without torchrun there is one process, and these functions are trivial. Nothing is pickled.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

TIMEOUT = timedelta(hours=2)  # for the slowest process: shards of videos take unequal times


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group of torchrun; inside, `cuda` is this process's own GPU.

    An error in one process stops all of them: the others lose it while they wait, or have the same error. Only the first
    process to fail reports its error; the others exit silently.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    store, rank, world_size = next(iter(rendezvous("env://", timeout=TIMEOUT)))
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        # torchrun gives processes that it starts again the store of those that died, with their addresses in it.
        # (Several machines count restarts differently: there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 gives a new store.)
        store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    try:
        yield
    except Exception as reason:  # the group is not destroyed: that would wait for the others
        if _already_reported(store):
            raise SystemExit(getattr(reason, "exit_code", 1)) from None
        raise
    dist.destroy_process_group()


def _already_reported(store: dist.Store) -> bool:
    """Whether another process has already reported an error; also true if the store is gone."""
    try:
        return store.add("mvit_video/errors", 1) > 1
    except RuntimeError:
        return True


def rank() -> int:
    """Rank of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world_size() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


def is_rank_zero() -> bool:
    """Whether this is rank 0, which writes files and prints."""
    return rank() == 0


def all_reduced(tensor: Tensor) -> Tensor:
    """Sum of all processes' tensors of one shape, on the CPU."""
    total = tensor.cpu().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def sum_on_device(tensor: Tensor) -> Tensor:
    """Sum of all processes' tensors, in place on their devices."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_gather_int(number: int) -> list[int]:
    """Every process's integer, in rank order."""
    numbers = torch.zeros(world_size(), dtype=torch.int64)
    numbers[rank()] = int(number)
    return all_reduced(numbers).tolist()


def all_gather_json(value: Any) -> list:
    """Every process's value, in rank order; anything that JSON can represent."""
    if world_size() == 1:
        return [value]
    content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    dist.all_gather(lengths, torch.tensor([len(content)]))
    padded = torch.zeros(max(int(length) for length in lengths), dtype=torch.uint8)
    padded[: len(content)] = content
    pieces = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(pieces, padded)
    return [json.loads(piece[: int(length)].numpy().tobytes()) for piece, length in zip(pieces, lengths, strict=True)]
