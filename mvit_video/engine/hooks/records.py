"""metrics.jsonl: the record of every step."""

from pathlib import Path

from mvit_video.engine.loop import Hook, Loop
from mvit_video.engine.metrics_log import MetricsLog

METRICS = "metrics.jsonl"


class StepRecords(Hook):
    """Writes loop.record with step (from 1) and epoch; comes after the hooks that add to the record."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def before_train(self, loop: Loop) -> None:
        self.log = MetricsLog(self.run / METRICS, after=loop.done)

    def after_step(self, loop: Loop) -> None:
        self.log.write(step=loop.done, epoch=loop.epoch, **loop.record)

    def before_save(self, loop: Loop) -> None:
        self.log.sync()

    def after_train(self, loop: Loop, failure: BaseException | None) -> None:
        self.log.close()
