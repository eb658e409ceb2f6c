"""Steps whose loss or gradient is NaN or Inf: write a report, then stop the run or skip the step."""

from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

from torch import Tensor

from mvit_video.engine.distributed import all_gather_json, is_rank_zero
from mvit_video.errors import TrainingError
from mvit_video.paths import write_json

MAX_CONSECUTIVE_SKIPS = 10


class NonFiniteStep(TrainingError):
    """A step that changed nothing; `overflow` if a smaller loss scale may fix it."""

    def __init__(self, step: int, record: dict[str, float], losses: list[float], overflow: bool) -> None:
        super().__init__(
            f"step {step + 1}: the loss is {record['loss']} and the gradient's norm {record['gradient_norm']} "
            f"at learning rate {record['lr']:.3g}"
        )
        self.step, self.record, self.losses, self.overflow = step, record, losses, overflow

    def finite_record(self) -> dict[str, float | None]:
        """The step's metrics, with None for NaN and Inf."""
        return {name: value if isfinite(value) else None for name, value in self.record.items()}


class GuardedStep:
    """Wraps a `train_step` that may raise NonFiniteStep: (step, batch) -> record; writes a report in `run`, then stops or skips.

    A skipped step's record has `skipped`, and None for NaN and Inf. A step whose fp16 loss scale was too large is skipped
    without a report.

    Args:
        stop: raise TrainingError at the first such step, instead of after MOST_SKIPPED_IN_A_ROW.
        answer: the part of a batch that is the target, "label" or "mask".
    """

    def __init__(
        self,
        train_step: Callable[[int, Tensor, Tensor], dict[str, float]],
        run: Path,
        stop: bool,
        answer: str = "label",
    ) -> None:
        self.train_step, self.run, self.stop, self.answer = train_step, run, stop, answer
        self.consecutive = 0

    def __call__(self, number: int, batch: dict[str, Any]) -> dict[str, Any]:
        try:
            record: dict[str, Any] = self.train_step(number, batch["video"], batch[self.answer])
        except NonFiniteStep as failure:
            self.consecutive += 1
            if not failure.overflow:
                report = write_report(self.run, failure, batch)
                if self.stop or self.consecutive == MAX_CONSECUTIVE_SKIPS:
                    raise TrainingError(f"{failure}: its clips are in {report}; {self._advice()}") from None
            return failure.finite_record() | {"skipped": 1}
        self.consecutive = 0
        return record

    def _advice(self) -> str:
        again = f"{self.consecutive} consecutive steps failed: " if self.consecutive > 1 else ""
        other = ", or set train.on_nonfinite=skip" if self.stop else ""
        return f"{again}lower train.base_lr and resume from an earlier state{other}"


def write_report(run: Path, failure: NonFiniteStep, batch: dict[str, Any]) -> Path:
    """Write nonfinite_step_XXXXXXXX.json in `run`: the step's metrics, and its clips with the loss of each.

    JSON has no NaN: such values are the strings "nan", "inf" and "-inf".
    """
    clips = [clip for part in all_gather_json(_clips(failure, batch)) for clip in part]
    content = {
        "step": failure.step + 1,
        **{name: _number(value) for name, value in failure.record.items() if name != "top1"},
        "clips": clips,
    }
    path = run / f"nonfinite_step_{failure.step + 1:08d}.json"
    if is_rank_zero():
        write_json(path, content)
    return path


def _clips(failure: NonFiniteStep, batch: dict[str, Any]) -> list[dict[str, Any]]:
    """This process's clips of the step."""
    names = ("video_name", "video_index", "clip_index", "aug_index")
    clips = [{name: batch[name][place] for name in names} for place in range(len(failure.losses))]
    label = batch["label"]
    labels = label.tolist() if label.ndim == 1 else [row.nonzero().flatten().tolist() for row in label]
    return [
        clip | {"label": label, "loss": _number(loss)}
        for clip, label, loss in zip(clips, labels, failure.losses, strict=True)
    ]


def _number(value: float) -> float | str:
    return value if isfinite(value) else str(value)
