"""curves.png: loss and validation accuracy over the epochs, of a run while it trains, or of several runs."""

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from mvit_video.engine.checkpoint import VALIDATION
from mvit_video.engine.distributed import is_rank_zero
from mvit_video.engine.hooks.records import METRICS
from mvit_video.engine.loop import Hook, Loop
from mvit_video.engine.metrics_log import read_metrics, write_run_file
from mvit_video.errors import ConfigError, TrainingError
from mvit_video.figures import curves, curves_of_runs, measure_of, png
from mvit_video.paths import output_file, write_whole

CURVES = "curves.png"


class DrawCurves(Hook):
    """Draws curves.png after each validation and at the end, also after a failure; rank 0 only."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def after_validation(self, loop: Loop, numbers: dict[str, float]) -> None:
        self._draw()

    def after_train(self, loop: Loop, failure: BaseException | None) -> None:
        with suppress(TrainingError) if failure else nullcontext():  # a full disk must not hide the failure
            self._draw()

    def _draw(self) -> None:
        if is_rank_zero():
            write_run_file(self.run / CURVES, png(curves(*_records(self.run))))


def draw_runs(runs: Sequence[str | Path], output: str | Path, overwrite: bool) -> None:
    """Plot the curves of several runs, labelled by folder name, to `output`. ConfigError if a run has none."""
    output = output_file(output, overwrite)
    records = {}
    for run in map(Path, runs):
        if not (run / METRICS).is_file():
            raise ConfigError(f"{run}: has no {METRICS}: name the output folder of 'mvit-video train'")
        name = run.resolve().name
        if name in records:
            raise ConfigError(f"{run}: is the second run named {name}: rename one of the folders")
        records[name] = _records(run)
        if not any("epoch" in record and "loss" in record for record in records[name][0]):
            raise ConfigError(f"{run}: its {METRICS} has no step with a loss: leave this run out")
    measured: dict[str, str] = {}
    for name, (_, validations) in records.items():
        if validations:
            measured.setdefault(measure_of(validations), name)
    if len(measured) > 1:
        raise ConfigError(
            f"runs {' and '.join(measured.values())}: are measured by {' and '.join(measured)}, which have no axis in common: "
            "plot them apart"
        )
    write_whole(output, png(curves_of_runs(records)))


def _records(run: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Records of steps and of validations."""
    return read_metrics(run / METRICS), read_metrics(run / VALIDATION)
