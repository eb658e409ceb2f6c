"""One training run in one folder: resolve, build, loop."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from mvit_video.engine.build import MakeMeasure, build
from mvit_video.engine.checkpoint import VALIDATION
from mvit_video.engine.determinism import deterministic_algorithms
from mvit_video.engine.distributed import everyones, is_first
from mvit_video.engine.ending import ended_at
from mvit_video.engine.hooks.bad_videos import events_summary, without_bad_videos
from mvit_video.engine.metrics_log import read_metrics
from mvit_video.engine.parallel import whole_network
from mvit_video.engine.resolve import ResolvedRun
from mvit_video.engine.run_folder import AVERAGED_WEIGHTS, WEIGHTS
from mvit_video.model.weights.card import ModelCard
from mvit_video.model.weights.files import save_checkpoint


def train_run(run: ResolvedRun, make_measure: MakeMeasure, say: Callable[[str], None]) -> None:
    """Build the run and train it; its final weights are in its folder then.

    Everything that can be wrong with settings, lists and weights is found before the folder is touched. Under torchrun
    every process calls this; rank 0 writes and `say`s.
    """
    say = say if is_first() else _silent
    training = build(run, make_measure, say)
    with deterministic_algorithms(run.config.train.deterministic):
        training.loop.run(training.batches)
    events_summary(run.folder, say)
    _save_weights(run.folder / WEIGHTS, training.learner.model, run.card)
    if training.learner.average is not None:
        _save_weights(run.folder / AVERAGED_WEIGHTS, training.learner.average.model, run.card)
    everyones(0)  # none goes on before the files are there
    say(_how_it_ended(run, training.learner.model, make_measure))


def _how_it_ended(run: ResolvedRun, model: nn.Module, make_measure: MakeMeasure) -> str:
    network, sound = whole_network(model, run.card), without_bad_videos(run.folder, run.train)
    return ended_at(network, sound, make_measure, read_metrics(run.folder / VALIDATION), run.config.train.epochs)


def _save_weights(path: Path, network: nn.Module, card: ModelCard) -> None:
    network = whole_network(network, card)
    if is_first():
        save_checkpoint(path, network, card)


def _silent(text: str) -> None:
    """What all processes but rank 0 say."""
