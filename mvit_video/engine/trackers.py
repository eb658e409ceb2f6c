"""Programs that show a run's numbers live: TensorBoard always, Weights & Biases where a project is named."""

import importlib.util
import secrets
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from mvit_video.config.schema import Config
from mvit_video.errors import ConfigError
from mvit_video.paths import write_whole

TENSORBOARD, WANDB, WANDB_ID = "tensorboard", "wandb", "wandb_id.txt"
FILES = (TENSORBOARD, WANDB, WANDB_ID)


class TensorBoard:
    """Event files in the run's folder. On resuming after `first_step`, what later steps wrote is not shown again."""

    def __init__(self, run: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / TENSORBOARD), purge_step=first_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of that project, gone on with when ours is resumed: its id lies in the run's folder."""

    def __init__(self, run: Path, config: Config) -> None:
        import wandb

        place = run / WANDB_ID
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
        self._run.log(dict(values), step=step)

    def close(self) -> None:
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
