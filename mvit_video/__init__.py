"""Video action recognition around a spatiotemporal MViTv2."""

from mvit_video.model.checkpoints import load_weights
from mvit_video.model.variants import build_model, list_models
from mvit_video.version import __version__

__all__ = ["__version__", "build_model", "list_models", "load_weights"]
