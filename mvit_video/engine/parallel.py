"""One network in several processes: a whole one in each (DDP), or its weights shared out among them (FSDP2).

In one process all of this leaves the network as it is.
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


def share_out(networks: list[nn.Module], device: torch.device) -> None:
    """Leave each process its part of every parameter. A block's are put together while it runs, the others' for a whole step."""
    if world_size() == 1:
        return
    mesh = init_device_mesh(device.type, (world_size(),))
    for network in networks:
        find_blocks = capabilities_of(network).blocks
        for block in find_blocks(network) if find_blocks else ():
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)


def is_sharded(network: nn.Module) -> bool:
    """Whether `share_out` has been at work."""
    return any(isinstance(parameter, DTensor) for parameter in network.parameters())


def averaging_gradients(network: nn.Module) -> nn.Module:
    """What to call in a training step: its backward pass leaves the mean of all processes' gradients in each of them."""
    if world_size() == 1 or is_sharded(network):
        return network
    return DistributedDataParallel(network, gradient_as_bucket_view=True)


def pass_of_several(network: nn.Module, last: bool) -> AbstractContextManager:
    """Around a forward and backward pass: copies exchange gradients in the last one only, parts in each, to save memory."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) and not last else nullcontext()


def average_buffers(network: nn.Module) -> None:
    """Give every process the mean of all processes' buffers, such as the statistics of batch norms."""
    buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    if world_size() == 1 or not buffers:
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.all_reduce(flat)
    for buffer, part in zip(buffers, (flat / world_size()).split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))


def norm_of_gradient(parameters: list[nn.Parameter]) -> Tensor:
    """The L2 norm of the whole gradient; the same in all processes."""
    return whole(nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None]))


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all of its parts; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All of them whole, on the CPU; every process must ask."""
    return {name: whole(tensor.detach()).cpu().contiguous() for name, tensor in tensors.items()}


def whole_network(network: nn.Module, card: ModelCard) -> nn.Module:
    """The network itself, or a whole copy of one that is shared out among the processes; every process must ask."""
    if not is_sharded(network):
        return network
    copy = model_from_card(card)
    copy.load_state_dict(whole_tensors(network.state_dict()))
    return copy.to(next(network.parameters()).device)


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole tensor, cut into parts if `model` is."""
    if not isinstance(model, DTensor) or tensor.shape != model.shape:
        return tensor
    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements)
