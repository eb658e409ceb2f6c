"""Several processes of one program, as torchrun starts them: who is who, and what all of them know together.

Without torchrun there is one process, and everything here is as simple as that. Nothing is pickled.
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

PATIENCE = timedelta(hours=2)  # how long the others wait for the slowest: shards of videos take unequal times


@contextmanager
def joined_processes() -> Iterator[None]:
    """Inside, the processes that torchrun started know each other; `cuda` is then each one's own GPU.

    An error in one of them ends them all: the others lose it while they wait for it, or have the same error. Only the
    first one leaves with its error; those after it leave quietly.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    store, rank, world_size = next(iter(rendezvous("env://", timeout=PATIENCE)))
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        # torchrun gives processes that it starts again the store of those that died, with their addresses in it.
        # (Several machines count restarts differently: there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 gives a new store.)
        store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=PATIENCE)
    try:
        yield
    except Exception as reason:  # the group is not destroyed: that would wait for the others
        if _is_known(store):
            raise SystemExit(getattr(reason, "exit_code", 1)) from None
        raise
    dist.destroy_process_group()


def _is_known(store: dist.Store) -> bool:
    """Whether another process has an error already; where the store is gone, everything has been said."""
    try:
        return store.add("mvit_video/errors", 1) > 1
    except RuntimeError:
        return True


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def processes_here() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes files and speaks to the user."""
    return rank() == 0


def summed(tensor: Tensor) -> Tensor:
    """The sum of all processes' tensors, which have the same shape; on the CPU."""
    total = tensor.cpu().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def sum_on_device(tensor: Tensor) -> Tensor:
    """The sum of all processes' tensors, where they are."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def everyones(number: int) -> list[int]:
    """Every process's number, in the order of ranks."""
    numbers = torch.zeros(world_size(), dtype=torch.int64)
    numbers[rank()] = int(number)
    return summed(numbers).tolist()


def gathered(value: Any) -> list:
    """Every process's value, in the order of ranks; whatever JSON can hold."""
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
