"""The progress bar of a run."""

from contextlib import ExitStack

from mvit_video.engine.distributed import is_first
from mvit_video.engine.hooks.speed import Speed
from mvit_video.engine.loop import Hook, Loop
from mvit_video.progress import progress_bar


class Progress(Hook):
    """A bar of the steps, with the numbers of the last one and the speed of the last few; in rank 0 only."""

    def __init__(self, speed: Speed) -> None:
        self.speed = speed

    def before_train(self, loop: Loop) -> None:
        self._opened = ExitStack()
        self.bar = self._opened.enter_context(progress_bar("training", loop.steps.last, loop.done, is_first()))

    def after_step(self, loop: Loop) -> None:
        self.bar.advance(text=self._text(loop))

    def after_train(self, loop: Loop, failure: BaseException | None) -> None:
        self._opened.close()

    def _text(self, loop: Loop) -> str:
        if "skipped" in loop.record:
            return f"epoch {loop.epoch:.1f}, step skipped"
        record = loop.record
        numbers = f"loss {record['loss']:.3f}, top-1 {record['top1']:.0f} %, lr {record['lr']:.1e}"
        return f"epoch {loop.epoch:.1f}, {numbers}, {self.speed.recent()}"
