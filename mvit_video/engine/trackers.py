"""Programs that show a run's numbers live: TensorBoard always, Weights & Biases where a project is named."""

import errno
import importlib.util
import io
import os
import platform
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

from mvit_video.config.schema import Config
from mvit_video.engine.metrics_log import no_room
from mvit_video.errors import ConfigError
from mvit_video.paths import write_whole

TENSORBOARD, WANDB, WANDB_ID = "tensorboard", "wandb", "wandb_id.txt"
FILES = (TENSORBOARD, WANDB, WANDB_ID)


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


Tracker = TensorBoard | WeightsAndBiases


def check_trackers(config: Config) -> None:
    """ConfigError where wandb is asked for and is not installed."""
    project = config.train.wandb_project
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"train.wandb_project = {project} needs the package wandb, which is not installed: "
            "run 'pip install wandb', or unset it"
        )


def open_trackers(run: Path, config: Config, first_step: int) -> list[Tracker]:
    board = TensorBoard(run, first_step)
    return [board] if config.train.wandb_project is None else [board, WeightsAndBiases(run, config)]


def scalars(record: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """The finite numbers of a record under `prefix/name`; the step and what is no number have no curve."""
    numbers = {name: value for name, value in record.items() if isinstance(value, int | float) and isfinite(value)}
    return {f"{prefix}/{name}": float(value) for name, value in numbers.items() if name != "step"}
