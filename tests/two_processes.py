"""Programs in two processes, as torchrun starts them."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY


def torchrun_words(*words, options=()) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    return [*start, *(str(word) for word in words)]


def environment(**more) -> dict[str, str]:
    """Which finds the package and the tests, with one thread a process, so that sums have one order."""
    paths = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "tests")))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **more}


def torchrun(*words, options=(), timeout: float = 240) -> subprocess.CompletedProcess:
    """Ends within the timeout, or the test fails: nothing may hang."""
    started = torchrun_words(*words, options=options)
    return subprocess.run(
        started, capture_output=True, text=True, timeout=timeout, env=environment(), cwd=Path(REPOSITORY)
    )
