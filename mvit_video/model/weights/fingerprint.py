"""Whether two networks are the same."""

import hashlib

import torch


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 of all weights with their names: the same for the same network, whatever file it came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
