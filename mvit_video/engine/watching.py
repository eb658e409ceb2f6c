"""What a run shows while it trains: its speed, TensorBoard, wandb, a picture of the curves and one of the first batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from mvit_video.config.schema import Config
from mvit_video.engine import trackers
from mvit_video.engine.checkpoint import VALIDATION
from mvit_video.engine.distributed import is_first, world_size
from mvit_video.engine.first_batch import FIRST_BATCH, Mix, write_first_batch
from mvit_video.engine.metrics_log import read_metrics
from mvit_video.engine.speed import Stopwatch
from mvit_video.errors import ConfigError, TrainingError
from mvit_video.figures import curves, curves_of_runs, png
from mvit_video.paths import output_file, write_whole

CURVES = "curves.png"
METRICS = "metrics.jsonl"
FILES = (FIRST_BATCH, CURVES, *trackers.FILES)
SPEED = ("clips_per_second", "data_share")
MEASURES = {"top1": "top-1", "mean_average_precision": "mean average precision"}  # of which a validation has one


class Watcher:
    """Told of batches, steps and validations, it writes into the folder `run`; of several processes only the first does."""

    def __init__(
        self,
        run: Path,
        config: Config,
        classes: Sequence[str],
        first_step: int,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.run, self.config, self.classes, self.say, self.stopwatch = run, config, classes, say, Stopwatch()
        self.waiting = self.stopwatch.waiting
        self._trackers = trackers.open_trackers(run, config, first_step) if is_first() else []

    def batch(self, batch: dict, mix: Mix) -> None:
        """The first batch of a run becomes a picture."""
        if is_first() and len(batch["video"]) and not (self.run / FIRST_BATCH).exists():
            with _told(self.run / FIRST_BATCH):
                write_first_batch(self.run, batch, self.classes, self.config.data, mix)

    def stepped(self, step: int, record: Mapping[str, Any], clips: int) -> dict[str, Any]:
        """The step's record with its speed; `clips` are this process's."""
        record = {**record, **self.stopwatch.step_done(clips * world_size())}
        values = trackers.scalars({name: value for name, value in record.items() if name not in SPEED}, "train")
        self._track(step, values | trackers.scalars({name: record[name] for name in SPEED}, "speed"))
        return record

    def validated(self, step: int, record: Mapping[str, Any]) -> None:
        self._track(step, trackers.scalars(record, "validation"))
        if is_first():
            self.say(validation_text(read_metrics(self.run / VALIDATION)))
        self.draw()

    def draw(self) -> None:
        """curves.png from the records on disk."""
        if is_first():
            with _told(self.run / CURVES):
                write_whole(self.run / CURVES, png(curves(*_records(self.run))))

    def text(self, epoch: float, record: Mapping[str, Any]) -> str:
        """What stands beside the progress bar."""
        if "skipped" in record:
            return f"epoch {epoch:.1f}, step skipped"
        numbers = f"loss {record['loss']:.3f}, batch top-1 {record['top1']:.0f} %, lr {record['lr']:.1e}"
        return f"epoch {epoch:.1f}, {numbers}, {self.stopwatch.recent()}"

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """The curves, of a run that failed too; what it failed of is not hidden by a picture that cannot be written."""
        with suppress(TrainingError) if kind else nullcontext():
            self.draw()
        for tracker in self._trackers:
            tracker.close()

    def _track(self, step: int, values: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.write(step, values)


def validation_text(records: Sequence[Mapping[str, float]]) -> str:
    """The last validation of these in words, and the best of them: `epoch 10: validation top-1 62.5 %, best 64.1 %`."""
    last, parts = records[-1], []
    for prefix, whose in (("", ""), ("ema_", "averaged weights ")):
        for name, words in MEASURES.items():
            if prefix + name in last:
                best = max(record[prefix + name] for record in records if prefix + name in record)
                parts.append(f"{whose or 'validation '}{words} {last[prefix + name]:.1f} %, best {best:.1f} %")
    return f"epoch {last['epoch']:.4g}: {'; '.join(parts)}"


def draw_runs(runs: Sequence[str | Path], output: str | Path, overwrite: bool) -> None:
    """The picture `output` of the curves of several runs, each called as its folder is. ConfigError where one has none."""
    output = output_file(output, overwrite)
    records = {}
    for run in map(Path, runs):
        if not (run / METRICS).is_file():
            raise ConfigError(f"{run}: has no {METRICS}: name a folder that 'mvit-video train' has left")
        name = run.resolve().name
        if name in records:
            raise ConfigError(
                f"{run}: is the second run called {name}: rename its folder, so that the two can be told apart"
            )
        records[name] = _records(run)
    write_whole(output, png(curves_of_runs(records)))


def _records(run: Path) -> tuple[list[dict], list[dict]]:
    """The records of the steps and of the validations."""
    return read_metrics(run / METRICS), read_metrics(run / VALIDATION)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """A picture that the disk does not take ends the run in one sentence, as its records do."""
    try:
        yield
    except OSError as reason:
        raise TrainingError(
            f"{path}: cannot be written ({reason.strerror}): make room, then go on with --resume auto"
        ) from None
