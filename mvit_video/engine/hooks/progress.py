"""Progress of a run: a bar, and a line for each validation."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from mvit_video.engine.checkpoint import VALIDATION
from mvit_video.engine.distributed import is_rank_zero
from mvit_video.engine.hooks.speed import Speed
from mvit_video.engine.loop import Hook, Loop
from mvit_video.engine.metrics_log import read_metrics
from mvit_video.progress import progress_bar

MEASURES = {"top1": "top-1", "mean_average_precision": "mean average precision"}  # a validation has one of them


class Progress(Hook):
    """Progress bar with the metrics of the last step and the recent speed; rank 0 only."""

    def __init__(self, run: Path, speed: Speed, say: Callable[[str], None]) -> None:
        self.run, self.speed, self.say = run, speed, say

    def before_train(self, loop: Loop) -> None:
        self._opened = ExitStack()
        self.bar = self._opened.enter_context(progress_bar("training", loop.steps.last, loop.done, is_rank_zero()))

    def after_step(self, loop: Loop) -> None:
        self.bar.advance(text=step_text(loop.epoch, loop.record, self.speed.recent()))

    def after_validation(self, loop: Loop, numbers: dict[str, float]) -> None:
        if is_rank_zero():
            self.say(validation_text(read_metrics(self.run / VALIDATION)))

    def after_train(self, loop: Loop, failure: BaseException | None) -> None:
        self._opened.close()


def step_text(epoch: float, record: Mapping[str, float], speed: str) -> str:
    """Text of the progress bar."""
    if "skipped" in record:
        return f"epoch {epoch:.1f}, step skipped"
    top1 = f", batch top-1 {record['top1']:.0f} %" if "top1" in record else ""
    return f"epoch {epoch:.1f}, loss {record['loss']:.3f}{top1}, lr {record['lr']:.1e}, {speed}"


def validation_text(records: Sequence[Mapping[str, float]]) -> str:
    """Describe the last validation and the best one: `epoch 10: validation top-1 62.5 %, best 64.1 %`."""
    last, parts = records[-1], []
    for prefix, whose in (("", ""), ("ema_", "averaged weights ")):
        for name, words in MEASURES.items():
            if prefix + name in last:
                best = max(record[prefix + name] for record in records if prefix + name in record)
                parts.append(f"{whose or 'validation '}{words} {last[prefix + name]:.1f} %, best {best:.1f} %")
        if prefix + "loss" in last:
            least = min(record[prefix + "loss"] for record in records if prefix + "loss" in record)
            parts.append(f"{whose or 'validation '}loss {last[prefix + 'loss']:.4f}, least {least:.4f}")
    return f"epoch {last['epoch']:.4g}: {'; '.join(parts)}"
