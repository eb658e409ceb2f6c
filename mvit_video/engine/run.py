"""One training run in one folder: resolve, build, loop."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from mvit_video.engine.build import MakeMeasure, build
from mvit_video.engine.checkpoint import VALIDATION
from mvit_video.engine.determinism import deterministic_algorithms
from mvit_video.engine.distributed import all_gather_int, is_rank_zero
from mvit_video.engine.final_accuracy import describe_final_accuracy
from mvit_video.engine.hooks.bad_videos import events_summary, without_bad_videos
from mvit_video.engine.metrics_log import read_metrics
from mvit_video.engine.parallel import full_network
from mvit_video.engine.resolve import ResolvedRun
from mvit_video.engine.run_folder import AVERAGED_WEIGHTS, WEIGHTS
from mvit_video.model.weights.card import ModelCard
from mvit_video.model.weights.files import save_checkpoint


def train_run(run: ResolvedRun, make_measure: MakeMeasure, say: Callable[[str], None]) -> None:
    """Build and train a run, and save its final weights in its folder.

    Errors in settings, lists and weights are raised before the folder is touched. Under torchrun every process calls this;
    rank 0 writes and prints.
    """
    say = say if is_rank_zero() else _silent
    training = build(run, make_measure, say)
    with deterministic_algorithms(run.config.train.deterministic):
        training.loop.run(training.batches)
    events_summary(run.folder, say)
    _save_weights(run.folder / WEIGHTS, training.learner.model, run.card)
    if training.learner.average is not None:
        _save_weights(run.folder / AVERAGED_WEIGHTS, training.learner.average.model, run.card)
    all_gather_int(0)  # wait until the files are written
    if run.masked:
        say(f"pre-trained: fine-tune with `mvit-video train CONFIG model.weights={run.folder / WEIGHTS} --output DIR`")
    else:
        say(_final_accuracy(run, training.learner.model, make_measure))


def _final_accuracy(run: ResolvedRun, model: nn.Module, make_measure: MakeMeasure) -> str:
    network, sound = full_network(model, run.card), without_bad_videos(run.folder, run.train)
    return describe_final_accuracy(
        network, sound, make_measure, read_metrics(run.folder / VALIDATION), run.config.train.epochs
    )


def _save_weights(path: Path, network: nn.Module, card: ModelCard) -> None:
    network = full_network(network, card)
    if is_rank_zero():
        save_checkpoint(path, network, card)


def _silent(text: str) -> None:
    """Prints nothing: for all processes but rank 0."""
