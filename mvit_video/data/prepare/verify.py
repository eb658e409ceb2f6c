"""Decode every video of a dataset before training does, several at a time, and name the bad ones."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path

from mvit_video.config.schema import DataSettings
from mvit_video.data.lists.class_names import read_classes
from mvit_video.data.lists.read import VideoList, read_videos
from mvit_video.data.lists.split import found_lists
from mvit_video.data.video.guard import CAN_FORK, Decoder, DecoderLost, open_request
from mvit_video.data.video.reader import VideoReader
from mvit_video.errors import ConfigError, DecodeError

LISTS = ("train", "val", "test")
TIMEOUT = 60.0
STRETCH = 0.25  # share of the timeout after which a child that is decoding says that it goes on


@dataclass(frozen=True)
class BadFile:
    """A row of a list whose video cannot be used, the reason, and the seconds that it took to find out."""

    path: str
    row: int
    reason: str
    list: str
    seconds: float


@dataclass(frozen=True)
class Plan:
    """How the videos are decoded: the folder that paths are relative to, by whom, and for how long one may give no frame."""

    root: str
    backend: str = "pyav"
    timeout: float = TIMEOUT
    workers: int = 2


def lists_of(data: DataSettings) -> list[VideoList]:
    """All lists that the settings name, with the classes of the first."""
    data = found_lists(data)
    classes = read_classes(str(Path(data.root) / data.classes)) if data.classes else None
    lists: list[VideoList] = []
    for name in LISTS:
        source = getattr(data, name)
        if source is not None:
            known = lists[0].classes if lists else classes
            lists.append(read_videos(source, data.root, known, data.decoder == "frames", need_labels=False))
    if not lists:
        raise ConfigError("none of data.train, data.val and data.test is set: name a list of videos or a folder")
    return lists


def verify(lists: Sequence[VideoList], plan: Plan, advance: Callable[[int, str], None]) -> dict:
    """`{"num_videos", "bad": [...]}`: the rows of all lists, and those whose video is not wholly decodable.

    A video that stands in several rows is decoded once. `advance` hears of each with a word on what was found.
    """
    paths = list(dict.fromkeys(record.path for videos in lists for record in videos.records))
    found: dict[str, tuple[str, float]] = {}
    for path, reason, seconds in check_videos(paths, plan):
        if reason:
            found[path] = (reason, seconds)
        advance(1, f"{len(found)} bad")
    bad = [
        BadFile(record.path, record.row, found[record.path][0], videos.source, round(found[record.path][1], 3))
        for videos in lists
        for record in videos.records
        if record.path in found
    ]
    return {"num_videos": sum(map(len, lists)), "bad": [asdict(file) for file in bad]}


def num_files(lists: Sequence[VideoList]) -> int:
    """Different videos: what there is to decode."""
    return len({record.path for videos in lists for record in videos.records})


def check_videos(paths: Sequence[str], plan: Plan) -> Iterator[tuple[str, str, float]]:
    """(path, reason, seconds) of each video, in the order in which they come to an end; no reason where it is good."""
    if not CAN_FORK:
        yield from ((path, *_check_here(path, plan)) for path in paths)
        return
    waiting, busy = iter(paths), {}
    idle = [Decoder() for _ in range(min(plan.workers, len(paths)))]
    try:
        while True:
            while idle and (path := next(waiting, None)) is not None:
                decoder = _living(idle.pop())
                decoder.send(open_request(path, plan.root, plan.backend), plan.timeout)
                busy[decoder] = (path, time.monotonic())
            if not busy:
                return
            for decoder in _ended(list(busy)):
                reason, alive = _outcome(decoder, plan.timeout)
                if reason is None:
                    continue
                path, start = busy.pop(decoder)
                idle.append(decoder if alive else Decoder())
                yield path, _without_path(reason, path), time.monotonic() - start
    finally:
        for decoder in (*idle, *busy):
            decoder.kill()


def _ended(decoders: list[Decoder]) -> list[Decoder]:
    """Those that have answered, died, or run out of time; there is at least one."""
    while True:
        soonest = min(decoder.deadline for decoder in decoders)
        ready = wait([decoder.fileno() for decoder in decoders], max(soonest - time.monotonic(), 0.0))
        ended = [each for each in decoders if each.fileno() in ready or each.deadline <= time.monotonic()]
        if ended:
            return ended


def _living(decoder: Decoder) -> Decoder:
    """An idle child, or a new one where it has died between two videos."""
    if decoder.alive:
        return decoder
    decoder.kill()
    return Decoder()


def _outcome(decoder: Decoder, timeout: float) -> tuple[str | None, bool]:
    """The reason why the video is bad, empty where it is good, and whether the child can go on; None: it is at work.

    A child that has opened its video, or has decoded for a while, is told to go on, with the whole time anew.
    """
    try:
        if not decoder.receive().get("done", False):
            decoder.send({"verb": "check", "seconds": STRETCH * timeout}, timeout)
            return None, True
    except DecodeError as reason:
        return str(reason), True
    except DecoderLost as reason:
        return str(reason), False
    return "", True


def _check_here(path: str, plan: Plan) -> tuple[str, float]:
    start = time.monotonic()
    try:
        with VideoReader(path, plan.root, plan.backend) as reader:
            reader.check()
    except DecodeError as reason:
        return _without_path(str(reason), path), time.monotonic() - start
    return "", time.monotonic() - start


def _without_path(reason: str, path: str) -> str:
    return reason.removeprefix(f"{path}: ")
