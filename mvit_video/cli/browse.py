"""The verb that shows a dataset before training: browse."""

import argparse
from pathlib import Path

from mvit_video.cli.common import (
    add_config,
    add_device,
    add_output,
    add_precision,
    at_least_one,
    print_error,
    say,
    whole_number,
)
from mvit_video.errors import ConfigError


def browse(arguments: argparse.Namespace) -> int:
    """Look through a dataset before training: a page of classes, lengths, strips, near-duplicates and doubtful labels.

    Looks at some frames of each video of data.train, data.val and data.test. Videos that show nearly the same, within a list or
    between two, are found without a network. With --checkpoint or --features, labels are doubted where a classifier of
    the other videos' features thinks otherwise. A video that cannot be read costs one line, and the exit code is 1.
    """
    from mvit_video.config.load import load_config
    from mvit_video.data.lists.failures import summary_lines
    from mvit_video.data.lists.split import groups_of
    from mvit_video.data.prepare.verify import Decoding
    from mvit_video.evaluation.label_doubt import require_packages
    from mvit_video.locks import alone_in
    from mvit_video.paths import fresh_folder
    from mvit_video.progress import progress_bar
    from mvit_video.report import browse as looking

    if arguments.checkpoint and arguments.features:
        raise ConfigError("--checkpoint and --features cannot be combined: features are of one checkpoint already")
    if arguments.checkpoint or arguments.features:
        require_packages()
    data = load_config(arguments.config, arguments.overrides).data
    lists = looking.dataset_lists(data)
    plan = Decoding(data.root, data.decoder, data.decode_timeout or Decoding.timeout, arguments.workers)
    for note in dict.fromkeys(note for videos in lists.values() for note in videos.notes):
        say(f"note: {note}")
    chosen = looking.chosen_entries(lists, arguments.videos, arguments.seed)
    paths = list(dict.fromkeys(entry.record.path for entry in chosen))
    if arguments.checkpoint or arguments.features:
        groups_of(paths, data.split_group)  # a pattern that does not fit is found out before hours of work
    with alone_in(arguments.output, say):
        folder = fresh_folder(arguments.output, looking.FILES, arguments.overwrite)
        with progress_bar("looking", len(paths)) as bar:
            survey = looking.look_through(lists, plan, arguments.videos, arguments.seed, bar.advance)
        features = _features(arguments, survey, plan, folder)
        if features is not None:
            survey = looking.with_doubts(survey, features, arguments.seed, data.split_group)
        looking.write_tables(survey, folder)
        _write_page(survey, plan, arguments, folder)
    for line in summary_lines([(record.path, reason) for _, record, reason in survey.unreadable]):
        print_error(line)
    _say_what_was_found(survey, folder)
    return 1 if survey.unreadable else 0


def _features(arguments: argparse.Namespace, survey, plan, folder: Path):
    """Features by path, of --features or from --checkpoint; None without either."""
    from mvit_video.inference.features import Task, extract_features, read_features

    if arguments.features:
        found: dict = {}
        for place in arguments.features:
            found |= read_features(place)
        return found
    if not arguments.checkpoint:
        return None
    from mvit_video.inference.predictor import Predictor
    from mvit_video.report.browse import FEATURES, readable_videos

    predictor = Predictor.from_checkpoint(arguments.checkpoint, arguments.device, precision=arguments.precision)
    task = Task(readable_videos(survey), plan.root, "pooled", plan.backend, plan.timeout)
    extract_features(predictor, task, folder / FEATURES, arguments.overwrite)
    return read_features(folder / FEATURES)


def _write_page(survey, plan, arguments: argparse.Namespace, folder: Path) -> None:
    from mvit_video.report.browse import PAGE
    from mvit_video.report.browse_page import BrowsePage

    page = BrowsePage(survey, plan, arguments.strips, arguments.seed)
    page.report(f"Videos of {Path(plan.root).resolve().name}").write(folder / PAGE)


def _say_what_was_found(survey, folder: Path) -> None:
    from mvit_video.report.browse import PAGE

    doubts = "" if survey.doubts is None else f", {len(survey.doubts)} doubtful labels"
    say(
        f"{len(survey.unreadable)} unreadable, {len(survey.groups)} groups of near-duplicates ({len(survey.leaks)} in more than "
        f"one list){doubts}: open {folder / PAGE} in a browser"
    )


def _add_browse(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_output(parser, "browse.html and the csv files beside it")
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="a network whose features tell which labels are doubtful, best one that was not trained on these videos; "
        "writes them to features/ (needs scikit-learn and cleanlab)",
    )
    parser.add_argument(
        "--features",
        nargs="+",
        metavar="DIR",
        help="pooled features of these videos that `mvit-video features` has written, instead of --checkpoint",
    )
    parser.add_argument(
        "--videos", type=at_least_one, metavar="N", help="look at N random videos of each list (default: all)"
    )
    parser.add_argument(
        "--strips", type=at_least_one, default=2, metavar="N", help="random videos shown of each class (default: 2)"
    )
    parser.add_argument("--seed", type=whole_number, default=0, help="of the random choices (default: 0)")
    parser.add_argument("--workers", type=at_least_one, default=2, help="videos read in parallel (default: 2)")
    add_precision(parser)
    add_device(parser)


VERBS = ((browse, _add_browse),)
