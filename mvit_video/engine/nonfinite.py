"""What is known about a step whose loss or gradient is NaN or Inf, kept on disk for whoever looks for the cause."""

from math import isfinite
from pathlib import Path

from mvit_video.engine.distributed import gathered, is_first
from mvit_video.errors import TrainingError
from mvit_video.paths import write_json


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


def write_report(run: Path, failure: NonFiniteStep, batch: dict) -> Path:
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


def _clips(failure: NonFiniteStep, batch: dict) -> list[dict]:
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
