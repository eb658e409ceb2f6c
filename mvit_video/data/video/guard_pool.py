"""Decoding processes, and the work that is shared among them: one that hangs or dies costs a video and a limited time.

A `Decoder` is such a process as the program sees it. A `DecoderPool` keeps those that are idle for the next reader, and
runs jobs (every video of a dataset, say) in several of them. All come from the program's launcher (guard_start.py).
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

from mvit_video.data.video.guard_channel import SharedFrames, named_function
from mvit_video.data.video.guard_start import CAN_GUARD, launcher
from mvit_video.data.video.limits import MAX_CLIP_BYTES
from mvit_video.errors import ConfigError, DecodeError

MEMORY = MAX_CLIP_BYTES + (4 << 30)  # bytes that a decoding process may take: a clip, and decoding it
SLICE = 1.0  # seconds of one wait; a much longer one means that this program was stopped, which does not count
COPIED_BYTES = 64 << 20  # larger clips stay in the shared memory that they came in
BEAT = 2.0  # seconds of work at a job, or a share of the timeout, after which a process says that it goes on
END_SECONDS = 0.5  # a process that reads from a dead network disk cannot be killed: it is not waited for any longer
PING_SECONDS = 5.0  # for an idle process to answer, before another takes its place
BEATS = 4  # of these in a timeout
KEPT = max(os.cpu_count() or 1, 4)  # idle processes of a pool
STOPPED = "decoding was stopped"


class DecoderLost(Exception):
    """A decoding process did not answer in time, or died. It is gone; the reason is said without the file's name."""


class Decoder:
    """A decoding process. One request at a time: `send`, then `receive` within as many seconds of waiting.

    `fileno` and `left`, the seconds that are left, are for those who wait for several at once.
    """

    def __init__(self, memory: int = MEMORY, imports: Sequence[str] = ()) -> None:
        self.busy, self.left, self._timeout, self._source_is_silent = False, 0.0, 0.0, False
        self._channel, self.pid, shared = launcher.connect(memory, imports)
        self._frames, self._kept, self._stopped = SharedFrames(shared), False, False
        _decoders.add(self)

    def fileno(self) -> int:
        return self._channel.fileno()

    def answers(self) -> bool:
        """Whether an idle process is still there and well; if not, it is gone now, and has cost no video."""
        try:
            self.send("ping", PING_SECONDS)
            self.receive()
        except DecoderLost:
            return False
        return True

    def send(self, verb: str, timeout: float, files: Sequence[int] = (), **arguments) -> None:
        self.busy, self.left, self._timeout, self._source_is_silent = True, timeout, timeout, False
        request, self._kept = {"verb": verb, "keep": self._kept, **arguments}, False
        try:
            self._channel.send(request, files, max(timeout, SLICE))
        except OSError:
            raise self._lost() from None

    def receive(self) -> dict:
        """The answer. Raises DecodeError where the video is bad, DecoderLost where there is no answer in time."""
        reply: dict = {"waiting": False}
        while "waiting" in reply:
            self._wait()
            try:
                reply, files = self._channel.receive(self._timeout + SLICE)
            except TimeoutError:
                raise self._too_late() from None
            except (EOFError, OSError):
                raise self._lost() from None
            if "waiting" in reply:
                self._source_is_silent, self.left = reply["waiting"], self._timeout
        self.busy = False
        for file in files:
            self._frames.close()
            self._frames = SharedFrames(file)
        return self._understood(reply)

    def _wait(self) -> None:
        """Until there is something to receive. DecoderLost when time is up."""
        while True:
            start = time.monotonic()
            answered = self._channel.wait(min(self.left, SLICE))
            if not self._source_is_silent:
                self.spend(time.monotonic() - start)
            if answered:
                return
            if self.left <= 0:
                raise self._too_late()

    def spend(self, seconds: float) -> None:
        """Count what was waited. In a longer time than one wait takes, this program was stopped, and its decoders with it."""
        self.left -= min(seconds, 2 * SLICE)

    def _understood(self, reply: dict) -> dict:
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
        """The frames that the last answer is about, for good."""
        clip = self._frames.view(tuple(shape))
        self._kept = clip.nbytes > COPIED_BYTES
        return clip if self._kept else clip.copy()

    def kill(self) -> None:
        """End the process; the launcher kills it when nothing is left of this connection."""
        self._channel.hang_up()
        self.abandon()

    def stop(self) -> None:
        """From another thread: let go whoever waits for an answer, and end the process."""
        self._stopped = True
        self._channel.hang_up()

    def abandon(self) -> None:
        """Let go of the connection; after a fork, where it is another process's."""
        self._channel.close()
        self._frames.close()
        _decoders.discard(self)

    def _too_late(self) -> DecoderLost:
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
    """`function` (module:name) of plain arguments, about the video `name`. It yields often and returns plain values.

    Its module must not need torch: every decoding process would import it.
    """

    name: str
    function: str
    arguments: tuple


@dataclass(frozen=True)
class Done:
    """What a job has returned after so many seconds; or the reason why its video is bad, with the name in front."""

    job: Job
    result: Any
    reason: str
    seconds: float


class DecoderPool:
    """Decoding processes for this process, started when they are needed. Threads may share it.

    Args:
        memory: bytes that each may take.
        imports: modules that each imports first, such as one that adds a decoder.
        of: another pool, whose processes this one borrows. Closing this one then ends those at work for it, and no others.
    """

    def __init__(self, memory: int = MEMORY, imports: Sequence[str] = (), of: "DecoderPool | None" = None) -> None:
        self._of = of
        self._new = of.take if of is not None else partial(Decoder, memory, tuple(imports))
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

    def take(self, new: bool = False) -> Decoder:
        """An idle process, or a new one, which knows the environment of now; `give` it back. DecoderLost if the pool is closed."""
        decoder: Decoder | None = None
        while decoder is None:
            with self._lock:
                decoder = self._idle.pop() if self._idle and not new else None
            if decoder is None:
                decoder = self._new()
            elif not decoder.answers():
                decoder = None
        with self._lock:
            self._pids.add(decoder.pid)
            self._busy.add(decoder)
            closed = self._closed
        if closed:
            self.give(decoder)
            raise DecoderLost(STOPPED)
        return decoder

    def give(self, decoder: Decoder) -> None:
        """Take back a process that is no longer wanted; one that is still at work is killed."""
        with self._lock:
            self._busy.discard(decoder)
            kept = not decoder.busy and not self._closed and self._of is None and len(self._idle) < KEPT
            if kept:
                self._idle.append(decoder)
        if self._of is not None:
            self._pids.discard(decoder.pid)
            self._of.give(decoder)
        elif not kept:
            decoder.kill()

    def close(self) -> None:
        """End all processes, and wait for that; whoever waits for one gets DecoderLost, as does whoever asks from now on."""
        with self._lock:
            self._closed, idle, busy = True, self._idle, list(self._busy)
            self._idle = []
        for decoder in idle:
            decoder.kill()
        for decoder in busy:
            decoder.stop()
        end = time.monotonic() + END_SECONDS
        while any(map(_is_there, self._pids)) and time.monotonic() < end:
            time.sleep(0.002)

    def forget(self) -> None:
        """After a fork: none of these processes is ours, and nobody holds the lock."""
        self._lock = threading.Lock()
        self._idle.clear()
        self._busy.clear()
        self._pids.clear()

    def run(self, jobs: Iterable[Job], workers: int, timeout: float) -> Iterator[Done]:
        """Do jobs in `workers` processes, each job as long as it says within `timeout` seconds that it goes on.

        In the order in which they end. Without guarded decoding they are done here, one after the other.
        """
        if not CAN_GUARD or not timeout:
            yield from map(_done_here, jobs)
            return
        waiting, busy = iter(jobs), dict[Decoder, tuple[Job, float]]()
        try:
            while True:
                while len(busy) < workers and (job := next(waiting, None)) is not None:
                    busy[self._begun(job, timeout)] = (job, time.monotonic())
                if not busy:
                    return
                for decoder in _answered(list(busy)):
                    job, start = busy[decoder]
                    outcome = _outcome(decoder, job, timeout)
                    if outcome is not None:
                        del busy[decoder]
                        self.give(decoder)
                        yield Done(job, *outcome, time.monotonic() - start)
        finally:
            for decoder in busy:
                self.give(decoder)

    def _begun(self, job: Job, timeout: float) -> Decoder:
        decoder = self.take()
        with suppress(DecoderLost):  # it is heard of again where its answer is asked for
            seconds = min(BEAT, timeout / BEATS)
            decoder.send(
                "work", timeout, seconds=seconds, name=job.name, function=job.function, arguments=job.arguments
            )
        return decoder


def _outcome(decoder: Decoder, job: Job, timeout: float) -> tuple[Any, str] | None:
    """The result of a job and the reason why its video is bad, of which one is empty; None: it goes on, with all the time anew."""
    try:
        reply = decoder.receive()
        if reply["done"]:
            return reply["result"], ""
        decoder.send("work", timeout, seconds=min(BEAT, timeout / BEATS))
    except DecodeError as reason:
        return None, str(reason)
    except DecoderLost as reason:
        return None, f"{job.name}: {reason}"
    return None


def _answered(decoders: Sequence[Decoder]) -> list[Decoder]:
    """Those that have answered, died, or run out of time; there is at least one."""
    poll = select.poll()
    for decoder in decoders:
        poll.register(decoder.fileno(), select.POLLIN)
    while True:
        start = time.monotonic()
        seconds = min(SLICE, *(decoder.left for decoder in decoders))
        ready = {file for file, _ in poll.poll(max(seconds, 0.0) * 1000)}
        for decoder in decoders:
            decoder.spend(time.monotonic() - start)
        ended = [decoder for decoder in decoders if decoder.fileno() in ready or decoder.left <= 0]
        if ended:
            return ended


def _is_there(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def _done_here(job: Job) -> Done:
    start, work = time.monotonic(), named_function(job.function)(*job.arguments)
    try:
        while True:
            next(work)
    except StopIteration as end:
        return Done(job, end.value, "", time.monotonic() - start)
    except DecodeError as reason:
        return Done(job, None, str(reason), time.monotonic() - start)


_decoders: "weakref.WeakSet[Decoder]" = weakref.WeakSet()
_pools: "weakref.WeakSet[DecoderPool]" = weakref.WeakSet()


def _begin_anew() -> None:
    """A forked process has decoders of its own to start; those of its parent are not its business."""
    for decoder in list(_decoders):
        decoder.abandon()
    for pool in _pools:
        pool.forget()


if CAN_GUARD:
    os.register_at_fork(after_in_child=_begin_anew)
