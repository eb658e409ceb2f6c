"""Going on with a run: from which state, whether that is of this run, and what the user should know about it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mvit_video.engine.checkpoint import VALIDATION, TrainingState, newest_state, set_aside
from mvit_video.engine.distributed import gathered, is_first
from mvit_video.engine.hooks.bad_videos import EVENTS
from mvit_video.engine.hooks.records import METRICS
from mvit_video.engine.metrics_log import cut
from mvit_video.engine.run_folder import from_weights_of
from mvit_video.errors import ConfigError
from mvit_video.model.ops.cpu import Ways

BEFORE = {"products": Ways().products, "attention": Ways().attention}  # of states that do not say it


def agreed_state(run: Path, say: Callable[[str], None]) -> TrainingState | None:
    """The newest whole state, as rank 0 finds it."""
    found = None
    if is_first():
        state, complaints = newest_state(run)
        for complaint in complaints:
            say(complaint)
        found = state and [str(state.folder), state.step, state.schedule, state.environment, state.lists]
    chosen = gathered(found)[0]
    return TrainingState(Path(chosen[0]), *chosen[1:]) if chosen else None


def check_schedule(state: TrainingState, last_step: int, per_epoch: int) -> None:
    """ConfigError where the steps are others, which is all that states of before tell of their list."""
    if state.schedule != {"last_step": last_step, "steps_per_epoch": per_epoch}:
        raise ConfigError(
            f"{state.folder}: is of a run with {state.schedule['steps_per_epoch']} steps per epoch, and data.train now "
            f"makes {per_epoch}: resume with the list that it was trained on, or start anew in another --output"
            f"{from_weights_of(state.folder.parents[1])}"
        )


def first_step(run: Path, state: TrainingState | None, now: dict[str, Any], say: Callable[[str], None]) -> int:
    """How many steps are done. Says what there is to know about that; states that cannot be used are set aside.

    `now` is the environment (see `checkpoint.environment`) that is compared with the state's.
    """
    for sentence in set_aside(run, state.step if state else 0) if is_first() else []:
        say(sentence)
    if state is None:
        return 0
    say(f"resuming after step {state.step} from {state.folder}")
    for log in (METRICS, VALIDATION, EVENTS) if is_first() else ():
        for sentence in cut(run / log, state.step, every_step=log == METRICS):
            say(f"warning: {sentence}")
    before = {name: state.environment.get(name, BEFORE.get(name, value)) for name, value in now.items()}
    changed = [f"{name} {value}, was {before[name]}" for name, value in now.items() if value != before[name]]
    if changed:
        say(f"the run goes on elsewhere ({'; '.join(changed)}): alike, but not to the last bit")
    return state.step
