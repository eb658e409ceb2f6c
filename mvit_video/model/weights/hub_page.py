"""The page of a published model, README.md on the Hub: what it is, how it was trained and measured, how to use it."""

import json
from pathlib import Path
from typing import Any

import yaml

from mvit_video.model.weights.card import ModelCard

RESULTS, SETTINGS = "evaluation/results.json", "config.yaml"
TOLD = ("train.epochs", "train.clips_per_step", "train.base_lr", "train.weight_decay", "train.seed", "model.weights")


def hub_page(card: ModelCard, run: Path | None = None) -> str:
    """Markdown with the Hub's metadata in front; `run` is a folder of `train`, whose settings and evaluation it tells."""
    metadata = {"library_name": "mvit_video", "pipeline_tag": "video-classification", "tags": ["video", card.name]}
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n",
        f"# {card.name}, {len(card.classes)} classes\n",
        "A video classification network of mvit_video. Its file holds the weights, the class names and the "
        "preprocessing; it is a safetensors file and holds no code.\n",
        _use(),
        _input(card),
        *(_training(run) if run else ()),
        _results(card, run),
        _classes(card.classes),
        "## Licence\n\nNot stated. Add `license:` to the head of this page; weights that were fine-tuned inherit the terms of "
        "those that they started from, and of the videos.\n",
    ]
    return "\n".join(parts)


def _use() -> str:
    return (
        "## How to use it\n\n```sh\nmvit-video predict video.mp4 --checkpoint hf://OWNER/NAME\n```\n\n"
        "```python\nfrom mvit_video import Predictor\n\n"
        '[prediction] = Predictor.from_checkpoint("hf://OWNER/NAME")("video.mp4")\n'
        "print(prediction.label, prediction.score)\n```\n"
    )


def _input(card: ModelCard) -> str:
    given = card.preprocessing
    height, width = given.crop_hw
    sampling = (
        f"{given.sampling_rate} apart at {given.target_fps:g} fps"
        if given.sampling == "dense"
        else "one of each segment"
    )
    return (
        f"## Input\n\n{given.num_frames} frames, {sampling}, RGB, short side {given.short_side}, crop {height}×{width}, "
        f"mean {list(given.mean)}, std {list(given.std)}; {card.protocol} views (clips × crops).\n"
    )


def _training(run: Path) -> list[str]:
    """The settings that matter of the run; paths of data are left out, since they are of its machine."""
    file = run / SETTINGS
    if not file.is_file():
        return []
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    rows = [(key, _at(settings, key)) for key in TOLD]
    data = Path(str(_at(settings, "data.root"))).name
    lines = [f"- data: `{data}`", *(f"- `{key}`: {value}" for key, value in rows if value is not None)]
    return ["## Training\n\n" + "\n".join(lines) + "\n"]


def _at(settings: Any, key: str) -> Any:
    for name in key.split("."):
        settings = settings.get(name) if isinstance(settings, dict) else None
    return settings


def _results(card: ModelCard, run: Path | None) -> str:
    file = run / RESULTS if run else None
    if file is not None and file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
        rows = [
            f"| {name} | {found[name]:.1f} % | {low:.1f} to {high:.1f} |"
            for name, (low, high) in found["intervals_95"].items()
        ]
        about = f"{found['num_videos']} held-out videos, {found['protocol']} views; videos that cannot be decoded count as wrong."
        return f"## Results\n\n{about}\n\n| | | 95 % interval |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    if card.measured is not None:
        numbers = ", ".join(f"{name} {value:.1f} %" for name, value in card.measured.percent.items())
        return (
            f"## Results\n\n{numbers} of {card.measured.num_videos} held-out videos, {card.measured.protocol} views.\n"
        )
    return "## Results\n\nNot measured.\n"


def _classes(names: tuple[str, ...]) -> str:
    shown = ", ".join(name.replace("|", r"\|").replace("\n", " ") for name in names[:50])
    return f"## Classes\n\n{shown}{f' and {len(names) - 50} more' if len(names) > 50 else ''}\n"
