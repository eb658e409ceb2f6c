"""The training loop: it fetches a batch and runs a step; everything else is a hook."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from mvit_video.data.loader import report_lost_workers
from mvit_video.errors import Interrupted

Step = Callable[[int, dict[str, Any]], dict[str, Any]]
"""(step from 0, batch) -> its record: loss, lr, gradient_norm, top1."""


@dataclass(frozen=True)
class Steps:
    """Range of steps: from `first` (steps already done) to `last`, and steps per epoch."""

    first: int
    last: int
    per_epoch: int


class Hook:
    """Base of hooks. Each method does nothing by default; hooks are called in list order.

    ```
    before_train                  open what the run needs; `loop.done` steps are done already
    for each step:
        before_batch              the loop is about to wait for a batch
        before_step               `loop.batch` is available; a hook may replace it
        after_step                the step is done: `loop.record`, which a hook may add to, and `loop.done` counts it
            before_save           a state is about to be saved: write everything up to this step to disk
            after_validation      metrics of the validation after this step
    after_train                   close what was opened, also after an error; the last hook first
    ```

    A method may raise an error, which ends the run, or call `loop.stop`. All processes of a run have the same hooks and
    call the same methods after the same steps, so hooks may use collectives.
    """

    def before_train(self, loop: "Loop") -> None: ...

    def before_batch(self, loop: "Loop") -> None: ...

    def before_step(self, loop: "Loop") -> None: ...

    def after_step(self, loop: "Loop") -> None: ...

    def before_save(self, loop: "Loop") -> None: ...

    def after_validation(self, loop: "Loop", numbers: dict[str, float]) -> None: ...

    def after_train(self, loop: "Loop", failure: BaseException | None) -> None: ...


class Loop:
    """Runs `steps` and calls the hooks.

    `batch` and `record` are those of the current step; `done` counts all steps so far, including those before resuming.
    """

    batch: dict[str, Any]
    record: dict[str, Any]

    def __init__(self, step: Step, steps: Steps, hooks: Sequence[Hook]) -> None:
        self.step, self.steps, self.hooks = step, steps, hooks
        self.done = steps.first
        self.stopping: str | None = None

    @property
    def epoch(self) -> float:
        """Epochs done so far, with fractions."""
        return self.done / self.steps.per_epoch

    def run(self, batches: Iterable[dict[str, Any]]) -> None:
        """Run all steps. Raises Interrupted if a hook called `stop`; errors of hooks propagate."""
        with report_lost_workers(), ExitStack() as opened:
            for hook in self.hooks:
                hook.before_train(self)
                opened.push(_closing(hook, self))
            self._stop_if_requested()
            fetched = iter(batches)
            while self.done < self.steps.last:
                for hook in self.hooks:
                    hook.before_batch(self)
                self.batch = next(fetched)
                self._run_step()
                self._stop_if_requested()

    def _run_step(self) -> None:
        for hook in self.hooks:
            hook.before_step(self)
        self.record = self.step(self.done, self.batch)
        self.done += 1
        for hook in self.hooks:
            hook.after_step(self)

    def stop(self, reason: str) -> None:
        """Stop the run, for the reason given, after the current hooks; SaveStates saves its state."""
        self.stopping = reason

    def _stop_if_requested(self) -> None:
        if self.stopping is not None:
            raise Interrupted(self.stopping)

    def saving(self) -> None:
        """Called by the hook that saves states, just before it does."""
        for hook in self.hooks:
            hook.before_save(self)

    def validated(self, numbers: dict[str, float]) -> None:
        """Called by the hook that validates, with its metrics."""
        for hook in self.hooks:
            hook.after_validation(self, numbers)


def _closing(
    hook: Hook, loop: Loop
) -> Callable[[type[BaseException] | None, BaseException | None, TracebackType | None], None]:
    """Adapt `after_train` to ExitStack."""
    return lambda kind, failure, trace: hook.after_train(loop, failure)
