"""Video action recognition around a spatiotemporal MViTv2."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mvit_video.version import __version__

if TYPE_CHECKING:
    from mvit_video.data.video.reader import VideoReader
    from mvit_video.inference.predictor import Predictor
    from mvit_video.model.variants import build_model, list_models
    from mvit_video.model.weights import zoo
    from mvit_video.model.weights.load import load_weights

__all__ = ["Predictor", "VideoReader", "__version__", "build_model", "list_models", "load_weights", "zoo"]

# Imported where they are first used: the processes that decode need neither torch nor the networks.
_MODULES = {
    "Predictor": "mvit_video.inference.predictor",
    "VideoReader": "mvit_video.data.video.reader",
    "build_model": "mvit_video.model.variants",
    "list_models": "mvit_video.model.variants",
    "load_weights": "mvit_video.model.weights.load",
}


def __getattr__(name: str) -> Any:
    if name == "zoo":
        return import_module("mvit_video.model.weights.zoo")
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'mvit_video' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
