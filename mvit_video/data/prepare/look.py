"""Look at a few frames of every video of a dataset, several videos at a time."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mvit_video.data.prepare.verify import Decoding
from mvit_video.data.video.fingerprint import MOMENTS, SIDE
from mvit_video.data.video.guard_pool import DecoderPool, Job


@dataclass(frozen=True)
class Look:
    """What a look at a video has found; `fingerprint` is uint8 (T, SIDE, SIDE)."""

    num_frames: int
    fps: float
    width: int
    height: int
    note: str
    fingerprint: np.ndarray

    @property
    def seconds(self) -> float:
        return self.num_frames / self.fps


def look_at_videos(
    paths: Sequence[str], decoding: Decoding, advance: Callable[[int, str], None]
) -> tuple[dict[str, Look], dict[str, str]]:
    """What is found by path, and the reasons for those that cannot be read. `advance` hears of each."""
    root, looks, bad = os.path.abspath(decoding.root), dict[str, Look](), dict[str, str]()
    function = "mvit_video.data.video.fingerprint:look_at_video"
    jobs = (Job(path, function, (path, root, decoding.backend)) for path in paths)
    with DecoderPool(imports=decoding.imports) as pool:
        for done in pool.run(jobs, decoding.workers, decoding.timeout):
            name = done.job.name
            if done.reason:
                bad[name] = done.reason.removeprefix(f"{name}: ")
            else:
                looks[name] = _look(done.result)
            advance(1, f"{len(bad)} bad" if bad else "")
    return looks, bad


def _look(result: dict) -> Look:
    cells = np.array(result.pop("fingerprint"), np.uint8).reshape(MOMENTS, SIDE, SIDE)
    return Look(**result, fingerprint=cells)
