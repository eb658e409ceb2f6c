"""How fast a loop goes, and how much of its time it waits for data."""

import time
from collections import deque
from collections.abc import Iterable, Iterator

RECENT_STEPS = 20


class Stopwatch:
    """Tells the time between asking for a batch and having it from that between having it and the step's end."""

    def __init__(self) -> None:
        self._asked = self._got = time.monotonic()
        self._recent: deque[tuple[int, float, float]] = deque(maxlen=RECENT_STEPS)

    def waiting(self, batches: Iterable[dict]) -> Iterator[dict]:
        """The batches. What is done between a step's end and the next batch, such as validation, counts to no step."""
        self._asked = time.monotonic()
        for batch in batches:
            self._got = time.monotonic()
            yield batch
            self._asked = time.monotonic()

    def step_done(self, clips: int) -> dict[str, float]:
        """clips_per_second of this step, and data_share: the part of its time (0 to 1) that it waited for its batch."""
        waited, whole = self._got - self._asked, max(time.monotonic() - self._asked, 1e-9)
        self._recent.append((clips, waited, whole))
        return {"clips_per_second": clips / whole, "data_share": waited / whole}

    def recent(self) -> str:
        """The last steps in words: `12.3 clips/s, 4 % waiting for data`."""
        clips, waited, whole = (sum(column) for column in zip(*self._recent, strict=True))
        return f"{clips / whole:.1f} clips/s, {waited / whole:.0%} waiting for data".replace("%", " %")
