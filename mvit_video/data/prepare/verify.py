"""Decode every video of a dataset before training does, several at a time, and name the bad ones."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from mvit_video.config.schema import DataSettings
from mvit_video.data.lists.class_names import read_classes
from mvit_video.data.lists.read import VideoList, VideoRecord, read_videos
from mvit_video.data.lists.split import resolve_auto_lists
from mvit_video.data.video.guard import TIMEOUT
from mvit_video.data.video.guard_pool import DecoderPool, Job
from mvit_video.errors import ConfigError
from mvit_video.paths import write_json
from mvit_video.shards import WHOLE, Part, Shard, digest, write_part

SPLITS = ("train", "val", "test")
VERIFIED = "verify.json"


@dataclass(frozen=True)
class BadVideoRow:
    """A row of a list whose video cannot be used, the reason, and the seconds spent on it."""

    path: str
    row: int
    reason: str
    list: str
    seconds: float


@dataclass(frozen=True)
class Decoding:
    """How the videos are decoded: the folder that paths are relative to, by whom, for how long one may give no frame, and in
    how many processes, which import these modules first.
    """

    root: str
    backend: str = "pyav"
    timeout: float = TIMEOUT
    workers: int = 2
    imports: tuple[str, ...] = ()


def lists_to_verify(data: DataSettings) -> list[VideoList]:
    """Read all lists of the settings, with the classes of the first."""
    return list(lists_by_split(resolve_auto_lists(data)).values())


def lists_by_split(data: DataSettings) -> dict[str, VideoList]:
    """The lists that are set, by the name of their setting; all have the classes of the first."""
    classes = read_classes(str(Path(data.root) / data.classes)) if data.classes else None
    lists: dict[str, VideoList] = {}
    for name in SPLITS:
        source = getattr(data, name)
        if source is not None:
            known = next(iter(lists.values())).classes if lists else classes
            frames = data.decoder == "frames"
            lists[name] = read_videos(source, data.root, known, frames, False, data.follow_links, keep_refused=True)
    if not lists:
        raise ConfigError("none of data.train, data.val and data.test is set: name a list of videos or a folder")
    return lists


def verify(
    lists: Sequence[VideoList],
    decoding: Decoding,
    advance: Callable[[int, str], None],
    note: Callable[[str, str], None] = lambda path, text: None,
    shard: Shard = WHOLE,
) -> dict:
    """`{"num_videos", "bad": [...]}`: the rows of all lists, and those whose video is not wholly decodable.

    A video that stands in several rows is decoded once. `advance` hears of each with a word on what was found, `note` of
    those that are odd and read all the same. A `shard` of N decodes every Nth of the different videos; rows that may not be
    read are the first shard's.
    """
    paths = files_of(lists, shard)
    found: dict[str, tuple[str, float]] = {}
    for path, reason, seconds, odd in check_videos(paths, decoding):
        if reason:
            found[path] = (reason, seconds)
        elif odd:
            note(path, odd)
        advance(1, f"{len(found)} bad")
    bad = [file for videos in lists for file in _bad_files(videos, found, refused=shard.number == 1)]
    num_videos = sum(len(videos) + len(videos.refused) for videos in lists)
    return {"num_videos": num_videos, "bad": [asdict(file) for file in bad]}


def _bad_files(videos: VideoList, found: dict[str, tuple[str, float]], refused: bool) -> list[BadVideoRow]:
    """The rows of a list whose videos may not be read, or have been found bad, in the order of the list."""
    rows = videos.refused if refused else ()
    bad = [BadVideoRow(record.path, record.row, reason, videos.source, 0.0) for record, reason in rows]
    for record in videos.records:
        if record.path in found:
            reason, seconds = found[record.path]
            bad.append(BadVideoRow(record.path, record.row, reason, videos.source, round(seconds, 3)))
    return sorted(bad, key=lambda file: file.row)


def files_of(lists: Sequence[VideoList], shard: Shard = WHOLE) -> list[str]:
    """Number of distinct videos to decode."""
    paths = list(dict.fromkeys(path for videos in lists for path in videos.records.paths()))
    return [paths[place] for place in shard.places(len(paths))]


def write_verified(folder: Path, result: dict, lists: Sequence[VideoList], decoding: Decoding, shard: Shard) -> None:
    """A part: what `verify` has found of a shard, in verify.json."""
    rows = [[videos.source, [[record.path, record.row] for record in videos.records]] for videos in lists]
    write_json(folder / VERIFIED, result)
    job = {"list": digest(rows), "decoder": decoding.backend}
    order = {(videos.source, record.path, record.row): place for videos in lists for place, record in _places(videos)}
    places = [order[bad["list"], bad["path"], bad["row"]] for bad in result["bad"]]
    write_part(folder, "verify", shard, job, {"lists": [videos.source for videos in lists], "places": places})


def _places(videos: VideoList) -> Iterator[tuple[int, VideoRecord]]:
    """Rows in the order in which `_bad_files` looks at them."""
    return enumerate(chain((record for record, _ in videos.refused), videos.records))


def merge_verified(parts: Sequence[Part], output: Path) -> int:
    """verify.json of all; returns the number of bad rows."""
    results = [json.loads((part.folder / VERIFIED).read_text(encoding="utf-8")) for part in parts]
    lists, found = parts[0].content["lists"], []
    for part, result in zip(parts, results, strict=True):
        for place, bad in zip(part.content["places"], result["bad"], strict=True):
            found.append((lists.index(bad["list"]), bad["row"], place, bad))
    bad = [row for *_, row in sorted(found, key=lambda each: each[:3])]
    write_json(output / VERIFIED, {"num_videos": results[0]["num_videos"], "bad": bad})
    return len(bad)


def check_videos(paths: Sequence[str], decoding: Decoding) -> Iterator[tuple[str, str, float, str]]:
    """(path, reason, seconds, note) of each video, in the order in which they come to an end; no reason where it is good."""
    root = os.path.abspath(decoding.root)
    jobs = (
        Job(path, "mvit_video.data.video.guard_child:check_video", (path, root, decoding.backend)) for path in paths
    )
    with DecoderPool(imports=decoding.imports) as pool:
        for done in pool.run(jobs, decoding.workers, decoding.timeout):
            yield done.job.name, done.reason.removeprefix(f"{done.job.name}: "), done.seconds, done.result or ""
