"""The loop over a run's steps. It fetches a batch and makes a step of it; everything else is a hook."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from mvit_video.data.loader import lost_workers_told
from mvit_video.errors import Interrupted

Step = Callable[[int, dict[str, Any]], dict[str, Any]]
"""(step from 0, batch) -> its record: loss, lr, gradient_norm, top1."""


@dataclass(frozen=True)
class Steps:
    """The steps that a run still has to do, from `first` (steps done before it) to `last`, and how many make an epoch."""

    first: int
    last: int
    per_epoch: int


class Hook:
    """What happens beside the steps. Each method does nothing by default; hooks are called in the order of their list.

    ```
    before_train                  open what the run needs; `loop.done` steps are done already
    for each step:
        before_batch              the loop is about to wait for its batch
        before_step               the batch is there: `loop.batch`, which a hook may replace
        after_step                the step is made: `loop.record`, which a hook may add to; it counts in `loop.done`
            before_save           the state of these steps is about to be written: have everything of them on disk
            after_validation      the numbers of the network after these steps are there
    after_train                   close what was opened: also after an error, the last hook first
    ```

    Each method may raise an error, which ends the run, or ask for its end by `loop.stop`. All processes of a run have the
    same hooks and call the same methods after the same steps, so a hook may talk to its likes in the other processes.
    """

    def before_train(self, loop: "Loop") -> None: ...

    def before_batch(self, loop: "Loop") -> None: ...

    def before_step(self, loop: "Loop") -> None: ...

    def after_step(self, loop: "Loop") -> None: ...

    def before_save(self, loop: "Loop") -> None: ...

    def after_validation(self, loop: "Loop", numbers: dict[str, float]) -> None: ...

    def after_train(self, loop: "Loop", failure: BaseException | None) -> None: ...


class Loop:
    """Makes `steps` with the hooks' help.

    `batch` and `record` are those of the step in hand, `done` is the number of steps made so far, earlier runs' included.
    """

    batch: dict[str, Any]
    record: dict[str, Any]

    def __init__(self, step: Step, steps: Steps, hooks: Sequence[Hook]) -> None:
        self.step, self.steps, self.hooks = step, steps, hooks
        self.done = steps.first
        self.stopping: str | None = None

    @property
    def epoch(self) -> float:
        """Epochs done so far; a part of one counts as that part."""
        return self.done / self.steps.per_epoch

    def run(self, batches: Iterable[dict[str, Any]]) -> None:
        """All steps. Raises Interrupted where a hook has asked for the end, and what hooks raise."""
        with lost_workers_told(), ExitStack() as opened:
            for hook in self.hooks:
                hook.before_train(self)
                opened.push(_closing(hook, self))
            self._end_if_asked()
            fetched = iter(batches)
            while self.done < self.steps.last:
                for hook in self.hooks:
                    hook.before_batch(self)
                self.batch = next(fetched)
                self._one_step()
                self._end_if_asked()

    def _one_step(self) -> None:
        for hook in self.hooks:
            hook.before_step(self)
        self.record = self.step(self.done, self.batch)
        self.done += 1
        for hook in self.hooks:
            hook.after_step(self)

    def stop(self, reason: str) -> None:
        """End the run, for the reason given, once this moment's hooks are through; SaveStates saves its state."""
        self.stopping = reason

    def _end_if_asked(self) -> None:
        if self.stopping is not None:
            raise Interrupted(self.stopping)

    def saving(self) -> None:
        """For the hook that saves: call this just before it does."""
        for hook in self.hooks:
            hook.before_save(self)

    def validated(self, numbers: dict[str, float]) -> None:
        """For the hook that validates: hand on what it found."""
        for hook in self.hooks:
            hook.after_validation(self, numbers)


def _closing(
    hook: Hook, loop: Loop
) -> Callable[[type[BaseException] | None, BaseException | None, TracebackType | None], None]:
    """`after_train` as ExitStack calls it."""
    return lambda kind, failure, trace: hook.after_train(loop, failure)
