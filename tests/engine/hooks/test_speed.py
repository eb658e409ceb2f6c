"""How much of a step's time is waiting for its batch."""

import time

from mvit_video.engine.hooks.speed import Speed
from mvit_video.engine.loop import Hook, Loop, Steps


def test_waiting_and_working_are_told_apart(monkeypatch):
    """A clock that only this loop moves: 3 s for a batch, 1 s for a step, 10 s between steps that count to none."""
    now, records = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def batches():
        for _ in range(2):
            now[0] += 3
            yield {"video": range(8)}

    def step(number, batch):
        now[0] += 1
        return {"loss": 0.5}

    class Slow(Hook):
        def after_step(self, loop):
            records.append(loop.record)
            now[0] += 10

    speed = Speed()
    Loop(step, Steps(0, 2, 2), [speed, Slow()]).run(batches())
    assert records == [{"loss": 0.5, "clips_per_second": 2.0, "data_share": 0.75}] * 2
    assert speed.recent() == "2.0 clips/s, 75 % waiting for data"
