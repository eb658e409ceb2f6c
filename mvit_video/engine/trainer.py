"""The training loop: one step fits a screen, everything around it is order and bookkeeping."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mvit_video.config.schema import TrainSettings
from mvit_video.data.mixing import mix_generator
from mvit_video.engine.bad_videos import EVENTS, handle_bad_videos
from mvit_video.engine.checkpoint import Learner, save_state
from mvit_video.engine.ema import WeightAverage
from mvit_video.engine.losses import Objective
from mvit_video.engine.metrics_log import MetricsLog
from mvit_video.engine.nonfinite import NonFiniteStep, write_report
from mvit_video.engine.optimizer import build_optimizer, freeze_all_but_head
from mvit_video.errors import TrainingError
from mvit_video.model.checkpoints import ModelCard
from mvit_video.progress import progress_bar

MOST_SKIPPED_IN_A_ROW = 10

Mix = Callable[[Tensor, Tensor, np.random.Generator], tuple[Tensor, Tensor]]


class Trainer:
    """One step at a time: what a step changes (`learner`), and what it reads (settings, schedule, device).

    The loss is the `objective`'s; without one it is the settings', which then name no teacher.
    """

    def __init__(
        self,
        learner: Learner,
        learning_rate: Callable[[int], float],
        mix: Mix,
        settings: TrainSettings,
        device: torch.device,
        objective: Objective | None = None,
    ) -> None:
        self.objective = objective or Objective(settings)
        self.learner, self.learning_rate, self.mix = learner, learning_rate, mix
        self.settings, self.device = settings, device
        self.network = torch.compile(learner.model) if settings.compile else learner.model
        self.precision = effective_precision(settings, device)
        self.trained = [parameter for parameter in learner.model.parameters() if parameter.requires_grad]
        self.train_mode()

    def train_mode(self) -> None:
        """Dropout, drop path and batch statistics as training wants them: a linear probe's backbone has none of them."""
        self.learner.model.train(self.settings.trainable == "all")

    def train_step(self, step: int, clips: Tensor, labels: Tensor) -> dict[str, float]:
        """One optimiser step on clips (B, C, T, H, W) and labels (B,). Returns loss, lr, gradient_norm, top1.

        The loss is the mean over the B clips and the norm that of its gradient before clipping, in however many passes
        they are made; clips are mixed before they are split into passes. Raises NonFiniteStep, and changes nothing,
        where one of the two is NaN or Inf. The only wait for the device is where the numbers are read.
        """
        seed_step(self.settings.seed, step)
        lr = self._set_learning_rate(step)
        clips, labels = (tensor.to(self.device, non_blocking=True) for tensor in (clips, labels))
        clips, targets = self.mix(clips, labels, mix_generator(self.settings.seed, step))
        self.learner.optimizer.zero_grad(set_to_none=True)
        most = self.settings.clips_per_pass or len(clips)
        passes = [self._pass(*part, len(clips)) for part in zip(clips.split(most), targets.split(most), strict=True)]
        losses, hits = (torch.cat(parts) for parts in zip(*passes, strict=True))
        self.learner.scaler.unscale_(self.learner.optimizer)
        gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        loss, gradient_norm, top1 = torch.stack([losses.mean(), norm, 100 * hits.mean()]).tolist()
        record = {"loss": loss, "lr": lr, "gradient_norm": gradient_norm, "top1": top1}
        if isfinite(loss) and isfinite(gradient_norm):
            self._update(step, norm)
        self.learner.scaler.update()
        if not (isfinite(loss) and isfinite(gradient_norm)):
            raise NonFiniteStep(step, record, losses.tolist(), overflow=isfinite(loss) and self._can_lower_scale())
        return record

    def _pass(self, clips: Tensor, targets: Tensor, step_clips: int) -> tuple[Tensor, Tensor]:
        """Add the gradient of some of a step's clips; returns the loss of each, and 1 where its best class is the target's."""
        parts = []
        for losses, logits in self.objective.parts(self.network, self._autocast, clips, targets):
            self.learner.scaler.scale(losses.sum() / step_clips).backward()
            parts.append((losses.detach(), logits))
        hits = parts[0][1].argmax(1) == targets.argmax(1)
        return torch.stack([losses for losses, _ in parts]).sum(0), hits.float()

    def _update(self, step: int, norm: Tensor) -> None:
        if self.settings.clip_gradient is not None:
            nn.utils.clip_grads_with_norm_(self.trained, self.settings.clip_gradient, norm)
        self.learner.scaler.step(self.learner.optimizer)
        if self.learner.average is not None:
            self.learner.average.update(self.learner.model, step)

    def _set_learning_rate(self, step: int) -> float:
        lr = self.learning_rate(step)
        for group in self.learner.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        return lr

    def _autocast(self):
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[self.precision])

    def _can_lower_scale(self) -> bool:
        """Whether an infinite fp16 gradient may be the loss scale's fault, which has just been lowered."""
        return self.learner.scaler.is_enabled() and self.learner.scaler.get_scale() >= 1


def make_learner(model: nn.Module, settings: TrainSettings, device: torch.device) -> Learner:
    """A network on its device, with everything that training it needs."""
    if settings.trainable == "head":
        freeze_all_but_head(model)
    return Learner(
        model,
        build_optimizer(model, settings),
        torch.amp.GradScaler(device.type, enabled=effective_precision(settings, device) == "fp16"),
        WeightAverage(model, settings.ema_decay) if settings.ema_decay is not None else None,
    )


def effective_precision(settings: TrainSettings, device: torch.device) -> str:
    """What `auto` means on a device."""
    if settings.precision != "auto":
        return settings.precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


@dataclass(frozen=True)
class Span:
    """The steps that a run still has to do, of how many, and how many make an epoch."""

    first_step: int
    last_step: int
    steps_per_epoch: int


def run_training(
    trainer: Trainer,
    batches: Iterable[dict],
    run: Path,
    card: ModelCard,
    span: Span,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    on_error: str = "stop",
) -> None:
    """The steps of `span` with records, validation and saved states in the folder `run`."""
    settings, learner = trainer.settings, trainer.learner
    schedule = {"last_step": span.last_step, "steps_per_epoch": span.steps_per_epoch}
    log = MetricsLog(run / "metrics.jsonl", after=span.first_step)
    validation_log = MetricsLog(run / "validation.jsonl", after=span.first_step)
    events = MetricsLog(run / EVENTS, after=span.first_step)
    step = guarded_step(trainer, run)
    with progress_bar("training", span.last_step, span.first_step) as bar:
        for number, batch in enumerate(batches, span.first_step):
            handle_bad_videos(batch, on_error, events, number + 1, number // span.steps_per_epoch)
            record = step(number, batch)
            done = number + 1
            epoch = done / span.steps_per_epoch
            log.write(step=done, epoch=epoch, **record)
            if validate is not None and (
                done == span.last_step or done % (span.steps_per_epoch * settings.validate_every_epochs) == 0
            ):
                validation_log.write(step=done, epoch=epoch, **_validated(learner, validate))
                trainer.train_mode()
            if done == span.last_step or done % settings.checkpoint_every_steps == 0:
                save_state(run, done, learner, card, schedule, settings.keep_checkpoints)
            bar.advance(text=_progress_text(epoch, record))
    for file in (log, validation_log, events):
        file.close()


def guarded_step(trainer: Trainer, run: Path) -> Callable[[int, dict], dict[str, Any]]:
    """(step, batch) -> record. A step whose loss or gradient is NaN or Inf is reported in `run`; see train.on_nonfinite.

    A skipped step's record has `skipped` and no number that is not one. That fp16's loss scale was too large is no
    fault: such a step is skipped without a report.
    """
    in_a_row = 0

    def step(number: int, batch: dict) -> dict[str, Any]:
        nonlocal in_a_row
        try:
            record = trainer.train_step(number, batch["video"], batch["label"])
            in_a_row = 0
            return record
        except NonFiniteStep as failure:
            in_a_row += 1
            if not failure.overflow:
                report = write_report(run, failure, batch)
                if trainer.settings.on_nonfinite == "stop" or in_a_row == MOST_SKIPPED_IN_A_ROW:
                    raise TrainingError(f"{failure}: its clips are in {report}; {_cure(trainer, in_a_row)}") from None
            return failure.finite_record() | {"skipped": 1}

    return step


def _cure(trainer: Trainer, in_a_row: int) -> str:
    again = f"{in_a_row} steps in a row were: " if in_a_row > 1 else ""
    other = ", or set train.on_nonfinite=skip" if trainer.settings.on_nonfinite == "stop" else ""
    return f"{again}lower train.base_lr and resume from an earlier state{other}"


def _validated(learner: Learner, validate: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
    """Numbers of the network, and under ema_… those of its average."""
    numbers = validate(learner.model)
    if learner.average is None:
        return numbers
    return numbers | {f"ema_{name}": value for name, value in validate(learner.average.model).items()}


def _progress_text(epoch: float, record: dict[str, Any]) -> str:
    if "skipped" in record:
        return f"epoch {epoch:.1f}, step skipped"
    return f"epoch {epoch:.1f}, loss {record['loss']:.3f}, top-1 {record['top1']:.0f} %, lr {record['lr']:.1e}"


def seed_step(seed: int, step: int) -> None:
    """All randomness of the model in a step (dropout, drop path) follows from (seed, step)."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1)))
