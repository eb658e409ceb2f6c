"""The end of a run: its weights measured by the configuration's own protocol, and the numbers put on their card."""

from collections.abc import Callable
from pathlib import Path

import torch

from mvit_video.config.schema import AUTO, Config
from mvit_video.data.lists.read import checked_list
from mvit_video.data.lists.records import VideoList
from mvit_video.data.lists.split import found_lists
from mvit_video.engine.distributed import is_first
from mvit_video.engine.run import training_lists
from mvit_video.engine.run_folder import AVERAGED_WEIGHTS, EVALUATION, WEIGHTS
from mvit_video.errors import ConfigError
from mvit_video.evaluation.evaluate import evaluate
from mvit_video.evaluation.protocols import Protocol
from mvit_video.evaluation.results import FILES, NAMES, REPORT, circumstances, write_results
from mvit_video.model.weights.card import Measured
from mvit_video.model.weights.files import save_checkpoint
from mvit_video.model.weights.load import load_checkpoint
from mvit_video.paths import fresh_folder
from mvit_video.report.evaluation_page import evaluation_report


def held_out_list(config: Config, classes: tuple[str, ...]) -> VideoList:
    """The videos to evaluate on: data.test, or else data.val, or the validation part that data.train=auto splits off."""
    data = found_lists(config.data)
    source = data.test or data.val
    if source is not None:
        return checked_list(source, data, classes, keep_missing=True)
    val = training_lists(config)[1] if config.data.train == AUTO else None
    if val is None:
        raise ConfigError("neither data.test nor data.val is set: name the list of videos to evaluate on")
    return val


def check_evaluation(config: Config) -> None:
    """ConfigError, before the training, where the evaluation after it could not be made."""
    if config.evaluation.after_training:
        Protocol.parse(config.evaluation.protocol).check(config.data.input)
        if config.data.train != AUTO and config.data.test is None and config.data.val is None:
            raise ConfigError("evaluation.after_training wants data.test or data.val: name one of them, or unset it")


def evaluate_run(run: Path, config: Config, device: torch.device, say: Callable[[str], None]) -> None:
    """Measure the run's weights, and their average: results in evaluation/ and evaluation_ema/, numbers on the cards.

    Every process must call it; the first one writes.
    """
    _evaluate(run / WEIGHTS, run / EVALUATION, config, device, say)
    if config.train.ema_decay is not None:
        _evaluate(run / AVERAGED_WEIGHTS, run / f"{EVALUATION}_ema", config, device, say)


def _evaluate(file: Path, folder: Path, config: Config, device: torch.device, say: Callable[[str], None]) -> None:
    model, card = load_checkpoint(file)
    protocol, videos = Protocol.parse(config.evaluation.protocol), held_out_list(config, card.classes)
    scores, result = evaluate(model.to(device), card, videos, config, protocol, device)
    if not is_first():
        return
    numbers = {name: result[name] for name in NAMES if name in result}
    measured = Measured(protocol=str(protocol), num_videos=len(videos), list=videos.source, percent=numbers)
    card = card.model_copy(update={"measured": measured})
    save_checkpoint(file, model, card)
    result |= circumstances(str(file), card, videos, config, protocol, device, scores.multi_label)
    fresh_folder(folder, FILES, overwrite=True)
    write_results(folder, scores, card.classes, result)
    evaluation_report(scores, card.classes, result, config.data, file.parent).write(folder / REPORT)
    text = ", ".join(f"{NAMES[name]} {value:.2f} % ({_between(result, name)})" for name, value in numbers.items())
    say(f"{file}: {text} of {len(videos)} held-out videos, {protocol}; details in {folder / REPORT}")


def _between(result: dict, name: str) -> str:
    """Few videos say little: the interval belongs to the number."""
    return "{:.1f} to {:.1f} with 95 %".format(*result["intervals_95"][name])
