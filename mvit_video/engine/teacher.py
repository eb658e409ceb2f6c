"""Teacher for distillation: adapts clips to the teacher's input, and its logits to the student's classes."""

# B clips, K classes

import torch
from torch import Tensor, nn

from mvit_video.config.schema import InputSettings
from mvit_video.download import known_sha256
from mvit_video.engine.losses import resized
from mvit_video.errors import ConfigError
from mvit_video.model.weights.card import ModelCard
from mvit_video.model.weights.convert import load_network
from mvit_video.model.weights.load import checkpoint_file


class Teacher:
    """Maps the student's clips (B, C, T, H, W) to logits (B, K) in the student's class order, without a gradient.

    The network stays in evaluation mode. Clips are renormalised and resized if the two inputs differ. Raises ConfigError
    if classes or frames differ.

    Args:
        source: its name in errors.
        digest: sha256 of its file, compared on resuming.
    """

    def __init__(self, model: nn.Module, card: ModelCard, student: ModelCard, source: str, digest: str = "") -> None:
        if card.multi_label:
            raise ConfigError(
                f"train.teacher {source}: was trained for several labels per video: use a teacher for one, or set train.teacher=null"
            )
        _check_classes(card.classes, student.classes, source)
        _check_frames(card.preprocessing, student.preprocessing, source)
        self.model, self.digest = model.eval().requires_grad_(False), digest
        device = next(model.parameters()).device
        self.size = card.preprocessing.crop_hw
        self.order = None
        if card.classes != student.classes:
            self.order = torch.tensor([card.classes.index(name) for name in student.classes], device=device)
        self.values = _conversion(student.preprocessing, card.preprocessing, device)

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        if self.values is not None:
            factor, offset = self.values
            clips = clips * factor + offset
        if clips.shape[-2:] != self.size:
            clips = resized(clips, *self.size)
        logits = self.model(clips)
        return logits if self.order is None else logits[:, self.order]


def read_teacher(source: str, student: ModelCard, device: torch.device) -> Teacher:
    """Load the teacher of `train.teacher`: a checkpoint of any known format, or a zoo name."""
    model, card = load_network(source)
    return Teacher(model.to(device), card, student, source, known_sha256(checkpoint_file(source)))


def _conversion(student: InputSettings, teacher: InputSettings, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Factor and offset (C, 1, 1, 1) that renormalise the student's values for the teacher; None if they are the same.

    x = s·σ + μ of one is (x − μ′) / σ′ of the other.
    """
    if (student.mean, student.std) == (teacher.mean, teacher.std):
        return None
    mean, std, other_mean, other_std = (
        torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)
        for values in (student.mean, student.std, teacher.mean, teacher.std)
    )
    factor, offset = std / other_std, (mean - other_mean) / other_std
    return factor.float().to(device), offset.float().to(device)


def _check_classes(teacher: tuple[str, ...], student: tuple[str, ...], source: str) -> None:
    """Raise ConfigError unless both have the same class names, in any order."""
    if sorted(teacher) != sorted(student):
        lacking = next((name for name in student if name not in teacher), None)
        what = (
            f"lacks the class '{lacking}'"
            if lacking
            else f"has the extra class '{next(n for n in teacher if n not in student)}'"
        )
        raise ConfigError(
            f"train.teacher {source}: {what} ({len(teacher)} classes, the training list {len(student)}): a teacher needs "
            "the same class names as data.train"
        )


def _check_frames(teacher: InputSettings, student: InputSettings, source: str) -> None:
    names = ["num_frames", "sampling"] + ["sampling_rate", "dense_step", "target_fps"] * (student.sampling == "dense")
    for name in names:
        theirs, ours = getattr(teacher, name), getattr(student, name)
        if theirs != ours:
            raise ConfigError(
                f"train.teacher {source}: was trained with {name} {theirs}, but data.{name} is {ours}: make them "
                "equal, or use another teacher"
            )
