"""What happens between steps: the state is saved, the network validated, the best state kept, a wish to stop granted."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mvit_video.config.schema import TrainSettings
from mvit_video.engine.checkpoint import FOLDER, VALIDATION, Learner, save_state, tidy
from mvit_video.engine.distributed import everyones, is_first
from mvit_video.engine.metrics_log import MetricsLog, read_metrics
from mvit_video.engine.parallel import is_sharded, whole_tensors
from mvit_video.engine.signals import StopRequest
from mvit_video.errors import Interrupted
from mvit_video.model.weights.card import ModelCard, model_from_card

Validate = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True)
class Span:
    """The steps that a run still has to do, of how many, and how many make an epoch."""

    first_step: int
    last_step: int
    steps_per_epoch: int


class Milestones:
    """Of one run in one folder; every process must call its methods after the same steps.

    A state is saved before it is validated, so that no validation, however long, stands between a step and the disk. One
    that was missed by a stop or a kill is made up for when the run goes on.
    """

    def __init__(
        self,
        learner: Learner,
        settings: TrainSettings,
        run: Path,
        card: ModelCard,
        span: Span,
        validate: Validate | None,
        about: dict[str, Any] | None = None,
        tell: Callable[[int, dict[str, float]], None] = lambda step, numbers: None,
    ) -> None:
        self.learner, self.settings, self.run, self.card, self.span = learner, settings, run, card, span
        self.validate, self.about, self.tell = validate, about, tell
        self.log = MetricsLog(run / VALIDATION, after=span.first_step)

    def resumed(self, request: StopRequest) -> None:
        """What was left to do after the step that the run goes on from. Raises Interrupted as `after` does."""
        done = self.span.first_step
        if not done:
            return
        recorded = is_first() and any(record["step"] == done for record in read_metrics(self.run / VALIDATION))
        if self._validates(done) and not any(everyones(recorded)):
            self._validate(done, request)
        if is_first():
            tidy(self.run, self.settings.keep_checkpoints)

    def after(self, done: int, logs: Iterable[MetricsLog], request: StopRequest) -> None:
        """After step `done`. Raises Interrupted where any process has been asked to stop."""
        stop, validates = _asked(request), self._validates(done)
        if stop or validates or done == self.span.last_step or done % self.settings.checkpoint_every_steps == 0:
            for log in logs:
                log.sync()
            schedule = {"last_step": self.span.last_step, "steps_per_epoch": self.span.steps_per_epoch}
            keep = self.settings.keep_checkpoints
            save_state(self.run, done, self.learner, self.card, schedule, keep, self.about)
        if stop:
            raise self._stopped(done, request)
        if validates:
            self._validate(done, request)

    def _validates(self, done: int) -> bool:
        every = self.span.steps_per_epoch * self.settings.validate_every_epochs
        return self.validate is not None and (done == self.span.last_step or done % every == 0)

    def _stopped(self, done: int, request: StopRequest) -> Interrupted:
        return Interrupted(
            f"stopped by {request.signal or 'a signal to another process'} after step {done}, whose state is in "
            f"{self.run / FOLDER}: the same command with --resume auto goes on"
        )

    def _validate(self, done: int, request: StopRequest) -> None:
        """Record the numbers of the network, and under ema_… those of its average."""
        assert self.validate is not None
        numbers = self.validate(whole_network(self.learner.model, self.card))
        if self.learner.average is not None:
            averaged = self.validate(whole_network(self.learner.average.model, self.card))
            numbers = numbers | {f"ema_{name}": value for name, value in averaged.items()}
        self.log.write(step=done, epoch=done / self.span.steps_per_epoch, **numbers)
        self.tell(done, numbers)
        if is_first():
            tidy(self.run, self.settings.keep_checkpoints)
        if _asked(request):
            raise self._stopped(done, request)


def _asked(request: StopRequest) -> bool:
    """Whether any process has been asked to stop; every process must ask."""
    return any(everyones(request.signal is not None))


def whole_network(network: nn.Module, card: ModelCard) -> nn.Module:
    """The network itself, or a whole copy of one that is shared out among the processes; every process must ask."""
    if not is_sharded(network):
        return network
    copy = model_from_card(card)
    copy.load_state_dict(whole_tensors(network.state_dict()))
    return copy.to(next(network.parameters()).device)
