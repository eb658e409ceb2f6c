"""Steps whose loss or gradient is NaN or Inf: what is known about one is kept on disk, then the run stops or skips it."""

from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

from torch import Tensor

from mvit_video.engine.distributed import gathered, is_first
from mvit_video.errors import TrainingError
from mvit_video.paths import write_json

MOST_SKIPPED_IN_A_ROW = 10


class NonFiniteStep(TrainingError):
    """A step that changed nothing; `overflow` where a smaller loss scale may cure it."""

    def __init__(self, step: int, record: dict[str, float], losses: list[float], overflow: bool) -> None:
        super().__init__(
            f"step {step + 1}: the loss is {record['loss']} and the gradient's norm {record['gradient_norm']} "
            f"at learning rate {record['lr']:.3g}"
        )
        self.step, self.record, self.losses, self.overflow = step, record, losses, overflow

    def finite_record(self) -> dict[str, float | None]:
        """The step's numbers with None for those that are none."""
        return {name: value if isfinite(value) else None for name, value in self.record.items()}


class GuardedStep:
    """(step, batch) -> record, of a `train_step` that raises NonFiniteStep: reported in `run`, then the end or a skipped step.

    A skipped step's record has `skipped`, and None for what is no number. That fp16's loss scale was too large is no
    fault: such a step is skipped without a report.

    Args:
        stop: end the run at the first such step with a TrainingError, instead of after MOST_SKIPPED_IN_A_ROW.
    """

    def __init__(self, train_step: Callable[[int, Tensor, Tensor], dict[str, float]], run: Path, stop: bool) -> None:
        self.train_step, self.run, self.stop = train_step, run, stop
        self.in_a_row = 0

    def __call__(self, number: int, batch: dict[str, Any]) -> dict[str, Any]:
        try:
            record: dict[str, Any] = self.train_step(number, batch["video"], batch["label"])
        except NonFiniteStep as failure:
            self.in_a_row += 1
            if not failure.overflow:
                report = write_report(self.run, failure, batch)
                if self.stop or self.in_a_row == MOST_SKIPPED_IN_A_ROW:
                    raise TrainingError(f"{failure}: its clips are in {report}; {self._cure()}") from None
            return failure.finite_record() | {"skipped": 1}
        self.in_a_row = 0
        return record

    def _cure(self) -> str:
        again = f"{self.in_a_row} steps in a row were: " if self.in_a_row > 1 else ""
        other = ", or set train.on_nonfinite=skip" if self.stop else ""
        return f"{again}lower train.base_lr and resume from an earlier state{other}"


def write_report(run: Path, failure: NonFiniteStep, batch: dict[str, Any]) -> Path:
    """nonfinite_step_XXXXXXXX.json in `run`: the step's numbers, and which clips it saw with the loss of each.

    JSON has no NaN: they are the texts "nan", "inf" and "-inf".
    """
    clips = [clip for part in gathered(_clips(failure, batch)) for clip in part]
    content = {
        "step": failure.step + 1,
        **{name: _number(value) for name, value in failure.record.items() if name != "top1"},
        "clips": clips,
    }
    path = run / f"nonfinite_step_{failure.step + 1:08d}.json"
    if is_first():
        write_json(path, content)
    return path


def _clips(failure: NonFiniteStep, batch: dict[str, Any]) -> list[dict[str, Any]]:
    """What this process had of the step."""
    names = ("video_name", "video_index", "clip_index", "aug_index")
    clips = [{name: batch[name][place] for name in names} for place in range(len(failure.losses))]
    labels = batch["label"].tolist()
    return [
        clip | {"label": label, "loss": _number(loss)}
        for clip, label, loss in zip(clips, labels, failure.losses, strict=True)
    ]


def _number(value: float) -> float | str:
    return value if isfinite(value) else str(value)
