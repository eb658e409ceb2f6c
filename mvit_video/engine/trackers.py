"""Programs that show a run's numbers live, by name: TensorBoard, Weights & Biases where a project is named, those of plugins."""

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
from mvit_video.engine.metrics_log import no_room
from mvit_video.errors import ConfigError
from mvit_video.paths import write_whole
from mvit_video.plugins import Registry, calling_module

TENSORBOARD, WANDB, WANDB_ID = "tensorboard", "wandb", "wandb_id.txt"


class TensorBoard:
    """An event file in the run's folder. On resuming after `first_step`, what later steps wrote is not shown again.

    Written by this thread and at once, not by a thread of TensorBoard's own: what the disk does not take is then an error
    of the step in hand. Raises TrainingError.
    """

    def __init__(self, run: Path, first_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self.path = run / TENSORBOARD / _event_file(run / TENSORBOARD)
        self._last_time = 0.0
        with _told(self.path):
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
        with _told(self.path):
            if self._file.write(content.getvalue()) < len(content.getvalue()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        self._file.close()


def _event_file(folder: Path) -> str:
    """A name that sorts behind those of the folder, as TensorBoard reads them, whatever the clock says."""
    times = [
        int(found[1])
        for path in folder.glob("*")
        if (found := re.match(r"events\.out\.tfevents\.(\d{10})\.", path.name))
    ]
    return f"events.out.tfevents.{max([int(time.time()), *(before + 1 for before in times)]):010d}.{platform.node()}.{os.getpid()}"


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """TrainingError in place of the disk's error."""
    try:
        yield
    except OSError as reason:
        raise no_room(path, reason) from None


class WeightsAndBiases:
    """A run of that project, gone on with when ours is resumed: its id lies in the run's folder."""

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
                f"train.wandb_project = {config.train.wandb_project}: no run can be opened there "
                f"({' '.join(str(reason).split())}): log in by 'wandb login', set WANDB_MODE=offline, or unset it"
            ) from None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        with _told(self.place):
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        with _told(self.place):
            self._run.finish()


class Tracker(Protocol):
    """Shows the numbers of a run; only rank 0 has one."""

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
    """Let `train.trackers` name what shows a run's numbers while it trains.

    Args:
        open: (the run's folder, its settings, the step that it goes on after) -> an object with `write(step, values)`, called
            after every step and validation with numbers such as train/loss, and `close()`. A class will do.
        files: what it leaves in the run's folder, which --overwrite then deletes.
        check: raises ConfigError, before the run starts, for what it lacks.

    Raises ConfigError for a name that is taken.
    """
    TRACKERS.add(name, TrackerKind(open, tuple(files), check), calling_module())


def trackers_of(config: Config) -> tuple[str, ...]:
    """The names of a run's trackers; a project names wandb."""
    project = ("wandb",) if config.train.wandb_project is not None else ()
    return tuple(dict.fromkeys((*config.train.trackers, *project)))


def check_trackers(config: Config) -> None:
    """ConfigError for a tracker that nothing has registered, or that lacks something."""
    for name in trackers_of(config):
        TRACKERS.get(name).check(config)


def open_trackers(run: Path, config: Config, first_step: int) -> list[Tracker]:
    return [TRACKERS.get(name).open(run, config, first_step) for name in trackers_of(config)]


def tracker_files() -> tuple[str, ...]:
    """What all trackers that are known leave in a run's folder."""
    return tuple(file for name in TRACKERS.names() for file in TRACKERS.get(name).files)


def _check_tensorboard(config: Config) -> None:
    """ConfigError if it is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "train.trackers names tensorboard, which is not installed: run 'pip install tensorboard', or set train.trackers=[]"
        )


def _check_wandb(config: Config) -> None:
    """ConfigError where wandb is asked for without a project, or is not installed."""
    project = config.train.wandb_project
    if project is None:
        raise ConfigError("train.trackers names wandb, which needs train.wandb_project: set it, or leave wandb out")
    if importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"train.wandb_project = {project} needs the package wandb, which is not installed: "
            "run 'pip install wandb', or unset it"
        )


def scalars(record: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """The finite numbers of a record under `prefix/name`; the step and what is no number have no curve."""
    numbers = {name: value for name, value in record.items() if isinstance(value, int | float) and isfinite(value)}
    return {f"{prefix}/{name}": float(value) for name, value in numbers.items() if name != "step"}


register_tracker(
    "tensorboard", lambda run, config, first_step: TensorBoard(run, first_step), (TENSORBOARD,), _check_tensorboard
)
register_tracker(
    "wandb", lambda run, config, first_step: WeightsAndBiases(run, config), (WANDB, WANDB_ID), _check_wandb
)
