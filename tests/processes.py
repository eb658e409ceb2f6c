"""The processes that decode for this one, as the system lists them."""

import os
import time
from pathlib import Path

MARK = b"mvit_video.data.video.guard_launcher"


def _status(pid: int) -> list[str]:
    """State and parent of a process; nothing where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return []


def alive(pid: int) -> bool:
    status = _status(pid)
    return bool(status) and status[0] != "Z"


def gone_within(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def children(parent: int) -> set[int]:
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return {pid for pid in pids if (status := _status(pid)) and status[0] != "Z" and int(status[1]) == parent}


def launchers(parent: int | None = None) -> set[int]:
    """The launchers that a process has started, by default this one."""
    return {pid for pid in children(parent or os.getpid()) if _is_launcher(pid)}


def _is_launcher(pid: int) -> bool:
    try:
        return MARK in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def decoding_processes(parent: int | None = None) -> set[int]:
    """Those that a process's launchers have started."""
    return {child for launcher in launchers(parent) for child in children(launcher)}
