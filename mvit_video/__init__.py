"""Video action recognition around a spatiotemporal MViTv2.

What is exported here is imported when it is first used: `import mvit_video` alone imports neither torch nor a decoder.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mvit_video.version import __version__

if TYPE_CHECKING:
    from mvit_video.inference.predictor import Predictor
    from mvit_video.model.registry import Capabilities, build_model, list_models, register_model
    from mvit_video.model.weights import zoo
    from mvit_video.model.weights.checkpoints import load_weights

__all__ = [
    "Capabilities",
    "Predictor",
    "__version__",
    "build_model",
    "list_models",
    "load_weights",
    "register_model",
    "zoo",
]

_HOMES = {
    "Capabilities": "mvit_video.model.registry",
    "Predictor": "mvit_video.inference.predictor",
    "build_model": "mvit_video.model.registry",
    "list_models": "mvit_video.model.registry",
    "load_weights": "mvit_video.model.weights.checkpoints",
    "register_model": "mvit_video.model.registry",
    "zoo": "mvit_video.model.weights",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mvit_video' has no attribute '{name}'")
    home = import_module(_HOMES[name])
    return import_module(f"{_HOMES[name]}.zoo") if name == "zoo" else getattr(home, name)
