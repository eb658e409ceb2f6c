"""Being asked to stop: the step in hand is finished, the state saved, and the program ends with a code of its own."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mvit_video.data.video.guard import STOP_SIGNALS
from mvit_video.engine.distributed import is_first


class StopRequest:
    """Which signal has asked to stop, if one has; a second SIGINT (Ctrl-C) interrupts at once, whatever came between."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._interrupts = 0

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if number == signal.SIGINT and self._interrupts > 1:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name
        if is_first():
            at_once = ", Ctrl-C again to stop at once" if number == signal.SIGINT else ""
            os.write(2, f"\n{self.signal}: finishing this step or validation and saving its state{at_once}\n".encode())


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Inside, SIGTERM, SIGINT and SIGUSR1 are only noted. Threads other than the main one get no signals, so there nothing changes."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
