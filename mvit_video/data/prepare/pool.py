"""A process for each video that is re-encoded: one that hangs or dies costs its own video and nothing else."""

import multiprocessing
import signal
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from mvit_video.data.prepare.reencode import WriteError, reencode
from mvit_video.errors import DecodeError

Job = tuple[str, str, Path, int]  # the arguments of `reencode`
CONTEXT = "forkserver"  # a plain fork would copy the progress bar's thread in the middle of its work
SILENCE = 120.0  # seconds without a new frame after which a process counts as hanging
BEAT = 2.0  # seconds between signs of life


def run_jobs(jobs: Sequence[Job], workers: int, silence: float = SILENCE) -> Iterator[tuple[Job, dict | None, str]]:
    """(job, record, "") for each video as it gets done, (job, None, reason) for a bad one. Raises WriteError."""
    context = multiprocessing.get_context(CONTEXT)
    context.set_forkserver_preload([__name__])
    waiting = deque(jobs)
    running: dict[Any, _Child] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                child = _Child(context, waiting.popleft())
                running[child.connection] = child
            for connection in wait(list(running), timeout=1.0):
                result = running[connection].listen()
                if result is not None:
                    yield running.pop(connection).job, *result
            for child in [child for child in running.values() if time.monotonic() - child.heard > silence]:
                child.stop()
                del running[child.connection]
                yield child.job, None, f"{child.job[0]}: gave no frame for {silence:.0f} seconds"
    finally:
        for child in running.values():
            child.stop()


class _Child:
    def __init__(self, context: Any, job: Job) -> None:
        self.job, self.heard = job, time.monotonic()
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, job), daemon=True)
        self._process.start()
        theirs.close()

    def listen(self) -> tuple[dict | None, str] | None:
        """The record or the reason; None after a mere sign of life."""
        self.heard = time.monotonic()
        try:
            kind, content = self.connection.recv()
        except EOFError:
            self.stop()
            return None, f"{self.job[0]}: the process that decoded it died ({_ending(self._process.exitcode)})"
        if kind == "alive":
            return None
        self.stop()
        if kind == "stop":
            raise WriteError(content)
        if kind == "broken":
            raise RuntimeError(f"re-encoding {self.job[0]} failed, which is a mistake of this package:\n{content}")
        return (content, "") if kind == "done" else (None, content)

    def stop(self) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self.connection.close()


def _ending(exitcode: int | None) -> str:
    return f"signal {-exitcode}" if exitcode is not None and exitcode < 0 else f"exit code {exitcode}"


def _work(connection: Connection, job: Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller hears it, and ends this process
    beat = time.monotonic()

    def alive() -> None:
        nonlocal beat
        if time.monotonic() - beat > BEAT:
            beat = time.monotonic()
            connection.send(("alive", None))

    try:
        connection.send(("done", reencode(*job, alive)))
    except DecodeError as reason:
        connection.send(("bad", str(reason)))
    except WriteError as reason:
        connection.send(("stop", str(reason)))
    except BrokenPipeError:
        pass  # the caller is gone
    except Exception:
        connection.send(("broken", traceback.format_exc()))
