"""Decode every video of a dataset before training does, several at a time, and name the bad ones."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mvit_video.config.schema import DataSettings
from mvit_video.data.lists.class_names import read_classes
from mvit_video.data.lists.read import VideoList, read_videos
from mvit_video.data.lists.split import resolve_auto_lists
from mvit_video.data.video.guard import TIMEOUT
from mvit_video.data.video.guard_pool import DecoderPool, Job
from mvit_video.errors import ConfigError

SPLITS = ("train", "val", "test")


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
    data = resolve_auto_lists(data)
    classes = read_classes(str(Path(data.root) / data.classes)) if data.classes else None
    lists: list[VideoList] = []
    for name in SPLITS:
        source = getattr(data, name)
        if source is not None:
            known = lists[0].classes if lists else classes
            frames = data.decoder == "frames"
            lists.append(read_videos(source, data.root, known, frames, False, data.follow_links, keep_refused=True))
    if not lists:
        raise ConfigError("none of data.train, data.val and data.test is set: name a list of videos or a folder")
    return lists


def verify(
    lists: Sequence[VideoList],
    decoding: Decoding,
    advance: Callable[[int, str], None],
    note: Callable[[str, str], None] = lambda path, text: None,
) -> dict:
    """`{"num_videos", "bad": [...]}`: the rows of all lists, and those whose video is not wholly decodable.

    A video that stands in several rows is decoded once. `advance` hears of each with a word on what was found, `note` of
    those that are odd and read all the same.
    """
    paths = list(dict.fromkeys(path for videos in lists for path in videos.records.paths()))
    found: dict[str, tuple[str, float]] = {}
    for path, reason, seconds, odd in check_videos(paths, decoding):
        if reason:
            found[path] = (reason, seconds)
        elif odd:
            note(path, odd)
        advance(1, f"{len(found)} bad")
    bad = [file for videos in lists for file in _bad_files(videos, found)]
    num_videos = sum(len(videos) + len(videos.refused) for videos in lists)
    return {"num_videos": num_videos, "bad": [asdict(file) for file in bad]}


def _bad_files(videos: VideoList, found: dict[str, tuple[str, float]]) -> list[BadVideoRow]:
    """The rows of a list whose videos may not be read, or have been found bad, in the order of the list."""
    bad = [BadVideoRow(record.path, record.row, reason, videos.source, 0.0) for record, reason in videos.refused]
    for record in videos.records:
        if record.path in found:
            reason, seconds = found[record.path]
            bad.append(BadVideoRow(record.path, record.row, reason, videos.source, round(seconds, 3)))
    return sorted(bad, key=lambda file: file.row)


def num_files(lists: Sequence[VideoList]) -> int:
    """Number of distinct videos to decode."""
    return len({path for videos in lists for path in videos.records.paths()})


def check_videos(paths: Sequence[str], decoding: Decoding) -> Iterator[tuple[str, str, float, str]]:
    """(path, reason, seconds, note) of each video, in the order in which they come to an end; no reason where it is good."""
    root = os.path.abspath(decoding.root)
    jobs = (
        Job(path, "mvit_video.data.video.guard_child:check_video", (path, root, decoding.backend)) for path in paths
    )
    with DecoderPool(imports=decoding.imports) as pool:
        for done in pool.run(jobs, decoding.workers, decoding.timeout):
            yield done.job.name, done.reason.removeprefix(f"{done.job.name}: "), done.seconds, done.result or ""
