"""Registry of trackers for live metrics: TensorBoard, Weights & Biases, and those of plugins."""

import errno
import importlib.util
import io
import os
import platform
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

from mvit_video.config.schema import Config
from mvit_video.engine.metrics_log import disk_error
from mvit_video.errors import ConfigError
from mvit_video.paths import write_whole
from mvit_video.plugins import Registry, calling_module

TENSORBOARD, WANDB, WANDB_ID = "tensorboard", "wandb", "wandb_id.txt"


class TensorBoard:
    """Writes an event file in the run's folder. On resuming after `first_step`, TensorBoard hides what later steps wrote.

    Events are written synchronously, not by TensorBoard's own thread, so disk errors raise TrainingError in the current step.
    """

    def __init__(self, run: Path, first_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self.path = run / TENSORBOARD / _event_file(run / TENSORBOARD)
        self._last_time = 0.0
        with _disk_errors(self.path):
            self.path.parent.mkdir(exist_ok=True)
            self._file = self.path.open("xb", buffering=0)
        restart = SessionLog(status=SessionLog.START)
        self._add(Event(file_version="brain.Event:2"), Event(step=first_step + 1, session_log=restart))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        numbers = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(Event(step=step, summary=Summary(value=numbers)))

    def _add(self, *events: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        content = io.BytesIO()
        for event in events:
            event.wall_time = self._last_time = max(time.time(), self._last_time)  # also where the clock is set back
            RecordWriter(content).write(event.SerializeToString())
        with _disk_errors(self.path):
            if self._file.write(content.getvalue()) < len(content.getvalue()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        self._file.close()


def _event_file(folder: Path) -> str:
    """A file name that sorts after the existing ones, as TensorBoard reads them, even if the clock was set back."""
    times = [
        int(found[1])
        for path in folder.glob("*")
        if (found := re.match(r"events\.out\.tfevents\.(\d{10})\.", path.name))
    ]
    return f"events.out.tfevents.{max([int(time.time()), *(before + 1 for before in times)]):010d}.{platform.node()}.{os.getpid()}"


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Convert disk errors to TrainingError."""
    try:
        yield
    except OSError as reason:
        raise disk_error(path, reason) from None


class WeightsAndBiases:
    """A Weights & Biases run; its id is stored in the run's folder, so that resuming continues it."""

    def __init__(self, run: Path, config: Config) -> None:
        import wandb

        self.place, place = run / WANDB, run / WANDB_ID
        if not place.exists():
            write_whole(place, secrets.token_hex(4))
        try:
            self._run: Any = wandb.init(
                project=config.train.wandb_project,
                name=run.name,
                id=place.read_text().strip(),
                resume="allow",
                dir=str(run),
                config=config.model_dump(mode="json"),
            )
        except wandb.Error as reason:
            raise ConfigError(
                f"train.wandb_project = {config.train.wandb_project}: no run can be opened "
                f"({' '.join(str(reason).split())}): run 'wandb login', set WANDB_MODE=offline, or unset it"
            ) from None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        with _disk_errors(self.place):
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        with _disk_errors(self.place):
            self._run.finish()


class Tracker(Protocol):
    """Receives the metrics of a run; rank 0 only."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class TrackerKind:
    """See `register_tracker`."""

    open: Callable[[Path, Config, int], Tracker]
    files: tuple[str, ...]
    check: Callable[[Config], None]


TRACKERS: Registry[TrackerKind] = Registry("tracker")


def register_tracker(
    name: str,
    open: Callable[[Path, Config, int], Tracker],
    files: Sequence[str] = (),
    check: Callable[[Config], None] = lambda config: None,
) -> None:
    """Register a tracker of live metrics for `train.trackers`.

    Args:
        open: (run folder, settings, steps already done) -> an object with `write(step, values)`, called after every step and
            validation with metrics such as train/loss, and `close()`; a class, for example.
        files: files that it writes in the run's folder, which --overwrite deletes.
        check: raises ConfigError, before the run starts, if something is missing.

    Raises ConfigError for a name that is taken.
    """
    TRACKERS.add(name, TrackerKind(open, tuple(files), check), calling_module())


def trackers_of(config: Config) -> tuple[str, ...]:
    """Names of a run's trackers; train.wandb_project implies wandb."""
    project = ("wandb",) if config.train.wandb_project is not None else ()
    return tuple(dict.fromkeys((*config.train.trackers, *project)))


def check_trackers(config: Config) -> None:
    """Raise ConfigError for a tracker that is unknown or not usable."""
    for name in trackers_of(config):
        TRACKERS.get(name).check(config)


def open_trackers(run: Path, config: Config, first_step: int) -> list[Tracker]:
    return [TRACKERS.get(name).open(run, config, first_step) for name in trackers_of(config)]


def tracker_files() -> tuple[str, ...]:
    """Files that all registered trackers write in a run's folder."""
    return tuple(file for name in TRACKERS.names() for file in TRACKERS.get(name).files)


def _check_tensorboard(config: Config) -> None:
    """ConfigError if it is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "train.trackers names tensorboard, which is not installed: run 'pip install tensorboard', or set train.trackers=[]"
        )


def _check_wandb(config: Config) -> None:
    """Raise ConfigError if wandb is requested without a project, or is not installed."""
    project = config.train.wandb_project
    if project is None:
        raise ConfigError("train.trackers includes wandb, which needs train.wandb_project: set it, or remove wandb")
    if importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"train.wandb_project = {project} needs the package wandb, which is not installed: "
            "run 'pip install wandb', or unset it"
        )


def scalars(record: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Finite numbers of a record as `prefix/name`, without the step."""
    numbers = {name: value for name, value in record.items() if isinstance(value, int | float) and isfinite(value)}
    return {f"{prefix}/{name}": float(value) for name, value in numbers.items() if name != "step"}


register_tracker(
    "tensorboard", lambda run, config, first_step: TensorBoard(run, first_step), (TENSORBOARD,), _check_tensorboard
)
register_tracker(
    "wandb", lambda run, config, first_step: WeightsAndBiases(run, config), (WANDB, WANDB_ID), _check_wandb
)
