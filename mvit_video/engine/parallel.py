"""Data parallelism: a replica of the network in each process (DDP), or sharded weights (FSDP2).

With one process these functions leave the network as it is.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from mvit_video.engine.distributed import world_size
from mvit_video.model.registry import capabilities_of
from mvit_video.model.weights.card import ModelCard, model_from_card


def shard(networks: list[nn.Module], device: torch.device) -> None:
    """Shard parameters over the processes. A block's are gathered while it runs, the others' for a whole step."""
    if world_size() == 1:
        return
    mesh = init_device_mesh(device.type, (world_size(),))
    for network in networks:
        find_blocks = capabilities_of(network).blocks
        for block in find_blocks(network) if find_blocks else ():
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)


def is_sharded(network: nn.Module) -> bool:
    """Whether a network's parameters are sharded."""
    return any(isinstance(parameter, DTensor) for parameter in network.parameters())


def data_parallel(network: nn.Module) -> nn.Module:
    """Wrap the network so that its backward pass averages gradients over the processes."""
    if world_size() == 1 or is_sharded(network):
        return network
    return DistributedDataParallel(network, gradient_as_bucket_view=True)


def gradient_sync(network: nn.Module, last: bool) -> AbstractContextManager:
    """Context of a micro-batch: replicas exchange gradients only in the last one, shards in each, to save memory."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) and not last else nullcontext()


def average_buffers(network: nn.Module) -> None:
    """Average buffers, such as batch norm statistics, over the processes."""
    buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    if world_size() == 1 or not buffers:
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.all_reduce(flat)
    for buffer, part in zip(buffers, (flat / world_size()).split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))


def total_gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """L2 norm of the whole gradient, the same in all processes."""
    return whole(nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None]))


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor; every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather tensors on the CPU; every process must call this."""
    return {name: whole(tensor.detach()).cpu().contiguous() for name, tensor in tensors.items()}


def full_network(network: nn.Module, card: ModelCard) -> nn.Module:
    """The network itself, or a gathered copy of a sharded one; every process must call this."""
    if not is_sharded(network):
        return network
    copy = model_from_card(card)
    copy.load_state_dict(full_tensors(network.state_dict()))
    return copy.to(next(network.parameters()).device)


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """Shard a full tensor if `model` is sharded."""
    if not isinstance(model, DTensor) or tensor.shape != model.shape:
        return tensor
    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements)
