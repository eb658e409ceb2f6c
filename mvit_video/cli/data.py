"""Verbs about datasets: demo-data, verify, prepare, benchmark-data."""

import argparse
import os
import sys
from pathlib import Path

from mvit_video.cli.common import add_config, add_output, add_shard, at_least_one, complain, print_rows, say
from mvit_video.errors import ConfigError


def demo_data(arguments: argparse.Namespace) -> int:
    """Write the demonstration dataset: H.264 files, train.csv, val.csv, classes.txt, and a longer video with its segments."""
    from mvit_video.data.synthetic import write_dataset

    folder = write_dataset(
        arguments.output, arguments.train, arguments.val, arguments.seed, arguments.workers, arguments.overwrite
    )
    say(f"{arguments.train} training and {arguments.val} validation videos are in {folder}")
    return 0


def _add_demo_data(parser: argparse.ArgumentParser) -> None:
    add_output(parser, "the dataset")
    parser.add_argument("--train", type=at_least_one, default=768, help="training videos (default: 768)")
    parser.add_argument("--val", type=at_least_one, default=160, help="validation videos (default: 160)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=at_least_one, default=2, help="processes that draw and encode (default: 2)")


def verify(arguments: argparse.Namespace) -> int:
    """Decode every video of a dataset, wholly, and name the bad ones: missing, damaged, cut short, not a video, hanging.

    Exit code 1 if any is bad. With CONFIG, all videos of data.train, data.val and data.test.
    """
    from mvit_video.data.lists.failures import group_by_cause
    from mvit_video.data.prepare import verify
    from mvit_video.paths import output_file, write_json
    from mvit_video.progress import progress_bar

    output = output_file(arguments.json) if arguments.json else None
    folder, shard = _part_of(arguments, (verify.VERIFIED,))
    lists, plan = _verify_plan(arguments)
    for note in (note for videos in lists for note in videos.notes):
        say(f"note: {note}")
    odd: list[tuple[str, str]] = []
    with progress_bar("verifying", len(verify.files_of(lists, shard))) as bar:
        result = verify.verify(lists, plan, bar.advance, lambda path, note: odd.append((path, note)), shard)
    if folder:
        verify.write_verified(folder, result, lists, plan, shard)
    if output:
        write_json(output, result)
    if result["bad"]:
        groups = group_by_cause([bad["reason"] for bad in result["bad"]])
        rows = [_bad_row([result["bad"][place] for place in group]) for group in groups]
        print_rows("bad videos", ("video", "row", "seconds", "reason"), rows, (1, 2))
    if odd:
        print_rows("odd, and read all the same", ("video", "note"), odd, ())
    say(f"{len(result['bad'])} of {result['num_videos']} videos are bad" + (f", shard {shard}" if folder else ""))
    return 1 if result["bad"] else 0


def _part_of(arguments: argparse.Namespace, files: tuple[str, ...]):
    """The folder for the part that --shard asks for, and the shard; None and the whole without it."""
    from mvit_video.paths import fresh_folder
    from mvit_video.shards import PART, WHOLE, parse_shard

    if bool(arguments.shard) != bool(arguments.output):
        raise ConfigError("--shard I/N and --output DIR, where the part is written, need each other")
    if not arguments.shard:
        return None, WHOLE
    shard = parse_shard(arguments.shard)
    return fresh_folder(arguments.output, (*files, PART), arguments.overwrite), shard


def _bad_row(bad: list[dict]) -> tuple[str, str, str, str]:
    """A bad video, or many with one cause: how many, and the first of them."""
    first = bad[0]
    name = first["path"] if len(bad) == 1 else f"{len(bad)} videos, the first is {first['path']}"
    return name, str(first["row"]), f"{sum(one['seconds'] for one in bad):.1f}", first["reason"]


def _verify_plan(arguments: argparse.Namespace):
    """The lists of the configuration or of --annotations, and how their videos are decoded."""
    from mvit_video.config.load import load_config
    from mvit_video.data.lists.read import annotated_list
    from mvit_video.data.prepare.verify import Decoding, lists_of

    if (arguments.config is None) == (arguments.annotations is None):
        raise ConfigError("expected either a CONFIG or --annotations with --root, to know which videos to verify")
    if arguments.annotations is not None:
        if arguments.root is None:
            raise ConfigError("--annotations wants --root too, the folder that its paths are relative to")
        videos, _ = annotated_list(arguments.annotations, arguments.root)
        return [videos], Decoding(arguments.root, workers=arguments.workers)
    data = load_config(arguments.config, arguments.overrides).data
    return lists_of(data), Decoding(data.root, data.decoder, data.decode_timeout or Decoding.timeout, arguments.workers)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG", help="a YAML file, or a name that `mvit-video configs` lists"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that win over the file's")
    parser.add_argument(
        "--annotations", metavar="FILE", help="a list of videos instead of CONFIG, as data.train takes it"
    )
    parser.add_argument("--root", metavar="DIR", help="folder that the paths in --annotations are relative to")
    parser.add_argument("--workers", type=at_least_one, default=2, help="videos decoded at once (default: 2)")
    parser.add_argument("--json", metavar="FILE", help="write the bad videos with row, reason and seconds to this file")
    add_shard(parser, "the videos")
    add_output(parser, "the part", required=False)


def prepare(arguments: argparse.Namespace) -> int:
    """Re-encode the videos of a list to a short side of N pixels, so that random clips decode fast; call again to go on."""
    from mvit_video.data.lists.failures import FailureReporter
    from mvit_video.data.prepare.prepare import BAD, prepare_dataset
    from mvit_video.shards import parse_shard

    complaints = FailureReporter(complain)
    shard = parse_shard(arguments.shard) if arguments.shard else None
    done = prepare_dataset(
        arguments.annotations,
        arguments.root,
        arguments.output,
        arguments.short_side,
        arguments.workers,
        complaints,
        arguments.overwrite,
        shard=shard,
    )
    complaints.end()
    kept = f" ({done.kept} of them by an earlier call)" if done.kept else ""
    say(f"{done.written + done.kept} videos{kept} with {done.bytes / 1e6:,.1f} MB are in {arguments.output}")
    if shard is None and done.written + done.kept:
        name = done.list_file.relative_to(arguments.output)
        say(f"train on them with data.root={arguments.output} data.train={name}")
    if done.bad:
        complain(f"{len(done.bad)} rows have no video, see {Path(arguments.output) / BAD}; the list keeps these rows")
    return 1 if done.bad else 0


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--annotations", required=True, metavar="FILE", help="a list of videos, as data.train takes it")
    parser.add_argument("--root", required=True, metavar="DIR", help="the folder that the paths in it are relative to")
    add_output(parser, "the new videos, list and manifest; outside of --root")
    parser.add_argument("--short-side", type=_even, default=256, metavar="N", help="pixels, even (default: 256)")
    parser.add_argument(
        "--workers", type=at_least_one, default=os.cpu_count() or 1, help="videos at once (default: cores)"
    )
    add_shard(parser, "the videos")


def merge(arguments: argparse.Namespace) -> int:
    """Join the parts that --shard has written: all of one job, each once, into what one process would have written.

    Exit code 1 if any video is bad.
    """
    from mvit_video import api

    bad = api.merge(arguments.parts, arguments.output, arguments.overwrite, say)
    say(f"{len(arguments.parts)} parts are joined in {arguments.output}" + (f", {bad} bad videos" if bad else ""))
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
        raise argparse.ArgumentTypeError(f"'{text}' is odd: H.264 halves the sizes for colours")
    return int(text)


def benchmark_data(arguments: argparse.Namespace) -> int:
    """Measure how fast data.train loads, and where the time goes; with --against pytorchvideo in turn with its dataset."""
    from rich.console import Console

    from mvit_video.benchmark.loading import benchmark_loading, loading_tables
    from mvit_video.config.load import load_config
    from mvit_video.paths import output_file, write_json

    output = output_file(arguments.json) if arguments.json else None
    config = load_config(arguments.config, arguments.overrides)
    result = benchmark_loading(config, arguments.clips, arguments.against, arguments.originals)
    width = None if sys.stdout.isatty() else 120  # in a file no figure is to be cut
    Console(markup=False, highlight=False, width=width).print(*loading_tables(result), sep="\n")
    if output:
        write_json(output, result)
    return 0


def _add_benchmark_data(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--against", choices=("pytorchvideo",), help="measure its LabeledVideoDataset on the same clips"
    )
    parser.add_argument(
        "--originals", metavar="DIR", help="the root that data.root was prepared from: measure it as well"
    )
    parser.add_argument("--clips", type=at_least_one, default=32, help="measured clips of each (default: 32)")
    parser.add_argument("--json", metavar="FILE", help="write everything to this file")


VERBS = (
    (demo_data, _add_demo_data),
    (verify, _add_verify),
    (prepare, _add_prepare),
    (merge, _add_merge),
    (benchmark_data, _add_benchmark_data),
)
