"""Training speed, and the share of time spent waiting for data."""

import time
from collections import deque

from mvit_video.engine.distributed import world_size
from mvit_video.engine.loop import Hook, Loop

SPEED = ("clips_per_second", "data_share")
RECENT_STEPS = 20


class Speed(Hook):
    """Adds clips_per_second of all processes to a step's record, and data_share, the fraction of time spent waiting (0 to 1).

    Work between a step and the next batch, such as validation, is not counted. Comes first among the hooks, so that none of
    their work counts as waiting.
    """

    def __init__(self) -> None:
        self._recent: deque[tuple[int, float, float]] = deque(maxlen=RECENT_STEPS)

    def before_batch(self, loop: Loop) -> None:
        self._asked = time.monotonic()

    def before_step(self, loop: Loop) -> None:
        self._got = time.monotonic()

    def after_step(self, loop: Loop) -> None:
        clips = len(loop.batch["video"]) * world_size()
        waited, whole = self._got - self._asked, max(time.monotonic() - self._asked, 1e-9)
        self._recent.append((clips, waited, whole))
        loop.record |= {"clips_per_second": clips / whole, "data_share": waited / whole}

    def recent(self) -> str:
        """Speed of the last steps: `12.3 clips/s, 4 % waiting for data`."""
        clips, waited, whole = (sum(column) for column in zip(*self._recent, strict=True))
        return f"{clips / whole:.1f} clips/s, {waited / whole:.0%} waiting for data".replace("%", " %")
