"""Video action recognition around a spatiotemporal MViTv2."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mvit_video.version import __version__

if TYPE_CHECKING:
    from mvit_video.api import ProbeResult, TrainResult, evaluate, pretrain, probe, train
    from mvit_video.config.schema import AugmentationSettings, InputSettings
    from mvit_video.data.lists.formats import Listing, Row, register_list_reader
    from mvit_video.data.make_loader import make_loader
    from mvit_video.data.transform_registry import register_transform
    from mvit_video.data.video.reader import VideoReader
    from mvit_video.engine.losses import register_loss
    from mvit_video.engine.trackers import register_tracker
    from mvit_video.evaluation.results import EvaluationResult
    from mvit_video.inference.export import register_exporter
    from mvit_video.inference.predictor import Predictor
    from mvit_video.model.registry import Capabilities, build_model, list_models, register_model
    from mvit_video.model.weights import zoo
    from mvit_video.model.weights.card import ModelCard
    from mvit_video.model.weights.files import save_checkpoint
    from mvit_video.model.weights.load import load_weights

__all__ = [
    "AugmentationSettings",
    "Capabilities",
    "EvaluationResult",
    "InputSettings",
    "Listing",
    "ModelCard",
    "Predictor",
    "ProbeResult",
    "Row",
    "TrainResult",
    "VideoReader",
    "__version__",
    "build_model",
    "evaluate",
    "list_models",
    "load_weights",
    "make_loader",
    "pretrain",
    "probe",
    "register_exporter",
    "register_list_reader",
    "register_loss",
    "register_model",
    "register_tracker",
    "register_transform",
    "save_checkpoint",
    "train",
    "zoo",
]

# Imported where they are first used: the processes that decode need neither torch nor the networks.
_MODULES = {
    "AugmentationSettings": "mvit_video.config.schema",
    "Capabilities": "mvit_video.model.registry",
    "Listing": "mvit_video.data.lists.formats",
    "ModelCard": "mvit_video.model.weights.card",
    "Predictor": "mvit_video.inference.predictor",
    "Row": "mvit_video.data.lists.formats",
    "register_list_reader": "mvit_video.data.lists.formats",
    "EvaluationResult": "mvit_video.evaluation.results",
    "InputSettings": "mvit_video.config.schema",
    "ProbeResult": "mvit_video.api",
    "TrainResult": "mvit_video.api",
    "VideoReader": "mvit_video.data.video.reader",
    "build_model": "mvit_video.model.registry",
    "evaluate": "mvit_video.api",
    "list_models": "mvit_video.model.registry",
    "load_weights": "mvit_video.model.weights.load",
    "make_loader": "mvit_video.data.make_loader",
    "pretrain": "mvit_video.api",
    "probe": "mvit_video.api",
    "register_model": "mvit_video.model.registry",
    "register_exporter": "mvit_video.inference.export",
    "register_loss": "mvit_video.engine.losses",
    "register_tracker": "mvit_video.engine.trackers",
    "register_transform": "mvit_video.data.transform_registry",
    "save_checkpoint": "mvit_video.model.weights.files",
    "train": "mvit_video.api",
}


def __getattr__(name: str) -> Any:
    if name == "zoo":
        return import_module("mvit_video.model.weights.zoo")
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'mvit_video' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
