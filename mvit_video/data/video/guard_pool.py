"""A pool of decoding processes: one that hangs or crashes costs one video and a bounded time.

A `Decoder` is the program's handle of such a process. A `DecoderPool` keeps idle ones for the next reader, and runs jobs
(such as checking every video of a dataset) in several of them. All are started by the program's launcher (guard_start.py).
"""

import os
import select
import signal
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mvit_video.data.video.guard_channel import SharedFrames, load_function
from mvit_video.data.video.guard_start import CAN_GUARD, launcher
from mvit_video.data.video.limits import MAX_CLIP_BYTES
from mvit_video.errors import ConfigError, DecodeError

MEMORY = MAX_CLIP_BYTES + (4 << 30)  # bytes for a decoding process: one clip, and decoding it
WAIT_SLICE = 1.0  # seconds of one wait; if it takes much longer this program was suspended, which does not count
COPIED_BYTES = 64 << 20  # larger clips are returned in shared memory
HEARTBEAT_SECONDS = 2.0  # seconds (at most) of work on a job between two replies
END_SECONDS = 0.5  # longest wait for killed processes: one that reads from a dead network disk cannot be killed
PING_SECONDS = 5.0  # for an idle process to reply before it is replaced
HEARTBEATS = 4  # at least, per timeout
MAX_IDLE = max(os.cpu_count() or 1, 4)  # idle processes per pool
STOPPED = "decoding was stopped"


class DecoderLost(Exception):
    """A decoding process did not reply in time, or died, and is gone. The message does not name the file."""


class Decoder:
    """A decoding process. One request at a time: `send` with a timeout, then `receive`.

    `fileno` and `time_left` (seconds) are for waiting for several at once.
    """

    def __init__(self, memory: int = MEMORY, imports: Sequence[str] = ()) -> None:
        self.busy, self.time_left, self._timeout, self._waiting_for_source = False, 0.0, 0.0, False
        self._channel, self.pid, shared = launcher.connect(memory, imports)
        self._frames, self._clip_in_use, self._stopped = SharedFrames(shared), False, False
        _decoders.add(self)

    def fileno(self) -> int:
        return self._channel.fileno()

    def is_alive(self) -> bool:
        """Whether an idle process still replies; if not, it is killed."""
        try:
            self.send("ping", PING_SECONDS)
            self.receive()
        except DecoderLost:
            return False
        return True

    def send(self, verb: str, timeout: float, files: Sequence[int] = (), **arguments) -> None:
        self.busy, self.time_left, self._timeout, self._waiting_for_source = True, timeout, timeout, False
        request, self._clip_in_use = {"verb": verb, "keep": self._clip_in_use, **arguments}, False
        try:
            self._channel.send(request, files, max(timeout, WAIT_SLICE))
        except OSError:
            raise self._lost() from None

    def receive(self) -> dict:
        """The reply. Raises DecodeError for a bad video, DecoderLost if there is no reply in time."""
        reply: dict = {"waiting": False}
        while "waiting" in reply:
            self._wait()
            try:
                reply, files = self._channel.receive(self._timeout + WAIT_SLICE)
            except TimeoutError:
                raise self._timed_out() from None
            except (EOFError, OSError):
                raise self._lost() from None
            if "waiting" in reply:
                self._waiting_for_source, self.time_left = reply["waiting"], self._timeout
        self.busy = False
        for file in files:
            self._frames.close()
            self._frames = SharedFrames(file)
        return self._checked(reply)

    def _wait(self) -> None:
        """Wait for a reply. Raises DecoderLost when time is up."""
        while True:
            start = time.monotonic()
            answered = self._channel.wait(min(self.time_left, WAIT_SLICE))
            if not self._waiting_for_source:
                self.count_wait(time.monotonic() - start)
            if answered:
                return
            if self.time_left <= 0:
                raise self._timed_out()

    def count_wait(self, seconds: float) -> None:
        """Count waiting time. What exceeds one wait is time in which this program and its decoders were suspended."""
        self.time_left -= min(seconds, 2 * WAIT_SLICE)

    def _checked(self, reply: dict) -> dict:
        if "died" in reply:
            raise self._lost(reply["died"])
        if "failure" in reply:
            raise RuntimeError(f"in the decoder's process:\n{reply['failure']}")
        if "refused" in reply:
            raise ConfigError(reply["refused"])
        if "bad" in reply:
            raise DecodeError(reply["bad"])
        return reply

    def clip(self, shape: Sequence[int]) -> np.ndarray:
        """The frames of the last reply; the caller owns them."""
        clip = self._frames.view(tuple(shape))
        self._clip_in_use = clip.nbytes > COPIED_BYTES
        return clip if self._clip_in_use else clip.copy()

    def kill(self) -> None:
        """End the process: the launcher kills it when this connection is closed."""
        self._channel.shut_down()
        self.disconnect()

    def stop(self) -> None:
        """From another thread: interrupt a `receive`, and end the process."""
        self._stopped = True
        self._channel.shut_down()

    def disconnect(self) -> None:
        """Close this side of the connection; after a fork the parent keeps its own."""
        self._channel.close()
        self._frames.close()
        _decoders.discard(self)

    def _timed_out(self) -> DecoderLost:
        self.kill()
        return DecoderLost(f"the decoder did not answer within {self._timeout:.3g} s")

    def _lost(self, status: int = 0) -> DecoderLost:
        self.kill()
        if self._stopped:
            return DecoderLost(STOPPED)
        how = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "its process ended"
        return DecoderLost(f"the decoder died ({how})")


@dataclass(frozen=True)
class Job:
    """A generator `function` (module:name) of plain arguments, for the video `name`, that yields often and returns plain values.

    Its module must not import torch, which every decoding process would load.
    """

    name: str
    function: str
    arguments: tuple


@dataclass(frozen=True)
class JobResult:
    """A job's return value, or the reason why its video is bad, starting with its name; and the time it took."""

    job: Job
    result: Any
    reason: str
    seconds: float


class DecoderPool:
    """Decoding processes of this process, started on demand. Thread-safe.

    Args:
        memory: limit in bytes for each.
        imports: modules that each imports at start, such as one that registers a decoder.
        parent: another pool to borrow processes from. Closing this one ends only those that it has borrowed.
    """

    def __init__(self, memory: int = MEMORY, imports: Sequence[str] = (), parent: "DecoderPool | None" = None) -> None:
        self._parent = parent
        self._new = parent.acquire if parent is not None else partial(Decoder, memory, tuple(imports))
        self._idle: list[Decoder] = []
        self._busy: weakref.WeakSet[Decoder] = weakref.WeakSet()
        self._pids: set[int] = set()
        self._closed = False
        self._lock = threading.Lock()
        _pools.add(self)

    def __enter__(self) -> "DecoderPool":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return self._closed

    def acquire(self, new: bool = False) -> Decoder:
        """An idle or (with `new`, always) a new process; give it back with `release`. DecoderLost if the pool is closed.

        A new process has the current environment variables.
        """
        decoder: Decoder | None = None
        while decoder is None:
            with self._lock:
                decoder = self._idle.pop() if self._idle and not new else None
            if decoder is None:
                decoder = self._new()
            elif not decoder.is_alive():
                decoder = None
        with self._lock:
            self._pids.add(decoder.pid)
            self._busy.add(decoder)
            closed = self._closed
        if closed:
            self.release(decoder)
            raise DecoderLost(STOPPED)
        return decoder

    def release(self, decoder: Decoder) -> None:
        """Return a process to the pool; it is killed if it is busy."""
        with self._lock:
            self._busy.discard(decoder)
            idle = not decoder.busy and not self._closed and self._parent is None and len(self._idle) < MAX_IDLE
            if idle:
                self._idle.append(decoder)
        if self._parent is not None:
            self._pids.discard(decoder.pid)
            self._parent.release(decoder)
        elif not idle:
            decoder.kill()

    def close(self) -> None:
        """End all processes and wait for them. Pending and later calls raise DecoderLost."""
        with self._lock:
            self._closed, idle, busy = True, self._idle, list(self._busy)
            self._idle = []
        for decoder in idle:
            decoder.kill()
        for decoder in busy:
            decoder.stop()
        end = time.monotonic() + END_SECONDS
        while any(map(_is_running, self._pids)) and time.monotonic() < end:
            time.sleep(0.002)

    def reset_after_fork(self) -> None:
        """In a forked process: the parent's decoders are not ours, and the lock may be held by a thread that is gone."""
        self._lock = threading.Lock()
        self._idle.clear()
        self._busy.clear()
        self._pids.clear()

    def run(self, jobs: Iterable[Job], workers: int, timeout: float) -> Iterator[JobResult]:
        """Run jobs in `workers` processes; yields results as they complete.

        A job may take any time if it makes progress within each `timeout`. Without guarded decoding jobs run in this process.
        """
        if not CAN_GUARD or not timeout:
            yield from map(_run_here, jobs)
            return
        waiting, busy = iter(jobs), dict[Decoder, tuple[Job, float]]()
        try:
            while True:
                while len(busy) < workers and (job := next(waiting, None)) is not None:
                    busy[self._start_job(job, timeout)] = (job, time.monotonic())
                if not busy:
                    return
                for decoder in _wait_for_any(list(busy)):
                    job, start = busy[decoder]
                    outcome = _outcome(decoder, job, timeout)
                    if outcome is not None:
                        del busy[decoder]
                        self.release(decoder)
                        yield JobResult(job, *outcome, time.monotonic() - start)
        finally:
            for decoder in busy:
                self.release(decoder)

    def _start_job(self, job: Job, timeout: float) -> Decoder:
        decoder = self.acquire()
        with suppress(DecoderLost):  # `receive` will report it
            seconds = min(HEARTBEAT_SECONDS, timeout / HEARTBEATS)
            decoder.send(
                "work", timeout, seconds=seconds, name=job.name, function=job.function, arguments=job.arguments
            )
        return decoder


def _outcome(decoder: Decoder, job: Job, timeout: float) -> tuple[Any, str] | None:
    """(result, "") or (None, reason) of a finished job; None if it continues, with its timeout restarted."""
    try:
        reply = decoder.receive()
        if reply["done"]:
            return reply["result"], ""
        decoder.send("work", timeout, seconds=min(HEARTBEAT_SECONDS, timeout / HEARTBEATS))
    except DecodeError as reason:
        return None, str(reason)
    except DecoderLost as reason:
        return None, f"{job.name}: {reason}"
    return None


def _wait_for_any(decoders: Sequence[Decoder]) -> list[Decoder]:
    """Wait until at least one has replied, died or timed out; returns these."""
    poll = select.poll()
    for decoder in decoders:
        poll.register(decoder.fileno(), select.POLLIN)
    while True:
        start = time.monotonic()
        seconds = min(WAIT_SLICE, *(decoder.time_left for decoder in decoders))
        ready = {file for file, _ in poll.poll(max(seconds, 0.0) * 1000)}
        for decoder in decoders:
            decoder.count_wait(time.monotonic() - start)
        ended = [decoder for decoder in decoders if decoder.fileno() in ready or decoder.time_left <= 0]
        if ended:
            return ended


def _is_running(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def _run_here(job: Job) -> JobResult:
    start, work = time.monotonic(), load_function(job.function)(*job.arguments)
    try:
        while True:
            next(work)
    except StopIteration as end:
        return JobResult(job, end.value, "", time.monotonic() - start)
    except DecodeError as reason:
        return JobResult(job, None, str(reason), time.monotonic() - start)


_decoders: "weakref.WeakSet[Decoder]" = weakref.WeakSet()
_pools: "weakref.WeakSet[DecoderPool]" = weakref.WeakSet()


def _reset_after_fork() -> None:
    """A forked process starts decoders of its own and leaves its parent's alone."""
    for decoder in list(_decoders):
        decoder.disconnect()
    for pool in _pools:
        pool.reset_after_fork()


if CAN_GUARD:
    os.register_at_fork(after_in_child=_reset_after_fork)
