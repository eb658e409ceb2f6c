"""Uploaded videos one after the other: a bounded queue, one worker, and files that nobody else can name.

What a video may cost is bounded before and while it is worked at: bytes, seconds, frames, pixels, memory and time. Its
decoder runs in a process of its own, which a server that ends, or a video that takes too long, takes away.
"""

import logging
import secrets
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from shutil import rmtree
from threading import Lock, Thread, Timer

from mvit_video.data.video.guard import TIMEOUT, Guard
from mvit_video.data.video.guard_pool import DecoderPool
from mvit_video.errors import ConfigError, DecodeError, MvitVideoError
from mvit_video.inference.predictor import Predictor, open_video
from mvit_video.locks import scratch_folder
from mvit_video.report.outputs import explain_outputs, timeline_outputs

UPLOADING, WAITING, WORKING, DONE, FAILED = "uploading", "waiting", "working", "done", "failed"
SHOWN = {
    "timeline.png": "image/png",
    "explain.png": "image/png",
    "annotated.mp4": "video/mp4",
    "explain.mp4": "video/mp4",
    "timeline.srt": "application/x-subrip",
    "timeline.csv": "text/csv",
}
KEPT_JOBS = 8
LONGEST_NAME = 80


MEMORY = 3 << 30  # bytes that decoding may take: a view of 16 frames of 4K video has 0.4 GB
FULL_HD = 1920 * 1088
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What the page takes: bytes and seconds of a video, and videos that are uploaded, waiting or in work at a time.

    Besides: pixels of a frame (4K), frames in each of the `seconds`, pixels in all as many as `seconds` of full HD at 60 a
    second have, and seconds of work at a video and of waiting for its decoder.
    """

    upload_bytes: int
    seconds: float
    queue: int
    frame_pixels: int = 4096 * 2304
    frame_rate: float = 240.0
    full_hd_rate: float = 60.0
    work_seconds: float = 3600.0
    decode_timeout: float = TIMEOUT

    def check(self, path: str, guard: Guard) -> None:
        """DecodeError for a video that is above a limit."""
        with open_video(path, guard) as reader:
            times, count = reader.times(), len(reader)
            height, width = reader.frames([0]).shape[1:3]
        seconds = float(times[-1] - times[0])
        if seconds > self.seconds:
            raise DecodeError(f"{path}: lasts {seconds:.0f} s, above this page's limit of {self.seconds:g} s")
        if count > self.seconds * self.frame_rate:
            most = self.seconds * self.frame_rate
            raise DecodeError(f"{path}: has {count:,} frames, this page takes at most {most:,.0f}")
        if count * height * width > self.seconds * self.full_hd_rate * FULL_HD:
            most = self.seconds * self.full_hd_rate * FULL_HD / (height * width)
            raise DecodeError(
                f"{path}: has {count:,} frames of {width}×{height} pixels, this page takes at most {most:,.0f} of that size"
            )


@dataclass
class Job:
    """One uploaded video. `folder` has a random name; `name` is the user's word for the video and never a path."""

    key: str
    name: str
    folder: Path
    state: str = UPLOADING
    step: str = ""
    error: str = ""
    labels: list[tuple[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def upload(self) -> Path:
        return self.folder / "upload"

    @property
    def is_over(self) -> bool:
        return self.state in (DONE, FAILED)

    def files(self) -> list[str]:
        """Names of the results that are there."""
        return [name for name in SHOWN if (self.folder / name).is_file()]

    def as_dict(self, ahead: int) -> dict:
        """JSON for the page; `ahead` is the number of jobs before this one."""
        return {
            "state": self.state,
            "name": self.name,
            "step": self.step,
            "ahead": ahead,
            "error": self.error,
            "notes": self.notes,
            "labels": [{"label": label, "score": score} for label, score in self.labels],
            "files": self.files() if self.is_over else [],
        }


class QueueFull(Exception):
    """More videos than `Limits.queue` are uploaded, waiting or in work."""


class Jobs:
    """All jobs of a server, in a temporary folder that goes with it. The newest KEPT_JOBS results are kept."""

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self.predictor, self.limits = predictor, limits
        self._own = ExitStack()
        self.folder = self._own.enter_context(scratch_folder("mvit_video_serve_"))
        self._jobs: dict[str, Job] = {}  # by key, in the order of their uploads
        self._lock = Lock()
        self._waiting: SimpleQueue[Job | None] = SimpleQueue()
        self._pool = DecoderPool(MEMORY)
        self._closed = False
        self._worker = Thread(
            target=self._work_on, daemon=True
        )  # a forward pass cannot be interrupted, only left behind
        self._worker.start()

    def close(self, seconds: float = 2.0) -> bool:
        """Drop what waits and what is in work, delete everything; whether the worker has ended within this time."""
        self._closed = True
        self._waiting.put(None)
        with self._lock:
            self._pool.close()
        self._worker.join(seconds)
        self._own.close()
        return not self._worker.is_alive()

    def open(self, name: str) -> Job:
        """A place in the queue, for a video that is about to be uploaded. Raises QueueFull."""
        key = secrets.token_urlsafe(18)
        with self._lock:
            if sum(not job.is_over for job in self._jobs.values()) >= self.limits.queue:
                raise QueueFull
            job = Job(key, _shown_name(name), self.folder / secrets.token_hex(16))
            job.folder.mkdir(mode=0o700)
            self._jobs[key] = job
        return job

    def start(self, job: Job) -> None:
        """The upload is whole: put it in the queue."""
        job.state = WAITING
        self._waiting.put(job)

    def drop(self, job: Job) -> None:
        """Forget a job and its files."""
        with self._lock:
            self._jobs.pop(job.key, None)
        rmtree(job.folder, ignore_errors=True)

    def find(self, key: str) -> tuple[Job, int] | None:
        """A job and how many are before it; None where there is none."""
        with self._lock:
            job = self._jobs.get(key)
            if job is None:
                return None
            before = list(self._jobs.values())[: list(self._jobs).index(key)]
        return job, sum(other.state in (WAITING, WORKING) for other in before)

    def _work_on(self) -> None:
        while (job := self._waiting.get()) is not None and not self._closed:
            self._run(job)

    def _run(self, job: Job) -> None:
        job.state = WORKING
        try:
            self._within_time(job)
            job.state = DONE
        except MvitVideoError as reason:
            job.error, job.state = self._public(job, reason), FAILED
        except Exception as reason:  # the worker must live on, and both the page and the server's output must say so
            why = f"{job.name}: failed inside ({type(reason).__name__}): see the server's output"
            job.error, job.state = why, FAILED
            if not self._closed:
                log.exception("%s: failed inside", job.name)
        finally:
            job.upload.unlink(missing_ok=True)
            self._forget_oldest()

    def _within_time(self, job: Job) -> None:
        """All of the work, unless it takes too long or the server ends: its decoders are then taken away."""
        with self._lock:
            if self._closed:
                return
            pool = self._pool = DecoderPool(MEMORY)
        alarm = Timer(self.limits.work_seconds, pool.close)
        alarm.daemon = True
        alarm.start()
        guard = Guard(self.limits.decode_timeout, pool, self.limits.frame_pixels)
        try:
            for step in (self._label, self._timeline, self._explain):
                step(job, self.predictor.with_guard(guard))
                if pool.closed:
                    break
        except DecodeError:
            if not pool.closed:
                raise
        finally:
            alarm.cancel()
            late = pool.closed
            pool.close()
        if late:
            raise DecodeError(
                f"{job.name}: was stopped after {self.limits.work_seconds:g} s, the time limit of this page"
            )
        job.step = ""

    def _label(self, job: Job, predictor: Predictor) -> None:
        job.step = "labels"
        self.limits.check(str(job.upload), predictor.guard)
        job.labels = list(predictor(job.upload)[0].predictions)

    def _timeline(self, job: Job, predictor: Predictor) -> None:
        job.step = "timeline"
        if ended := timeline_outputs(predictor, str(job.upload), job.folder, None, _silent):
            job.notes.append(self._public(job, ended))

    def _explain(self, job: Job, predictor: Predictor) -> None:
        job.step = "heat map"
        try:
            explain_outputs(predictor, str(job.upload), job.folder, None, _silent)
        except (ConfigError, DecodeError) as reason:  # another kind of network, or damage towards the end
            job.notes.append(self._public(job, reason))

    def _public(self, job: Job, reason: object) -> str:
        """A sentence without the paths of this machine."""
        text = str(reason).replace(str(job.upload), job.name).replace(str(job.folder), "").replace(str(self.folder), "")
        return " ".join(text.split())

    def _forget_oldest(self) -> None:
        with self._lock:
            over = [job for job in self._jobs.values() if job.is_over]
        for job in over[:-KEPT_JOBS]:
            self.drop(job)


def _silent(_text: str) -> None:
    """The page says it."""


def _shown_name(name: str) -> str:
    """The last part of a file's name, printable and short."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[:LONGEST_NAME] or "video"
