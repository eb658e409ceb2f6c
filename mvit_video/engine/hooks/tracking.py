"""Send metrics to trackers."""

from collections.abc import Callable, Sequence

from mvit_video.engine.distributed import is_rank_zero
from mvit_video.engine.hooks.speed import SPEED
from mvit_video.engine.loop import Hook, Loop
from mvit_video.engine.trackers import Tracker, scalars


class Track(Hook):
    """Sends metrics of steps and validations to the trackers of `open_trackers(steps_done)`; rank 0 only."""

    def __init__(self, open_trackers: Callable[[int], Sequence[Tracker]]) -> None:
        self.open_trackers = open_trackers

    def before_train(self, loop: Loop) -> None:
        self.trackers = self.open_trackers(loop.done) if is_rank_zero() else []

    def after_step(self, loop: Loop) -> None:
        learning = {name: value for name, value in loop.record.items() if name not in SPEED}
        speed = {name: loop.record[name] for name in SPEED}
        self._write(loop.done, scalars(learning, "train") | scalars(speed, "speed"))

    def after_validation(self, loop: Loop, numbers: dict[str, float]) -> None:
        self._write(loop.done, scalars(numbers, "validation"))

    def after_train(self, loop: Loop, failure: BaseException | None) -> None:
        for tracker in self.trackers:
            tracker.close()

    def _write(self, step: int, values: dict[str, float]) -> None:
        for tracker in self.trackers:
            tracker.write(step, values)
