"""A checkpoint with random weights, and scores that were never computed: for tests of what is done with them."""

from pathlib import Path

import numpy as np
from tiny_models import randomise

from mvit_video.config.load import load_config
from mvit_video.config.schema import Config
from mvit_video.evaluation.views import VideoScores
from mvit_video.model.weights.card import ModelCard, model_from_card
from mvit_video.model.weights.files import save_checkpoint

DEMO = Path(__file__).resolve().parents[1] / "configs/demo/motion.yaml"
INPUT = ["data.num_frames=4", "data.short_side=40", "data.crop_size=32", "data.workers=0"]


def settings(root: Path, *words: str) -> Config:
    return load_config(DEMO, [f"data.root={root}", *INPUT, *words])


def random_checkpoint(path: Path, config: Config, classes: tuple[str, ...]) -> Path:
    """The demonstration's network for the input of `settings`, with weights that make its answers differ."""
    card = ModelCard(
        name=config.model.name, arguments={}, classes=classes, preprocessing=config.data.input, protocol="2x3"
    )
    save_checkpoint(path, randomise(model_from_card(card), seed=4), card)
    return path


def made_up_scores(videos: int = 60, classes: int = 6, seed: int = 0, multi_label: bool = False) -> VideoScores:
    """Better than chance, with two videos that could not be decoded and one name twice."""
    rng = np.random.default_rng(seed)
    labels = np.random.default_rng(99).integers(classes, size=videos)  # the same for every seed
    logits = rng.standard_normal((videos, classes)) + 2 * np.eye(classes)[labels]
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    decoded = np.ones(videos, bool)
    decoded[[3, 17]] = False
    scores[~decoded] = 0
    names = [f"val/vidéo {row}.mp4" for row in range(videos - 1)] + ["val/vidéo 0.mp4"]
    labels[-1] = labels[0]
    truth = np.eye(classes, dtype=bool)[labels] | np.eye(classes, dtype=bool)[(labels + 1) % classes]
    return VideoScores(names, truth if multi_label else labels, scores.astype(np.float32), decoded)
