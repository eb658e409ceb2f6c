"""Training losses: cross-entropy or registered ones, multi-resolution training, and distillation.

Several resolutions: arXiv 2212.00776 (ResFormer). Distillation: arXiv 2012.12877 (DeiT), without its distillation token.
"""

# B clips, K classes, D numbers of a feature. Clips (B, C, T, H, W); logits and targets (B, K).

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvit_video.config.schema import Config, TrainSettings, height_width
from mvit_video.errors import ConfigError, clipped, did_you_mean
from mvit_video.model.registry import lacks, model_entry
from mvit_video.plugins import Registry, calling_module, entered

TeacherLogits = Callable[[Tensor], Tensor]
Loss = Callable[..., Tensor]
FOCUS = 2.0  # γ of the focal loss

MULTI_LABEL = "binary_cross_entropy"  # the loss for videos with several labels

LOSSES: Registry[Loss] = Registry("loss")


@overload
def register_loss(name: str) -> Callable[[Loss], Loss]: ...


@overload
def register_loss(name: str, loss: Loss) -> Loss: ...


def register_loss(name: str, loss: Loss | None = None) -> Loss | Callable[[Loss], Loss]:
    """Register a loss for `train.loss`; also a decorator: `@register_loss("mine")`.

    Args:
        loss: (logits (B, K), targets (B, K)) -> the loss of each clip (B,). Both are float32; targets sum to 1, and are mixed and
            smoothed as the settings say. The step minimises the mean. One that also has an argument named `class_shares`
            is given each class's share (K,) of the videos that an epoch shows.

    Raises ConfigError for a name that is taken.
    """
    return entered(LOSSES, name, loss, calling_module())


@register_loss("cross_entropy")
def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


@register_loss("focal")
def focal(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy that weights easy examples down by (1 − p)²: arXiv 1708.02002, without its class weights."""
    log = logits.log_softmax(1)
    return -(targets * (1 - log.exp()) ** FOCUS * log).sum(1)


@register_loss("logit_adjusted")
def logit_adjusted(logits: Tensor, targets: Tensor, class_shares: Tensor) -> Tensor:
    """Cross-entropy of logits + log of each class's share, which the network then need not learn: arXiv 2007.07314, eq. 10, τ = 1."""
    smallest = class_shares[class_shares > 0].min()
    return cross_entropy(logits + class_shares.clamp(min=smallest).log(), targets)


@register_loss(MULTI_LABEL)
def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """For several labels: the mean over the classes of −t·log σ(z) − (1 − t)·log(1 − σ(z)), with targets t from 0 to 1."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)


@dataclass(frozen=True)
class ShownClasses:
    """The classes of a run, and how many videos of each an epoch shows: counts (K,) float32, where the logits are."""

    names: Sequence[str]
    counts: Tensor

    @property
    def shares(self) -> Tensor:
        return self.counts / self.counts.sum()


class Objective:
    """Computes the loss of each clip, one resolution after the other. `counts` names what `hits` counts in a step's record.

    Args:
        loss: (logits, targets) (B, K) -> (B,).
        resolutions: smaller sizes that clips are also trained at, in falling order; needs the network's feature.
        teacher: clips -> logits without a gradient, for the network's own classes; None trains on labels only.
        hard: distil the teacher's top class instead of its distribution.
        distillation_weight: weight of the teacher's loss.
        temperature: divides the logits of both networks in soft distillation.
        multi_label: clips have several labels, so that no top class is counted.
    """

    def __init__(
        self,
        loss: Loss = cross_entropy,
        resolutions: Sequence[int | tuple[int, int]] = (),
        teacher: TeacherLogits | None = None,
        hard: bool = False,
        distillation_weight: float = 0.5,
        temperature: float = 1.0,
        multi_label: bool = False,
    ) -> None:
        self.counts = None if multi_label else "top1"
        self.loss, self.resolutions, self.teacher = loss, tuple(resolutions), teacher
        self.hard, self.distillation_weight, self.temperature = hard, distillation_weight, temperature

    def parts(
        self,
        network: nn.Module | Callable[..., Any],
        autocast: Callable[[], AbstractContextManager[Any]],
        clips: Tensor,
        targets: Tensor,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(losses (B,), logits) of each resolution, the clips' own first; the loss is the sum of all parts.

        Backpropagate each part before requesting the next: only one resolution is then in memory.
        Networks run under `autocast`, losses are in single precision.
        """
        sizes = self.resolutions
        with autocast():
            teacher_logits = self.teacher(clips).float() if self.teacher is not None else None
        larger: Tensor | None = None
        feature: Any
        for size in (None, *sizes):
            shown = clips if size is None else resized(clips, *height_width(size))
            with autocast():
                logits, feature = network(shown, with_feature=True) if sizes else (network(shown), None)
            logits = logits.float()
            losses = self._losses(logits, targets, teacher_logits)
            if larger is not None:
                losses = losses + feature_distance(feature.float(), larger)
            larger = feature.detach().float() if sizes else None
            yield losses / (1 + len(sizes)), logits.detach()

    def hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Whether each clip's top class is the target's: (B,)."""
        return (logits.argmax(1) == targets.argmax(1)).float()

    def _losses(self, logits: Tensor, targets: Tensor, teacher_logits: Tensor | None) -> Tensor:
        """(B,): the labels' loss, or with a teacher the weighted mean of both."""
        losses = self.loss(logits, targets)
        if teacher_logits is None:
            return losses
        if self.hard:
            distilled = F.cross_entropy(logits, teacher_logits.argmax(1), reduction="none")
        else:
            distilled = soft_distillation(logits, teacher_logits, self.temperature)
        return torch.lerp(losses, distilled, self.distillation_weight)


def objective_from(
    settings: TrainSettings, teacher: TeacherLogits | None = None, shown: ShownClasses | None = None
) -> Objective:
    """Build the objective of the settings. Raises ConfigError for an unknown loss, and weights of unknown classes."""
    loss, hard = checked_loss(settings.loss, shown), settings.distillation == "hard"
    if settings.class_weights is not None and shown is not None:
        loss = weighted(loss, class_weights(settings.class_weights, shown))
    distillation = hard, settings.distillation_weight, settings.distillation_temperature
    return Objective(loss, settings.resolutions, teacher, *distillation, multi_label=is_multi_label(settings))


def is_multi_label(settings: TrainSettings) -> bool:
    """Whether a clip may have several labels: its target is 1 for each of them, and its scores are sigmoids."""
    return settings.objective == "labels" and settings.loss == MULTI_LABEL


def check_one_label(config: Config) -> None:
    """Raise ConfigError for settings that need one label per video, where the loss is for several."""
    asked = {
        "data.sampling_balance": (config.data.sampling_balance, "none"),
        "train.class_weights": (config.train.class_weights, None),
        "train.teacher": (config.train.teacher, None),
    }
    for name, (value, off) in asked.items():
        if is_multi_label(config.train) and value != off:
            raise ConfigError(
                f"{name} = {value} needs one label per video, but train.loss={MULTI_LABEL} is for several: set "
                f"{name}={off or 'null'}, or train with one label per video and train.loss=cross_entropy"
            )


def checked_loss(name: str, shown: ShownClasses | None = None) -> Loss:
    """Wrap a registered loss; it raises ConfigError if it does not return one number per clip."""
    loss = LOSSES.get(name)
    more = {"class_shares": shown.shares} if shown and "class_shares" in inspect.signature(loss).parameters else {}

    def checked(logits: Tensor, targets: Tensor) -> Tensor:
        losses = loss(logits, targets, **more)
        if losses.shape != (len(logits),):
            raise ConfigError(
                f"train.loss = {name}: returned shape {tuple(losses.shape)} for {len(logits)} clips, expected one loss per clip: "
                f"fix the plugin '{LOSSES.plugin_of(name)}'"
            )
        return losses

    return checked


def class_weights(given: Mapping[str, float] | str, shown: ShownClasses) -> Tensor:
    """The weight (K,) of each class. "balanced" is the inverse of its clips in an epoch, with mean 1 over them; 0 for none."""
    if isinstance(given, str):
        classes = (shown.counts > 0).sum()
        return torch.where(shown.counts > 0, shown.counts.sum() / classes / shown.counts.clamp(min=1), 0.0)
    for name in given:
        if name not in shown.names:
            raise ConfigError(
                f"train.class_weights names '{name}', which is no class of data.train{did_you_mean(name, shown.names)}: "
                f"its classes are {clipped(', '.join(shown.names))}"
            )
    return torch.tensor([float(given.get(name, 1.0)) for name in shown.names], device=shown.counts.device)


def weighted(loss: Loss, weights: Tensor) -> Loss:
    """`loss` times the mean weight of each clip's targets."""
    return lambda logits, targets: loss(logits, targets) * (targets @ weights)


def soft_distillation(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """τ² · KL(teacher ‖ student) of the distributions at temperature τ: (B,), summed over the classes."""
    mine, theirs = ((answer / temperature).log_softmax(1) for answer in (logits, teacher_logits))
    return F.kl_div(mine, theirs, reduction="none", log_target=True).sum(1) * temperature**2


def feature_distance(feature: Tensor, larger: Tensor) -> Tensor:
    """Smooth L1 (quadratic below 1) between features (B, D): (B,), the mean over D."""
    return F.smooth_l1_loss(feature, larger, reduction="none").mean(1)


def resized(clips: Tensor, height: int, width: int) -> Tensor:
    """Resize clips (B, C, T, H, W): bilinear with anti-aliasing, frame by frame."""
    planes = F.interpolate(clips.flatten(1, 2), size=(height, width), mode="bilinear", antialias=True)
    return planes.view(*clips.shape[:3], height, width)


def check_resolutions(name: str, settings: TrainSettings) -> None:
    """Raise ConfigError for several resolutions and a network that does not return the feature before its head."""
    if settings.resolutions and not model_entry(name).capabilities.feature:
        what = "does not return the feature before its head, which train.resolutions needs"
        raise lacks(name, "feature", what, "set it to [], or train one of our own networks, such as mvitv2_s_16x4")
