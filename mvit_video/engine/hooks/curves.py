"""curves.png: loss and validation accuracy over the epochs, of a run while it trains, or of several runs side by side."""

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from mvit_video.engine.checkpoint import VALIDATION
from mvit_video.engine.distributed import is_first
from mvit_video.engine.hooks.records import METRICS
from mvit_video.engine.loop import Hook, Loop
from mvit_video.engine.metrics_log import read_metrics, write_or_end_run
from mvit_video.errors import ConfigError, TrainingError
from mvit_video.figures import curves, curves_of_runs, png
from mvit_video.paths import output_file, write_whole

CURVES = "curves.png"


class DrawCurves(Hook):
    """Draws curves.png after each validation and at the end, of a run that failed too; in rank 0 only."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def after_validation(self, loop: Loop, numbers: dict[str, float]) -> None:
        self._draw()

    def after_train(self, loop: Loop, failure: BaseException | None) -> None:
        with suppress(TrainingError) if failure else nullcontext():  # a disk that takes no image hides no failure
            self._draw()

    def _draw(self) -> None:
        if is_first():
            write_or_end_run(self.run / CURVES, png(curves(*_records(self.run))))


def draw_runs(runs: Sequence[str | Path], output: str | Path, overwrite: bool) -> None:
    """The image `output` of the curves of several runs, each called as its folder is. ConfigError where one has none."""
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


def _records(run: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The records of the steps and of the validations."""
    return read_metrics(run / METRICS), read_metrics(run / VALIDATION)
