"""Verbs that write networks or features for other programs: export, features."""

import argparse
from pathlib import Path

from mvit_video.cli.common import (
    add_checkpoint,
    add_device,
    add_output,
    add_precision,
    add_shard,
    at_least_one,
    print_error,
    say,
)
from mvit_video.errors import ConfigError


def export(arguments: argparse.Namespace) -> int:
    """Export a network to ONNX or torch.export, with class names and preprocessing, and check it against the original."""
    from mvit_video.inference.export import export_checkpoint

    report = export_checkpoint(
        arguments.checkpoint,
        arguments.format,
        arguments.output,
        arguments.batch,
        arguments.int8,
        arguments.overwrite,
        arguments.precision,
    )
    say(
        f"{arguments.output}: {report.size / 1e6:.1f} MB, logits up to {report.difference:.1e} from the network's in "
        f"{report.precision} and the same label for {report.same_label:.0%} of random clips; "
        f"{1000 * report.seconds:.0f} ms a run on this CPU, the network {1000 * report.network_seconds:.0f} ms"
    )
    return 0


def _add_export(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    parser.add_argument(
        "--format", required=True, metavar="NAME", help="onnx, pt2 (torch.export), or a format registered by a plugin"
    )
    parser.add_argument("--output", required=True, metavar="FILE")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output file")
    parser.add_argument(
        "--batch", type=_batch, metavar="N", help="batch size of the file: a number, or dynamic (default)"
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="a smaller file (ONNX): weights of linear layers in 8 bits, uncalibrated; not for speed",
    )
    add_precision(parser, what="of the network that the file is compared with")


def _batch(text: str) -> int | None:
    return None if text == "dynamic" else at_least_one(text)


def features(arguments: argparse.Namespace) -> int:
    """Extract features of every clip of a dataset: pooled features, or the feature maps of a stage.

    Call it again to go on after an interruption. Videos that cannot be decoded are listed, and the exit code is 1.
    """
    from mvit_video.data.lists.failures import summary_lines
    from mvit_video.inference.features import extract_features
    from mvit_video.inference.predictor import Predictor
    from mvit_video.locks import alone_in
    from mvit_video.shards import parse_shard

    shard = parse_shard(arguments.shard) if arguments.shard else None
    task = _feature_task(arguments)
    for note in task.videos.notes:
        say(f"note: {note}")
    words = arguments.checkpoint, arguments.device, arguments.protocol
    predictor = Predictor.from_checkpoint(*words, precision=arguments.precision)
    with alone_in(arguments.output, say):
        bad = extract_features(predictor, task, arguments.output, arguments.overwrite, shard)
    for line in summary_lines([*_refused(task.videos), *bad]):
        print_error(line)
    if shard is not None:
        say(f"shard {shard}: features saved to {arguments.output}")
        return 1 if bad or task.videos.refused else 0
    done = len(task.videos) - len(bad)
    say(f"features of {done} videos, {predictor.protocol} views each: see {arguments.output}/index.csv")
    return 1 if bad or task.videos.refused else 0


def _refused(videos) -> list[tuple[str, str]]:
    return [(record.path, f"{reason} ({videos.where(record)})") for record, reason in videos.refused]


def _feature_task(arguments: argparse.Namespace):
    """Videos of data.test or data.val, of data.train=auto, or of --annotations."""
    from mvit_video.config.load import load_config
    from mvit_video.config.schema import AUTO
    from mvit_video.data.lists.class_names import read_classes
    from mvit_video.data.lists.read import annotated_list, read_videos
    from mvit_video.data.lists.split import resolve_auto_lists
    from mvit_video.inference.features import Task

    if bool(arguments.config) == bool(arguments.annotations):
        raise ConfigError("expected either a CONFIG, or --annotations FILE with --root DIR")
    if arguments.annotations:
        root = arguments.root or "."
        videos, frames = annotated_list(arguments.annotations, root)
        return Task(videos, root, arguments.stage, "frames" if frames else "pyav")
    if arguments.root:
        raise ConfigError("--root is only for --annotations: with a CONFIG, pass data.root=DIR")
    given = load_config(arguments.config, arguments.overrides).data
    data = resolve_auto_lists(given)
    source = data.test or data.val or (data.train if given.train == AUTO else None)
    if source is None:
        raise ConfigError("neither data.test nor data.val is set: name the list of videos, such as data.test=train.csv")
    names = read_classes(str(Path(data.root) / data.classes)) if data.classes else None
    frames = data.decoder == "frames"
    videos = read_videos(source, data.root, names, frames, False, data.follow_links, keep_refused=True)
    return Task(videos, data.root, arguments.stage, data.decoder, data.decode_timeout)


def _add_features(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="whose data.test (or data.val) names the videos")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as data.test=train.csv")
    parser.add_argument("--annotations", metavar="FILE", help="a list of videos instead of CONFIG, relative to --root")
    parser.add_argument("--root", metavar="DIR", help="folder of the list and its videos (default: current folder)")
    add_checkpoint(parser)
    parser.add_argument(
        "--stage",
        default="pooled",
        help="pooled (default): the input of the head; or the feature map after stage 1, 2, 3 or 4",
    )
    parser.add_argument("--protocol", metavar="NxM", help="clips × crops per video (default: the checkpoint's)")
    add_output(parser, "the features")
    add_shard(parser, "the files of features")
    add_precision(parser)
    add_device(parser)


VERBS = ((export, _add_export), (features, _add_features))
