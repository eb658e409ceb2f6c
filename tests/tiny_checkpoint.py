"""A checkpoint of a network of a few thousand parameters, whose answers differ clearly from video to video."""

from pathlib import Path

from tiny_models import SMALL, randomise

from mvit_video.config.schema import InputSettings
from mvit_video.model.weights.card import ModelCard, model_from_card
from mvit_video.model.weights.files import save_checkpoint


def write_tiny(path: Path, sampling: str = "dense", seed: int = 3, **arguments) -> Path:
    """5 classes, 8 frames of 32×40 pixels, 2 clips (of a whole video 1) × 3 crops; two stages of 16 and 32 channels."""
    preprocessing = InputSettings(
        num_frames=8, sampling_rate=2, sampling=sampling, short_side=44, crop_size=(32, 40), mean=(0.4, 0.45, 0.5)
    )
    arguments = {"kv_stride": (1, 4, 4), "depths": SMALL["depths"], "embed_dim": SMALL["embed_dim"]} | arguments
    card = ModelCard(
        name="mvitv2_s_16x4",
        arguments=arguments,
        classes=("rise", "fall", "größer", "turn", "stay"),
        preprocessing=preprocessing,
        protocol="1x3" if sampling == "segment" else "2x3",
    )
    save_checkpoint(path, randomise(model_from_card(card), seed), card)
    return path
