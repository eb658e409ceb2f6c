"""The training step: forward, backward, optimiser."""

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
from mvit_video.engine.distributed import all_gather_int, rank, sum_on_device, world_size
from mvit_video.engine.ema import WeightAverage
from mvit_video.engine.losses import Objective
from mvit_video.engine.masked import MaskedObjective
from mvit_video.engine.nonfinite import NonFiniteStep
from mvit_video.engine.optimizer import freeze_all_but_head, optimizer_from
from mvit_video.engine.parallel import (
    average_buffers,
    data_parallel,
    gradient_sync,
    shard,
    total_gradient_norm,
)
from mvit_video.model.ops.convolution import replace_conv3d
from mvit_video.model.precision import Precision

MixClips = Callable[[Tensor, Tensor, np.random.Generator], tuple[Tensor, Tensor]]
"""(clips, labels or masks, generator) -> clips and targets, such as `mixing.Mixer` and `masked.hidden_weights`."""


class Trainer:
    """Runs training steps on a `learner`.

    Args:
        learning_rate: step (from 0) -> rate.
        precision: autocast precision of the network: fp32, bf16 or fp16.
        clips_per_pass: micro-batch size; None for no limit.
        clip_gradient: maximum L2 norm of a step's gradient; None does not clip.
        compile: run the network through torch.compile.
        frozen: everything but the head stays in evaluation mode.
    """

    def __init__(
        self,
        learner: Learner,
        learning_rate: Callable[[int], float],
        mixer: MixClips,
        objective: Objective | MaskedObjective,
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
        self.shared = data_parallel(learner.model)
        dynamic = False if objective.resolutions else None  # one graph of all sizes takes minutes to trace
        self.network = torch.compile(self.shared, dynamic=dynamic) if compile else self.shared
        self.trained = [parameter for parameter in learner.model.parameters() if parameter.requires_grad]
        self.train_mode()

    def train_mode(self) -> None:
        """Put the network in training mode; the frozen backbone of a linear probe stays in evaluation mode."""
        self.learner.model.train(not self.frozen)

    def train_step(self, step: int, clips: Tensor, labels: Tensor) -> dict[str, float]:
        """Run one optimiser step on clips (B, C, T, H, W) and labels (B,); return loss, lr, gradient_norm, top1.

        In masked pre-training labels are masks (B, t, h, w), and there is no top1.

        The loss is the mean over all processes' clips, the norm that of its gradient before clipping, whatever the number of
        passes and processes; clips are mixed before they are split into passes. Raises NonFiniteStep, and changes nothing,
        if one of the two is NaN or Inf. The device is synchronised only once, when the metrics are read.
        """
        seed_step(self.seed, step, rank())
        lr = self._set_learning_rate(step)
        clips, labels = (tensor.to(self.device, non_blocking=True) for tensor in (clips, labels))
        clips, targets = self.step_mixer(step)(clips, labels)
        self.learner.optimizer.zero_grad(set_to_none=True)
        shares = all_gather_int(len(clips))
        statistics = copy_batch_statistics(self.learner.model)
        losses, hits = self._passes(clips, targets, shares)
        self.learner.scaler.unscale_(self.learner.optimizer)
        norm = total_gradient_norm(self.trained)
        means = sum_on_device(torch.stack([losses.sum(), hits.sum()])) / sum(shares)
        loss, gradient_norm, top1 = torch.stack([means[0], norm, 100 * means[1]]).tolist()
        record = {"loss": loss, "lr": lr, "gradient_norm": gradient_norm}
        record |= {self.objective.counts: top1} if self.objective.counts else {}
        if isfinite(loss) and isfinite(gradient_norm):
            self._update(norm)
        self.learner.scaler.update()
        if not (isfinite(loss) and isfinite(gradient_norm)):
            restore_buffers(statistics)
            raise NonFiniteStep(step, record, losses.tolist(), overflow=isfinite(loss) and self._can_lower_scale())
        return record

    def _passes(self, clips: Tensor, targets: Tensor, shares: list[int]) -> tuple[Tensor, Tensor]:
        """Compute the gradient of the mean over all processes' clips; return losses and hits of this process's clips.

        All processes run the same number of passes, since they synchronise in them: one with fewer clips (`shares`) fills up
        with a black clip of weight zero. Gradients are averaged over processes, hence the division by clips per process.
        """
        most, done = self.clips_per_pass or max(shares), [(clips.new_zeros(0), clips.new_zeros(0))]
        count = -(-max(shares) // most)
        for number in range(count):
            part = slice(number * most, (number + 1) * most)
            with gradient_sync(self.shared, last=number == count - 1):
                if len(clips[part]):
                    done.append(self._pass(clips[part], targets[part], sum(shares) / world_size()))
                else:
                    self._pass(clips.new_zeros(1, *clips.shape[1:]), targets.new_zeros(1, *targets.shape[1:]), inf)
        average_buffers(self.learner.model)
        losses, hits = (torch.cat(parts) for parts in zip(*done, strict=True))
        return losses, hits

    def _pass(self, clips: Tensor, targets: Tensor, step_clips: float) -> tuple[Tensor, Tensor]:
        """Add the gradient of one micro-batch; return each clip's loss, and whether its top class is the target's."""
        parts = []
        for losses, logits in self.objective.parts(self.network, self._autocast, clips, targets):
            self.learner.scaler.scale(losses.sum() / step_clips).backward()
            parts.append((losses.detach(), logits))
        hits = self.objective.hits(parts[0][1], targets)
        return torch.stack([losses for losses, _ in parts]).sum(0), hits

    def step_mixer(self, step: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return the step's function (clips, labels) -> clips and targets; it gives the same result at every call."""
        return lambda clips, labels: self.mixer(clips, labels, mix_generator(self.seed, step))

    def trial_pass(self, clips: Tensor, targets: Tensor) -> None:
        """Run a forward and backward pass to test that it works and fits; leaves its gradients in the network."""
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
        """Whether an infinite fp16 gradient may be due to the loss scale, which was just lowered."""
        return self.learner.scaler.is_enabled() and self.learner.scaler.get_scale() >= 1


def copy_batch_statistics(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Batch norm buffers that a training pass changes, each with a copy of its values."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    return [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]


def restore_buffers(statistics: list[tuple[Tensor, Tensor]]) -> None:
    """Restore buffers to the copies of `copy_batch_statistics`."""
    for buffer, before in statistics:
        buffer.copy_(before)


def learner_from(settings: TrainSettings, model: nn.Module, device: torch.device, precision: str) -> Learner:
    """Build the learner of a network: optimiser, loss scaler and average."""
    if settings.trainable == "head":
        freeze_all_but_head(model)
    if precision == "bf16" and device.type == "cpu":
        replace_conv3d(model)
    average = WeightAverage(model, settings.ema_decay) if settings.ema_decay is not None else None
    if settings.parallel == "fsdp":
        shard([model] if average is None else [model, average.model], device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    return Learner(model, optimizer_from(settings, model), scaler, average)


def trainer_from(
    settings: TrainSettings,
    learner: Learner,
    learning_rate: Callable[[int], float],
    mixer: MixClips,
    objective: Objective | MaskedObjective,
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
