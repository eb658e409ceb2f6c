"""Video action recognition around a spatiotemporal MViTv2."""

from typing import TYPE_CHECKING, Any

from mvit_video.model.variants import build_model, list_models
from mvit_video.model.weights import zoo
from mvit_video.model.weights.load import load_weights
from mvit_video.version import __version__

if TYPE_CHECKING:
    from mvit_video.inference.predictor import Predictor

__all__ = ["Predictor", "__version__", "build_model", "list_models", "load_weights", "zoo"]


def __getattr__(name: str) -> Any:
    """The predictor brings the video decoder with it, so it is imported where it is first used."""
    if name == "Predictor":
        from mvit_video.inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'mvit_video' has no attribute '{name}'")
