"""Verbs about datasets: demo-data, verify, prepare, benchmark-data."""

import argparse
import os
import sys
from pathlib import Path

from mvit_video.cli.common import add_config, add_output, add_shard, at_least_one, print_error, print_rows, say
from mvit_video.errors import ConfigError


def demo_data(arguments: argparse.Namespace) -> int:
    """Write the demonstration dataset: H.264 files, train.csv, val.csv, classes.txt, and a longer video with its segments."""
    from mvit_video.data.synthetic import write_dataset

    folder = write_dataset(
        arguments.output,
        arguments.train,
        arguments.val,
        arguments.seed,
        arguments.workers,
        arguments.overwrite,
        arguments.two_motions,
    )
    say(f"{arguments.train} training and {arguments.val} validation videos are in {folder}")
    return 0


def _add_demo_data(parser: argparse.ArgumentParser) -> None:
    add_output(parser, "the dataset")
    parser.add_argument("--train", type=at_least_one, default=768, help="training videos (default: 768)")
    parser.add_argument("--val", type=at_least_one, default=160, help="validation videos (default: 160)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=at_least_one, default=2, help="processes that draw and encode (default: 2)")
    parser.add_argument(
        "--two-motions",
        action="store_true",
        help="two objects and two labels per video, for configs/demo/two_motions.yaml",
    )


def verify(arguments: argparse.Namespace) -> int:
    """Decode every video of a dataset completely, and list the bad ones: missing, damaged, truncated, not a video, hanging.

    Exits with 1 if any is bad. With CONFIG, checks all videos of data.train, data.val and data.test.
    """
    from mvit_video.data.lists.failures import group_by_cause
    from mvit_video.data.prepare import verify
    from mvit_video.paths import output_file, write_json
    from mvit_video.progress import progress_bar

    output = output_file(arguments.json) if arguments.json else None
    folder, shard = _part_of(arguments, (verify.VERIFIED,))
    lists, plan = _videos_to_verify(arguments)
    for note in (note for videos in lists for note in videos.notes):
        say(f"note: {note}")
    warnings: list[tuple[str, str]] = []
    with progress_bar("verifying", len(verify.files_of(lists, shard))) as bar:
        result = verify.verify(lists, plan, bar.advance, lambda path, note: warnings.append((path, note)), shard)
    if folder:
        verify.write_verified(folder, result, lists, plan, shard)
    if output:
        write_json(output, result)
    if result["bad"]:
        groups = group_by_cause([bad["reason"] for bad in result["bad"]])
        rows = [_bad_row([result["bad"][place] for place in group]) for group in groups]
        print_rows("bad videos", ("video", "row", "seconds", "reason"), rows, (1, 2))
    if warnings:
        print_rows("readable, with warnings", ("video", "note"), warnings, ())
    count = len(result["bad"])
    part = f" (shard {shard})" if folder else ""
    say(f"{count} bad video{'' if count == 1 else 's'} of {result['num_videos']}{part}")
    return 1 if result["bad"] else 0


def _part_of(arguments: argparse.Namespace, files: tuple[str, ...]):
    """Output folder and shard of --shard; None and the whole without it."""
    from mvit_video.paths import fresh_folder
    from mvit_video.shards import PART, WHOLE, parse_shard

    if bool(arguments.shard) != bool(arguments.output):
        raise ConfigError("--shard I/N and --output DIR must be used together")
    if not arguments.shard:
        return None, WHOLE
    shard = parse_shard(arguments.shard)
    return fresh_folder(arguments.output, (*files, PART), arguments.overwrite), shard


def _bad_row(bad: list[dict]) -> tuple[str, str, str, str]:
    """Table row of a bad video, or of many with one cause."""
    first = bad[0]
    name = first["path"] if len(bad) == 1 else f"{len(bad)} videos, the first is {first['path']}"
    return name, str(first["row"]), f"{sum(one['seconds'] for one in bad):.1f}", first["reason"]


def _videos_to_verify(arguments: argparse.Namespace):
    """Lists of the configuration or of --annotations, and how to decode their videos."""
    from mvit_video.config.load import load_config
    from mvit_video.data.lists.read import annotated_list
    from mvit_video.data.prepare.verify import Decoding, lists_to_verify

    if (arguments.config is None) == (arguments.annotations is None):
        raise ConfigError("expected either a CONFIG, or --annotations with --root")
    if arguments.annotations is not None:
        if arguments.root is None:
            raise ConfigError("--annotations needs --root, the folder that its paths are relative to")
        videos, _ = annotated_list(arguments.annotations, arguments.root)
        return [videos], Decoding(arguments.root, workers=arguments.workers)
    data = load_config(arguments.config, arguments.overrides).data
    return lists_to_verify(data), Decoding(
        data.root, data.decoder, data.decode_timeout or Decoding.timeout, arguments.workers
    )


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG", help="a YAML file, or a name that `mvit-video configs` lists"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="override settings of the file")
    parser.add_argument(
        "--annotations", metavar="FILE", help="a list of videos instead of CONFIG, in any format of data.train"
    )
    parser.add_argument("--root", metavar="DIR", help="folder that the paths in --annotations are relative to")
    parser.add_argument("--workers", type=at_least_one, default=2, help="videos decoded in parallel (default: 2)")
    parser.add_argument("--json", metavar="FILE", help="write the bad videos with row, reason and seconds to this file")
    add_shard(parser, "the videos")
    add_output(parser, "the part", required=False)


def prepare(arguments: argparse.Namespace) -> int:
    """Re-encode the videos of a list to a short side of N pixels, so that random clips decode fast; rerun to resume."""
    from mvit_video.data.lists.failures import FailureReporter
    from mvit_video.data.prepare.prepare import BAD, prepare_dataset
    from mvit_video.shards import parse_shard

    reporter = FailureReporter(print_error)
    shard = parse_shard(arguments.shard) if arguments.shard else None
    done = prepare_dataset(
        arguments.annotations,
        arguments.root,
        arguments.output,
        arguments.short_side,
        arguments.workers,
        reporter,
        arguments.overwrite,
        shard=shard,
    )
    reporter.end()
    kept = f" ({done.kept} of them from an earlier run)" if done.kept else ""
    say(f"{done.written + done.kept} videos{kept}, {done.bytes / 1e6:,.1f} MB, are in {arguments.output}")
    if shard is None and done.written + done.kept:
        name = done.list_file.relative_to(arguments.output)
        say(f"train on them with data.root={arguments.output} data.train={name}")
    if done.bad:
        print_error(f"{len(done.bad)} rows have no video, see {Path(arguments.output) / BAD}; they stay in the list")
    return 1 if done.bad else 0


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--annotations", required=True, metavar="FILE", help="a list of videos, in any format of data.train"
    )
    parser.add_argument("--root", required=True, metavar="DIR", help="folder that its paths are relative to")
    add_output(parser, "the new videos, list and manifest; outside --root")
    parser.add_argument("--short-side", type=_even, default=256, metavar="N", help="pixels, even (default: 256)")
    parser.add_argument(
        "--workers",
        type=at_least_one,
        default=os.cpu_count() or 1,
        help="videos encoded in parallel (default: number of cores)",
    )
    add_shard(parser, "the videos")


def merge(arguments: argparse.Namespace) -> int:
    """Merge the shards of one job, each once, into what one process would have written.

    Exits with 1 if any video is bad.
    """
    from mvit_video import api

    bad = api.merge(arguments.parts, arguments.output, arguments.overwrite, say)
    say(f"{len(arguments.parts)} shards merged to {arguments.output}" + (f", {bad} bad videos" if bad else ""))
    return 1 if bad else 0


def _add_merge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "parts",
        nargs="+",
        metavar="DIR",
        help="the --output of each verify, prepare, features, predict or evaluate --shard",
    )
    add_output(parser, "the whole")


def _even(text: str) -> int:
    if at_least_one(text) % 2:
        raise argparse.ArgumentTypeError(f"'{text}' is odd, but H.264 needs an even size")
    return int(text)


def benchmark_data(arguments: argparse.Namespace) -> int:
    """Measure how fast data.train loads, and where the time goes; with --against pytorchvideo, compare with its dataset."""
    from rich.console import Console

    from mvit_video.benchmark.loading import benchmark_loading, loading_tables
    from mvit_video.config.load import load_config
    from mvit_video.paths import output_file, write_json

    output = output_file(arguments.json) if arguments.json else None
    config = load_config(arguments.config, arguments.overrides)
    result = benchmark_loading(config, arguments.clips, arguments.against, arguments.originals)
    width = None if sys.stdout.isatty() else 120  # no truncation in a file
    Console(markup=False, highlight=False, width=width).print(*loading_tables(result), sep="\n")
    if output:
        write_json(output, result)
    return 0


def _add_benchmark_data(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--against", choices=("pytorchvideo",), help="also measure its LabeledVideoDataset on the same clips"
    )
    parser.add_argument(
        "--originals", metavar="DIR", help="the root that data.root was prepared from, to measure it too"
    )
    parser.add_argument("--clips", type=at_least_one, default=32, help="clips to measure (default: 32)")
    parser.add_argument("--json", metavar="FILE", help="write all results to this file")


VERBS = (
    (demo_data, _add_demo_data),
    (verify, _add_verify),
    (prepare, _add_prepare),
    (merge, _add_merge),
    (benchmark_data, _add_benchmark_data),
)
