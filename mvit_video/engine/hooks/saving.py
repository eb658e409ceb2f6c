"""Save training states: every N steps, before each validation, at the end, and when the run is asked to stop."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvit_video.engine.checkpoint import Learner, prune_states, save_state
from mvit_video.engine.distributed import is_rank_zero
from mvit_video.engine.loop import Hook, Loop
from mvit_video.model.weights.card import ModelCard


@dataclass
class SaveStates(Hook):
    """Saves the learner's state in the folder `run`, and keeps the newest `keep` and the best validated one.

    States are saved before validation (after steps for which `validates` is true), so that a long validation does not
    delay them.
    """

    run: Path
    learner: Learner
    card: ModelCard
    every: int
    keep: int
    validates: Callable[[int], bool]
    about: dict[str, Any]
    """Metadata about the run: see `save_state`."""

    def before_train(self, loop: Loop) -> None:
        if loop.done:
            self._prune()

    def after_step(self, loop: Loop) -> None:
        done, last = loop.done, loop.steps.last
        if loop.stopping or self.validates(done) or done == last or done % self.every == 0:
            loop.saving()
            schedule = {"last_step": last, "steps_per_epoch": loop.steps.per_epoch}
            save_state(self.run, done, self.learner, self.card, schedule, self.keep, self.about)

    def after_validation(self, loop: Loop, numbers: dict[str, float]) -> None:
        self._prune()

    def _prune(self) -> None:
        if is_rank_zero():
            prune_states(self.run, self.keep)
