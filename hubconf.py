"""Entry points of `torch.hub.load(REPOSITORY, NAME)`: every network of mvit_video, and `from_pretrained`."""

from functools import partial

from mvit_video import build_model, list_models
from mvit_video.model.weights.convert import load_network

dependencies = ["torch", "av", "fvcore", "iopath", "pydantic", "rich", "safetensors", "yaml"]


def from_pretrained(source: str):
    """The network of a checkpoint: a file, an address, `hf://OWNER/NAME`, or a name that `mvit-video models` lists."""
    return load_network(source)[0]


for _name in list_models():
    if "/" not in _name:
        globals()[_name] = partial(build_model, _name)
        globals()[_name].__doc__ = f"{_name} with new weights; keyword arguments as in `mvit_video.build_model`."
