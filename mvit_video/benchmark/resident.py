"""Memory of a step on a CPU: the growth of the resident set of a fresh process, at the peak. Imports no torch.

A process of its own, since in one that has done other things freed memory is used again and the peak belongs to someone else.
Its own high-water mark is read: ru_maxrss would start from its parent's, which Linux hands on to a child.
"""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from mvit_video.errors import ConfigError

STATUS = Path("/proc/self/status")


def is_known() -> bool:
    """Whether this system tells what a process's memory was at its peak: Linux does."""
    return STATUS.exists()


def forget_peak() -> None:
    """Let the peak begin with what the process has now."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def resident_peak() -> int:
    """Bytes of this process's resident set at its peak."""
    return next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))


def measured_apart(module: str, request: dict[str, Any], what: str) -> int:
    """The number that `python -m module REQUEST` prints last. ConfigError, about the memory of `what`, where it fails."""
    done = subprocess.run([sys.executable, "-m", module, json.dumps(request)], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it was killed, perhaps out of memory"])[-1]
        raise ConfigError(f"the memory of {what} cannot be measured ({reason}): make --batch smaller")
    return int(done.stdout.split()[-1])
