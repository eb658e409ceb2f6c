"""A predictor of random weights that costs nothing, for tests of everything but what it says."""

import torch
from tiny_models import randomise
from torch import nn

from mvit_video import build_model
from mvit_video.config.schema import InputSettings
from mvit_video.data.synthetic import CLASSES
from mvit_video.inference.predictor import Predictor
from mvit_video.model.weights.card import ModelCard

NANO = InputSettings(num_frames=8, sampling_rate=3, target_fps=15.0, short_side=48, crop_size=48)


def nano_card(sampling: str = "dense", protocol: str = "1x1") -> ModelCard:
    preprocessing = NANO.model_copy(update={"sampling": sampling})
    return ModelCard(
        name="mvitv2_nano_8x3", arguments={}, classes=CLASSES, preprocessing=preprocessing, protocol=protocol
    )


def nano_model(seed: int = 0) -> nn.Module:
    return randomise(build_model("mvitv2_nano_8x3", num_classes=len(CLASSES)), seed)


def nano_predictor(sampling: str = "dense", protocol: str = "1x1", model: nn.Module | None = None) -> Predictor:
    return Predictor(model or nano_model(), nano_card(sampling, protocol), torch.device("cpu"))
