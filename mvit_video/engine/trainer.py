"""The training step, on a screen: forward, backward, and what the optimiser makes of it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from math import inf, isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mvit_video.config.schema import TrainSettings
from mvit_video.data.mixing import mix_generator
from mvit_video.engine.checkpoint import Learner
from mvit_video.engine.determinism import seed_step
from mvit_video.engine.distributed import everyones, rank, sum_on_device, world_size
from mvit_video.engine.ema import WeightAverage
from mvit_video.engine.losses import Objective
from mvit_video.engine.nonfinite import NonFiniteStep
from mvit_video.engine.optimizer import freeze_all_but_head, optimizer_from
from mvit_video.engine.parallel import (
    average_buffers,
    averaging_gradients,
    norm_of_gradient,
    pass_of_several,
    share_out,
)
from mvit_video.model.precision import Precision

MixClips = Callable[[Tensor, Tensor, np.random.Generator], tuple[Tensor, Tensor]]
"""(clips, labels, generator) -> clips and targets, such as `mixing.Mixer`."""


class Trainer:
    """One step at a time: what a step changes (`learner`), and what it reads.

    Args:
        learning_rate: step (from 0) -> rate.
        precision: fp32, bf16 or fp16, of the network by autocast.
        clips_per_pass: most clips that go through the network at once; None for no limit.
        clip_gradient: largest L2 norm of the whole step's gradient; None leaves it alone.
        compile: run the network through torch.compile.
        frozen: all but the head runs as in evaluation.
    """

    def __init__(
        self,
        learner: Learner,
        learning_rate: Callable[[int], float],
        mixer: MixClips,
        objective: Objective,
        device: torch.device,
        *,
        seed: int = 0,
        precision: str = "fp32",
        clips_per_pass: int | None = None,
        clip_gradient: float | None = None,
        compile: bool = False,
        frozen: bool = False,
    ) -> None:
        self.learner, self.learning_rate, self.mixer, self.objective = learner, learning_rate, mixer, objective
        self.device, self.seed, self.precision, self.frozen = device, seed, precision, frozen
        self.clips_per_pass, self.clip_gradient = clips_per_pass, clip_gradient
        self.shared = averaging_gradients(learner.model)
        dynamic = False if objective.resolutions else None  # one graph of all sizes takes minutes to trace
        self.network = torch.compile(self.shared, dynamic=dynamic) if compile else self.shared
        self.trained = [parameter for parameter in learner.model.parameters() if parameter.requires_grad]
        self.train_mode()

    def train_mode(self) -> None:
        """Dropout, drop path and batch statistics as training wants them: a linear probe's backbone has none of them."""
        self.learner.model.train(not self.frozen)

    def train_step(self, step: int, clips: Tensor, labels: Tensor) -> dict[str, float]:
        """One optimiser step on clips (B, C, T, H, W) and labels (B,). Returns loss, lr, gradient_norm, top1.

        The loss is the mean over all processes' clips and the norm that of its gradient before clipping, in however many
        passes and processes they are made; clips are mixed before they are split into passes. Raises NonFiniteStep, and
        changes nothing, where one of the two is NaN or Inf. The only wait for the device is where the numbers are read.
        """
        seed_step(self.seed, step, rank())
        lr = self._set_learning_rate(step)
        clips, labels = (tensor.to(self.device, non_blocking=True) for tensor in (clips, labels))
        clips, targets = self.mix_of_step(step)(clips, labels)
        self.learner.optimizer.zero_grad(set_to_none=True)
        shares = everyones(len(clips))
        statistics = batch_statistics(self.learner.model)
        losses, hits = self._passes(clips, targets, shares)
        self.learner.scaler.unscale_(self.learner.optimizer)
        norm = norm_of_gradient(self.trained)
        means = sum_on_device(torch.stack([losses.sum(), hits.sum()])) / sum(shares)
        loss, gradient_norm, top1 = torch.stack([means[0], norm, 100 * means[1]]).tolist()
        record = {"loss": loss, "lr": lr, "gradient_norm": gradient_norm, "top1": top1}
        if isfinite(loss) and isfinite(gradient_norm):
            self._update(norm)
        self.learner.scaler.update()
        if not (isfinite(loss) and isfinite(gradient_norm)):
            put_back(statistics)
            raise NonFiniteStep(step, record, losses.tolist(), overflow=isfinite(loss) and self._can_lower_scale())
        return record

    def _passes(self, clips: Tensor, targets: Tensor, shares: list[int]) -> tuple[Tensor, Tensor]:
        """Leave the gradient of the mean over all processes' clips; returns the losses and hits of this one's.

        All processes make equally many passes, since they wait for each other in them: one with fewer clips (`shares`)
        makes the rest with a black clip that counts for nothing. Processes average, hence divide by clips per process.
        """
        most, done = self.clips_per_pass or max(shares), [(clips.new_zeros(0), clips.new_zeros(0))]
        count = -(-max(shares) // most)
        for number in range(count):
            part = slice(number * most, (number + 1) * most)
            with pass_of_several(self.shared, last=number == count - 1):
                if len(clips[part]):
                    done.append(self._pass(clips[part], targets[part], sum(shares) / world_size()))
                else:
                    self._pass(clips.new_zeros(1, *clips.shape[1:]), targets.new_zeros(1, *targets.shape[1:]), inf)
        average_buffers(self.learner.model)
        losses, hits = (torch.cat(parts) for parts in zip(*done, strict=True))
        return losses, hits

    def _pass(self, clips: Tensor, targets: Tensor, step_clips: float) -> tuple[Tensor, Tensor]:
        """Add the gradient of some of a step's clips; returns the loss of each, and 1 where its best class is the target's."""
        parts = []
        for losses, logits in self.objective.parts(self.network, self._autocast, clips, targets):
            self.learner.scaler.scale(losses.sum() / step_clips).backward()
            parts.append((losses.detach(), logits))
        hits = parts[0][1].argmax(1) == targets.argmax(1)
        return torch.stack([losses for losses, _ in parts]).sum(0), hits.float()

    def mix_of_step(self, step: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """What mixes a step's (clips, labels) into clips and targets: the same each time it is called."""
        return lambda clips, labels: self.mixer(clips, labels, mix_generator(self.seed, step))

    def rehearse(self, clips: Tensor, targets: Tensor) -> None:
        """A pass forward and back for the sake of what it takes; its gradients are left in the network."""
        for losses, _ in self.objective.parts(self.network, self._autocast, clips, targets):
            losses.sum().backward()

    def _update(self, norm: Tensor) -> None:
        if self.clip_gradient is not None:
            nn.utils.clip_grads_with_norm_(self.trained, self.clip_gradient, norm)
        self.learner.scaler.step(self.learner.optimizer)

    def _set_learning_rate(self, step: int) -> float:
        lr = self.learning_rate(step)
        for group in self.learner.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        return lr

    def _autocast(self) -> AbstractContextManager[Any]:
        return Precision(self.precision, self.device).autocast()

    def _can_lower_scale(self) -> bool:
        """Whether an infinite fp16 gradient may be the loss scale's fault, which has just been lowered."""
        return self.learner.scaler.is_enabled() and self.learner.scaler.get_scale() >= 1


def batch_statistics(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The buffers that a pass changes, those of batch norms in training mode, each with a copy of what it holds."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    return [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]


def put_back(statistics: list[tuple[Tensor, Tensor]]) -> None:
    """The buffers as they were when `batch_statistics` was asked."""
    for buffer, before in statistics:
        buffer.copy_(before)


def learner_from(settings: TrainSettings, model: nn.Module, device: torch.device, precision: str) -> Learner:
    """A network on its device, with everything that training it needs."""
    if settings.trainable == "head":
        freeze_all_but_head(model)
    average = WeightAverage(model, settings.ema_decay) if settings.ema_decay is not None else None
    if settings.parallel == "fsdp":
        share_out([model] if average is None else [model, average.model], device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    return Learner(model, optimizer_from(settings, model), scaler, average)


def trainer_from(
    settings: TrainSettings,
    learner: Learner,
    learning_rate: Callable[[int], float],
    mixer: MixClips,
    objective: Objective,
    device: torch.device,
    precision: str,
) -> Trainer:
    return Trainer(
        learner,
        learning_rate,
        mixer,
        objective,
        device,
        seed=settings.seed,
        precision=precision,
        clips_per_pass=settings.clips_per_pass,
        clip_gradient=settings.clip_gradient,
        compile=settings.compile,
        frozen=settings.trainable == "head",
    )
