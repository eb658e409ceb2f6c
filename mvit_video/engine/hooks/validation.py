"""Validate the network, and its average if there is one, every few epochs and at the end."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from mvit_video.engine.checkpoint import VALIDATION, Learner
from mvit_video.engine.distributed import all_gather_int, is_rank_zero
from mvit_video.engine.loop import Hook, Loop
from mvit_video.engine.metrics_log import MetricsLog, read_metrics
from mvit_video.engine.parallel import full_network
from mvit_video.model.weights.card import ModelCard

Measure = Callable[[nn.Module], dict[str, float]]


class Validation(Hook):
    """Measures the network after steps for which `validates` is true, and records the metrics in validation.jsonl.

    Metrics of the averaged weights are called ema_…; `train_mode` puts the network back into training mode. A validation
    that a stop or kill prevented is run on resuming. Comes after the hook that saves states.
    """

    def __init__(
        self,
        run: Path,
        learner: Learner,
        card: ModelCard,
        measure: Measure,
        validates: Callable[[int], bool],
        train_mode: Callable[[], None],
    ) -> None:
        self.run, self.learner, self.card = run, learner, card
        self.measure, self.validates, self.train_mode = measure, validates, train_mode

    def before_train(self, loop: Loop) -> None:
        self.log = MetricsLog(self.run / VALIDATION, after=loop.done)
        if loop.done and self.validates(loop.done) and not any(all_gather_int(self._is_recorded(loop.done))):
            self._validate(loop)

    def after_step(self, loop: Loop) -> None:
        if self.validates(loop.done) and not loop.stopping:
            self._validate(loop)

    def after_train(self, loop: Loop, failure: BaseException | None) -> None:
        self.log.close()

    def _is_recorded(self, step: int) -> bool:
        return is_rank_zero() and any(record["step"] == step for record in read_metrics(self.run / VALIDATION))

    def _validate(self, loop: Loop) -> None:
        numbers = self.measure(full_network(self.learner.model, self.card))
        if self.learner.average is not None:
            averaged = self.measure(full_network(self.learner.average.model, self.card))
            numbers = numbers | {f"ema_{name}": value for name, value in averaged.items()}
        self.train_mode()
        self.log.write(step=loop.done, epoch=loop.epoch, **numbers)
        self.log.sync()  # before a state is deleted, or the best one named, because of it
        loop.validated(numbers)
