"""Resume a run: find its state, check that it belongs to the run, and print what changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mvit_video.engine.checkpoint import VALIDATION, TrainingState, newest_state, set_aside
from mvit_video.engine.distributed import all_gather_json, is_rank_zero
from mvit_video.engine.hooks.bad_videos import EVENTS
from mvit_video.engine.hooks.records import METRICS
from mvit_video.engine.metrics_log import truncate_log
from mvit_video.engine.run_folder import weights_hint
from mvit_video.errors import ConfigError
from mvit_video.model.ops.cpu import CpuBackends

BEFORE = {  # of states that do not say it
    "products": CpuBackends().products,
    "attention": CpuBackends().attention,
    "scaling": "float32",
}


def agreed_state(run: Path, say: Callable[[str], None]) -> TrainingState | None:
    """The newest intact state, as found by rank 0."""
    found = None
    if is_rank_zero():
        state, problems = newest_state(run)
        for problem in problems:
            say(problem)
        found = state and [str(state.folder), state.step, state.schedule, state.environment, state.lists]
    chosen = all_gather_json(found)[0]
    return TrainingState(Path(chosen[0]), *chosen[1:]) if chosen else None


def check_schedule(state: TrainingState, last_step: int, per_epoch: int) -> None:
    """Raise ConfigError if the number of steps differs, the only check of the list for states of older versions."""
    if state.schedule != {"last_step": last_step, "steps_per_epoch": per_epoch}:
        raise ConfigError(
            f"{state.folder}: is of a run with {state.schedule['steps_per_epoch']} steps per epoch, but data.train now "
            f"gives {per_epoch}: resume with the original list, or start over in another --output"
            f"{weights_hint(state.folder.parents[1])}"
        )


def first_step(run: Path, state: TrainingState | None, now: dict[str, Any], say: Callable[[str], None]) -> int:
    """Number of steps already done; prints notes about resuming, and renames unusable states.

    `now` is the environment (see `checkpoint.environment`) to compare with the state's.
    """
    for sentence in set_aside(run, state.step if state else 0) if is_rank_zero() else []:
        say(sentence)
    if state is None:
        return 0
    say(f"resuming after step {state.step} from {state.folder}")
    for log in (METRICS, VALIDATION, EVENTS) if is_rank_zero() else ():
        for sentence in truncate_log(run / log, state.step, every_step=log == METRICS):
            say(f"warning: {sentence}")
    before = {name: state.environment.get(name, BEFORE.get(name, value)) for name, value in now.items()}
    changed = [f"{name} {value}, was {before[name]}" for name, value in now.items() if value != before[name]]
    if changed:
        say(f"the environment has changed ({'; '.join(changed)}): results will be similar, but not bit-exact")
    return state.step
