"""Uploaded videos one after the other: a bounded queue, one worker, and files that nobody else can name."""

import secrets
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from threading import Lock

from mvit_video.errors import ConfigError, DecodeError, MvitVideoError
from mvit_video.inference.predictor import Predictor, open_video
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


@dataclass(frozen=True)
class Limits:
    """What the page takes: bytes and seconds of a video, and videos that are uploaded, waiting or in work at a time."""

    upload_bytes: int
    seconds: float
    queue: int


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
        """What the page is told; `ahead` are the jobs before it."""
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
        self._folder = tempfile.TemporaryDirectory(prefix="mvit_video_serve_", ignore_cleanup_errors=True)
        self._jobs: dict[str, Job] = {}  # by key, in the order of their uploads
        self._lock = Lock()
        self._worker = ThreadPoolExecutor(1)

    def close(self) -> None:
        """Drop what waits, finish what is in work, delete everything."""
        self._worker.shutdown(wait=True, cancel_futures=True)
        self._folder.cleanup()

    @property
    def folder(self) -> Path:
        return Path(self._folder.name)

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
        self._worker.submit(self._run, job)

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

    def _run(self, job: Job) -> None:
        job.state = WORKING
        try:
            self._work(job)
            job.state = DONE
        except MvitVideoError as reason:
            job.error, job.state = self._public(job, reason), FAILED
        except Exception as reason:  # the worker must live on, and the page must say so
            job.error, job.state = (
                f"{job.name}: failed inside ({type(reason).__name__}): see the server's output",
                FAILED,
            )
            raise
        finally:
            job.upload.unlink(missing_ok=True)
            self._forget_oldest()

    def _work(self, job: Job) -> None:
        predictor, path = self.predictor, str(job.upload)
        _check_length(path, self.limits.seconds)
        say: Callable[[str], None] = lambda text: None  # noqa: E731
        job.step = "labels"
        job.labels = list(predictor(path)[0].predictions)
        job.step = "timeline"
        if ended := timeline_outputs(predictor, path, job.folder, None, say):
            job.notes.append(self._public(job, ended))
        job.step = "heat map"
        try:
            explain_outputs(predictor, path, job.folder, None, say)
        except (ConfigError, DecodeError) as reason:  # another kind of network, or damage towards the end
            job.notes.append(self._public(job, reason))
        job.step = ""

    def _public(self, job: Job, reason: object) -> str:
        """A sentence without the paths of this machine."""
        text = str(reason).replace(str(job.upload), job.name).replace(str(job.folder), "").replace(str(self.folder), "")
        return " ".join(text.split())

    def _forget_oldest(self) -> None:
        with self._lock:
            over = [job for job in self._jobs.values() if job.is_over]
        for job in over[:-KEPT_JOBS]:
            self.drop(job)


def _check_length(path: str, longest: float) -> None:
    with open_video(path) as reader:
        times = reader.times()
        seconds = float(times[-1] - times[0])
    if seconds > longest:
        raise DecodeError(f"{path}: lasts {seconds:.0f} s, this page takes videos of at most {longest:g} s")


def _shown_name(name: str) -> str:
    """The last part of a file's name, printable and short."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[:LONGEST_NAME] or "video"
