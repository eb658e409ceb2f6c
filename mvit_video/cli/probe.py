"""The verb that learns from few labels: probe."""

import argparse
from pathlib import Path

from mvit_video.cli.common import (
    add_allow_missing,
    add_checkpoint,
    add_config,
    add_device,
    add_output,
    add_precision,
    at_least_one,
    overrides,
    print_error,
    print_rows,
    say,
    whole_number,
)

RESULTS, WEIGHTS, FEATURES = "results.json", "model.safetensors", "features"


def probe(arguments: argparse.Namespace) -> int:
    """Learn classes from few videos without training the network: classifiers of its features, on any CPU.

    Extracts the features of data.train and data.test (or data.val) once, and prints the accuracy of nearest neighbours,
    logistic regression and, with --attentive, an attentive probe, for 1, 2, 4 ... and all training videos of each class.
    Writes results.json, and model.safetensors with the logistic regression as its head, for predict and all other verbs.
    A video that cannot be decoded costs one line, and the exit code is 1.
    """
    from mvit_video.config.load import load_config
    from mvit_video.data.lists.checks import MISSING, missing_text
    from mvit_video.data.lists.failures import summary_lines
    from mvit_video.evaluation.probes import require_scikit_learn
    from mvit_video.evaluation.protocols import Protocol
    from mvit_video.inference.predictor import Predictor, choose_device
    from mvit_video.inference.probe import frozen_network, measured, with_head
    from mvit_video.inference.probe import probe as probed_with
    from mvit_video.locks import alone_in
    from mvit_video.model.weights.files import save_checkpoint
    from mvit_video.paths import fresh_folder, write_json, write_whole

    require_scikit_learn()
    config = load_config(arguments.config, overrides(arguments))
    device = choose_device(arguments.device)
    protocol = Protocol.parse(arguments.protocol or config.evaluation.protocol)
    task = _task(arguments, config.data)
    model, card = frozen_network(arguments.checkpoint, task.train.videos.classes, say)
    predictor = Predictor(model, card, device, protocol, precision=arguments.precision)
    with alone_in(arguments.output, say):
        folder = fresh_folder(arguments.output, (RESULTS, WEIGHTS, MISSING), arguments.overwrite)
        if lists := [one.videos for one in (task.train, task.test) if one.videos.missing]:
            write_whole(folder / MISSING, missing_text(lists))
        probed = probed_with(predictor, task, Path(arguments.features or folder / FEATURES))
        numbers = measured(probed, predictor, task.test.videos)
        network, new_card = with_head(model, card, probed.head, task.train.videos.classes)
        new_card = new_card.model_copy(update={"protocol": str(protocol), "measured": numbers})
        save_checkpoint(folder / WEIGHTS, network, new_card)
        write_json(folder / RESULTS, probed.content() | _origin(arguments, predictor, task))
    for line in summary_lines(probed.undecodable):
        print_error(line)
    _print(probed, task, protocol)
    say(f"{folder / WEIGHTS}: logistic regression of all {len(task.train.videos)} training videos as its head")
    return 1 if probed.undecodable else 0


def _task(arguments: argparse.Namespace, data):
    from mvit_video.data.lists.checks import note_overlap, refuse_several_labels
    from mvit_video.data.lists.selection import held_out_list, training_lists
    from mvit_video.inference.features import POOLED, Task
    from mvit_video.inference.probe import ProbeTask

    train = training_lists(data, multi_label=True)[0]
    refuse_several_labels(train)
    test = held_out_list(data, train.classes)
    for note in filter(None, dict.fromkeys((*train.notes, *test.notes, note_overlap(train, test)))):
        say(f"note: {note}")
    refuse_several_labels(test)
    known, asked = (Task(videos, data.root, POOLED, data.decoder, data.decode_timeout) for videos in (train, test))
    return ProbeTask(known, asked, tuple(arguments.shots), arguments.draws, arguments.attentive, arguments.seed)


def _origin(arguments: argparse.Namespace, predictor, task) -> dict:
    """What results.json says of where its numbers come from."""
    from mvit_video.model.weights.fingerprint import weights_digest

    return {
        "checkpoint": {"path": arguments.checkpoint, "weights": weights_digest(predictor.model)},
        "network": predictor.card.name,
        "protocol": str(predictor.protocol),
        "precision": str(predictor.precision),
        "preprocessing": predictor.card.preprocessing.model_dump(mode="json"),
        "train": {"list": task.train.videos.source, "videos": len(task.train.videos)},
        "test": {"list": task.test.videos.source, "videos": len(task.test.videos)},
        "classes": list(task.train.videos.classes),
        "seed": task.seed,
    }


def _print(probed, task, protocol) -> None:
    """A row for each classifier, a column for each number of videos."""
    shots = list(dict.fromkeys(one.shots for one in probed.found))
    titles = [f"all {len(task.train.videos)}" if count is None else f"{count} per class" for count in shots]
    cells: dict[str, list[str]] = {}
    for one in probed.found:
        low, high = one.interval_95
        cells.setdefault(one.method, []).append(f"{one.top1:.1f} ({low:.1f} to {high:.1f})")
    title = f"top-1 of {len(task.test.videos)} test videos, {protocol} views, with 95 % intervals; training videos:"
    rows = [(method, *values) for method, values in cells.items()]
    print_rows(title, ("classifier", *titles), rows, tuple(range(1, len(titles) + 1)))


def _add_probe(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_checkpoint(parser)
    add_output(parser, "results.json, model.safetensors and features/")
    parser.add_argument(
        "--attentive",
        action="store_true",
        help="also an attentive probe of the last stage's maps: a second pass over the videos, and more room on the disk",
    )
    parser.add_argument(
        "--shots",
        type=at_least_one,
        nargs="+",
        default=[],
        metavar="N",
        help="numbers of training videos of each class (default: 1, 2, 4 ... as far as each class has more)",
    )
    parser.add_argument(
        "--draws", type=at_least_one, default=10, metavar="N", help="random choices of these videos (default: 10)"
    )
    parser.add_argument("--seed", type=whole_number, default=0, help="of the random choices (default: 0)")
    parser.add_argument("--protocol", metavar="NxM", help="clips × crops per video (default: evaluation.protocol)")
    parser.add_argument(
        "--features", metavar="DIR", help="where features are kept for the next call (default: features/ in --output)"
    )
    add_allow_missing(parser)
    add_precision(parser)
    add_device(parser)


VERBS = ((probe, _add_probe),)
