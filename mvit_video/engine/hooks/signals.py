"""Stop on a signal: finish the current step, save the state, and exit with a code of its own."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from mvit_video.data.video.guard import STOP_SIGNALS
from mvit_video.engine.checkpoint import FOLDER
from mvit_video.engine.distributed import all_gather_int, is_rank_zero
from mvit_video.engine.loop import Hook, Loop


class StopRequest:
    """Signal handler that remembers a stop request; a second SIGINT (Ctrl-C) interrupts at once."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._interrupts = 0

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if number == signal.SIGINT and self._interrupts > 1:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name
        if is_rank_zero():
            at_once = ", Ctrl-C again to stop at once" if number == signal.SIGINT else ""
            os.write(
                2, f"\n{self.signal}: finishing the current step or validation and saving the state{at_once}\n".encode()
            )


class StopOnSignal(Hook):
    """Stops the loop after a step or validation in which any process received SIGTERM, SIGINT or SIGUSR1.

    Comes before the hook that saves states. Does nothing outside the main thread, which alone receives signals.
    """

    def __init__(self, run: Path) -> None:
        self.run, self.request = run, StopRequest()

    def before_train(self, loop: Loop) -> None:
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self.request) for number in STOP_SIGNALS}

    def after_step(self, loop: Loop) -> None:
        self._stop_if_requested(loop)

    def after_validation(self, loop: Loop, numbers: dict[str, float]) -> None:
        self._stop_if_requested(loop)

    def after_train(self, loop: Loop, failure: BaseException | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop_if_requested(self, loop: Loop) -> None:
        if any(all_gather_int(self.request.signal is not None)):
            loop.stop(
                f"stopped by {self.request.signal or 'a signal to another process'} after step {loop.done}, whose state is in "
                f"{self.run / FOLDER}: run the same command with --resume auto to continue"
            )
