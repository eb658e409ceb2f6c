"""The training loop: one step fits a screen, everything around it is order and bookkeeping."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvit_video.config.schema import TrainSettings
from mvit_video.engine.bad_videos import EVENTS, handle_bad_videos
from mvit_video.engine.checkpoint import save_state
from mvit_video.engine.metrics_log import MetricsLog
from mvit_video.errors import TrainingError
from mvit_video.model.checkpoints import ModelCard
from mvit_video.progress import progress_bar


class Trainer:
    """Holds what a step changes (model, optimiser) and what it reads (settings, schedule, device)."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        learning_rate: Callable[[int], float],
        settings: TrainSettings,
        device: torch.device,
    ) -> None:
        self.model, self.optimizer, self.learning_rate = model, optimizer, learning_rate
        self.settings, self.device = settings, device

    def train_step(self, step: int, clips: Tensor, labels: Tensor) -> dict[str, float]:
        """One optimiser step on clips (B, C, T, H, W) and labels (B,). Returns loss, lr, gradient_norm, top1."""
        seed_step(self.settings.seed, step)
        lr = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        clips = clips.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        with self._autocast():
            logits = self.model(clips)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.settings.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_gradient or float("inf"))
        values = torch.stack([loss.detach(), norm, (logits.argmax(1) == labels).float().mean() * 100]).tolist()
        if not np.isfinite(values[:2]).all():
            raise TrainingError(
                f"step {step + 1}: the loss is {values[0]} and the gradient's norm {values[1]} at learning rate {lr:.3g}: "
                "lower train.base_lr or resume from an earlier state"
            )
        self.optimizer.step()
        return {"loss": values[0], "lr": lr, "gradient_norm": values[1], "top1": values[2]}

    def _autocast(self):
        if self.settings.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def run_training(
    trainer: Trainer,
    batches: Iterable[dict],
    run: Path,
    card: ModelCard,
    first_step: int,
    last_step: int,
    steps_per_epoch: int,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    on_error: str = "stop",
) -> None:
    """Steps `first_step` to `last_step` (not included), with records, validation and saved states in the folder `run`."""
    settings = trainer.settings
    log = MetricsLog(run / "metrics.jsonl", after=first_step)
    validation_log = MetricsLog(run / "validation.jsonl", after=first_step)
    events = MetricsLog(run / EVENTS, after=first_step)
    trainer.model.train()
    with progress_bar("training", last_step, first_step) as bar:
        for step, batch in enumerate(batches, first_step):
            handle_bad_videos(batch, on_error, events, step + 1, step // steps_per_epoch)
            record = trainer.train_step(step, batch["video"], batch["label"])
            done = step + 1
            epoch = done / steps_per_epoch
            log.write(step=done, epoch=epoch, **record)
            if validate is not None and (
                done == last_step or done % (steps_per_epoch * settings.validate_every_epochs) == 0
            ):
                validation_log.write(step=done, epoch=epoch, **validate(trainer.model))
                trainer.model.train()
            if done == last_step or done % settings.checkpoint_every_steps == 0:
                save_state(run, done, trainer.model, card, trainer.optimizer, settings.keep_checkpoints)
            bar.advance(
                text=f"epoch {epoch:.1f}, loss {record['loss']:.3f}, top-1 {record['top1']:.0f} %, lr {record['lr']:.1e}"
            )
    log.close()
    validation_log.close()
    events.close()


def seed_step(seed: int, step: int) -> None:
    """All randomness of the model in a step (dropout, drop path) follows from (seed, step)."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1)))
