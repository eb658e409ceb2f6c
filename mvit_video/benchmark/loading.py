"""What `mvit-video benchmark-data` does: clips per second from a config's training list, and where the time goes.

Stages are timed by a source of videos whose readers tell their times, under the datasets that training and evaluation use.
Figures are processor time of one process unless they say otherwise: other work on the machine disturbs that least.
Contenders take turns clip by clip on the same frames, and a ratio belongs to one clip.
"""

import os
import platform
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from av import VideoFrame
from av.video.reformatter import VideoReformatter
from rich.table import Table
from torch import Tensor
from torch.utils.data import Subset

from mvit_video.benchmark.clip_readers import Clip, draw_clips, readers_to_compare
from mvit_video.config.schema import Config, DataSettings
from mvit_video.data.dataset import SampleKey, ViewDataset, clip_dataset_from
from mvit_video.data.frame_cache import training_source
from mvit_video.data.lists.read import VideoList
from mvit_video.data.lists.split import resolve_auto_lists
from mvit_video.data.loader import StepSampler, batch_loader, collate, training_loader
from mvit_video.data.pixels import Normalise
from mvit_video.data.prepare.verify import lists_to_verify
from mvit_video.data.video.pyav import PyAvBackend
from mvit_video.data.video.reader import Allocate, FrameReader, Reader, VideoReader
from mvit_video.data.video.source import VideoSource, video_files_from
from mvit_video.errors import ConfigError
from mvit_video.progress import progress_bar

STAGES = ("open", "decode", "convert", "augment", "collate")
BATCH = 4  # clips that are collated together


def benchmark_loading(config: Config, clips: int, against: str | None, originals: str | None) -> dict[str, Any]:
    """Measure by the config's training list: `conditions`, `stages`, `loader`, `feed`, `views`, `contenders` and `ratios`.

    `against`: "pytorchvideo" or None. `originals`: the root that data.root was prepared from, measured as well.
    Raises ConfigError where there is no list or no video of it can be read.
    """
    if config.data.train is None:
        raise ConfigError("data.train is not set: name the list of videos to load")
    data = resolve_auto_lists(config.data).model_copy(update={"val": None, "test": None})
    (videos,) = lists_to_verify(data)
    config = config.model_copy(update={"data": data})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result: dict[str, Any] = {"conditions": _conditions(config, clips, len(videos))}
        with progress_bar("benchmark-data", 6) as bar:
            result["stages"] = time_stages(videos, config, clips)
            bar.advance(1, "stages")
            result["loader"] = time_loader(videos, config, clips)
            bar.advance(1, "loader")
            result["feed"] = time_feed(videos, config, clips)
            bar.advance(1, "feed")
            result["views"] = compare_views(videos, config, clips)
            bar.advance(1, "views")
            drawn = draw_clips(videos, config.data, clips)
            bar.advance(1, "contenders")
            result["contenders"], result["ratios"] = compare_readers(drawn, config, against, originals)
            bar.advance(1, "contenders")
    finally:
        torch.set_num_threads(threads)
    return result


def time_stages(videos: VideoList, config: Config, clips: int) -> dict[str, Any]:
    """Training samples one after the other in this process: milliseconds of each stage per clip, clips per second.

    With repeated augmentation a sample is several clips of one video, which share its decoding.
    """
    watch, data = Stages(), config.data
    source = _timed_source(data, watch)
    dataset = clip_dataset_from(data, videos, config.train.seed, source, pixels=True)
    keys = _keys(videos, clips)
    dataset[keys[0]]  # the first one pays for imports and memory
    samples: list[dict[str, float]] = []
    for first in range(0, clips, BATCH):
        batch: list = []
        for key in keys[first : first + BATCH]:
            with watch.of_sample() as stages:
                batch.append(dataset[key])
            samples.append({stage: seconds / config.data.repeated_aug for stage, seconds in stages.items()})
        started = time.process_time()
        bad = collate(batch)["bad"]
        share = (time.process_time() - started) / len(batch) / config.data.repeated_aug
        if bad:
            raise ConfigError(f"{bad[0].reason}: remove bad videos from {config.data.train} before measuring")
        for stages in samples[first:]:
            stages["collate"], stages["total"] = share, stages["total"] + share
    spread = {stage: _spread([1e3 * stages[stage] for stages in samples]) for stage in (*STAGES, "total")}
    return {"milliseconds": spread, "clips_per_second_and_core": 1e3 / spread["total"]["mean"]}


class Stages:
    """Processor seconds by stage of one sample after the other."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.process_time()
        try:
            yield
        finally:
            self._spent[stage] += time.process_time() - started

    @contextmanager
    def of_sample(self) -> Iterator[dict[str, float]]:
        """The stages of what happens inside, complete at its end; "augment" is what reading has no part in."""
        spent = self._spent = defaultdict(float)
        with self("total"):
            yield spent
        spent["augment"] = spent["total"] - spent["open"] - spent["decode"]
        spent["decode"] -= spent["convert"]


class TimedConverter:
    """PyAV's conversion of frames to RGB, which tells `stages` its time."""

    def __init__(self, stages: Stages) -> None:
        self._stages, self._plain = stages, VideoReformatter()

    def reformat(self, frame: VideoFrame, *, format: str, threads: int) -> VideoFrame:
        with self._stages("convert"):
            return self._plain.reformat(frame, format=format, threads=threads)


class TimedReader(VideoReader):
    """A reader in this process that tells `stages` its times; those of conversion for PyAV alone."""

    def __init__(self, path: str, root: str, decoder: str, stages: Stages) -> None:
        self._stages, converter = stages, TimedConverter(stages)
        with stages("open"):
            super().__init__(path, root, partial(PyAvBackend, converter=converter) if decoder == "pyav" else decoder)

    def frames(self, indices: Sequence[int] | np.ndarray, allocate: Allocate | None = None) -> np.ndarray:
        with self._stages("decode"):
            return super().frames(indices, allocate)


@dataclass(frozen=True)
class TimedFiles:
    """VideoFiles whose readers tell their times."""

    root: str
    decoder: str
    stages: Stages

    def open(self, path: str) -> Reader:
        return TimedReader(path, self.root, self.decoder, self.stages)


@dataclass(frozen=True)
class TimedSource:
    """A source that tells the times of its readers, whatever they do."""

    source: VideoSource
    stages: Stages

    def open(self, path: str) -> FrameReader:
        with self.stages("open"):
            reader = self.source.open(path)
        read = reader.frames

        def frames(indices: Sequence[int] | np.ndarray) -> np.ndarray:
            with self.stages("decode"):
                return read(indices)

        reader.frames = frames  # type: ignore[method-assign]
        return reader


def _timed_source(data: DataSettings, watch: Stages) -> VideoSource:
    """Where training reads videos, in this process: times of another could not be told apart."""
    if data.cache is None and data.decoded_side is None:
        return TimedFiles(data.root, data.decoder, watch)
    return TimedSource(training_source(data.root, data.decoding.model_copy(update={"decode_timeout": 0})), watch)


def time_loader(videos: VideoList, config: Config, clips: int) -> dict[str, Any]:
    """Clips per second of wall time from the training loader with data.workers processes, after its first batch; what each
    hands over, in bytes."""
    size = max(min(BATCH, len(videos)), 1)
    steps = max(clips // size, 2) + 1
    dataset = clip_dataset_from(config.data, videos, config.train.seed, pixels=True)
    batches = iter(training_loader(dataset, StepSampler(len(videos), size, 0, 0, steps), config.data.workers))
    next(batches)
    started = time.monotonic()
    made = [(len(batch["video"]), batch["video"].nbytes) for batch in batches if "video" in batch]
    seconds = time.monotonic() - started
    count, size = (sum(numbers) for numbers in zip(*made, strict=True))
    return {
        "workers": config.data.workers,
        "clips_per_second": count / seconds,
        "clips": count,
        "seconds": seconds,
        "bytes_per_clip": size / count,
    }


def time_feed(videos: VideoList, config: Config, count: int) -> dict[str, Any]:
    """The one thread of an evaluation that takes views from the loader's processes and sends them to the device.

    Its processor time alone, without the device's work: without a GPU they are sent to PyTorch's "meta" device, which has
    no memory and computes nothing. Five views of each video, as many as `count` at least, after the first batch.
    """
    data, size = config.data, config.evaluation.views_per_batch
    device = torch.device("cuda" if torch.cuda.is_available() else "meta")
    source = video_files_from(data.root, data.decoding)
    dataset = ViewDataset(videos, source, data.input, 5, 1, on_bad="return", pixels=True)
    again = Subset(dataset, [number % len(videos) for number in range(-(-(count + size) // 5))])
    loader = batch_loader(again, max(data.workers, 1), batch_size=None)
    sizes: list[int] = []
    started = time.thread_time()

    def views() -> Iterator[Tensor]:
        for sample in loader:
            if isinstance(sample, dict):
                sizes.append(sample["video"].nbytes)
                yield sample["video"]

    fed = 0
    for number, clips in enumerate(Normalise(data.mean, data.std).batches(views(), size, device)):
        if number:
            fed += len(clips)
        else:
            started = time.thread_time()
    seconds = time.thread_time() - started
    return {
        "device": device.type,
        "clips": fed,
        "clips_per_second": fed / seconds,
        "bytes_per_clip": sum(sizes) / (5 * len(sizes)),
    }


def compare_views(videos: VideoList, config: Config, count: int) -> dict[str, Any]:
    """Five views of a video against one view of it, in turn: milliseconds of each by stage, and the ratio.

    `decoding_ratio` is that of opening and decoding alone: what the ratio would be if all else took no time.
    """
    watch = Stages()
    source = TimedFiles(config.data.root, config.data.decoder, watch)
    datasets = {views: ViewDataset(videos, source, config.data.input, views, 1, pixels=True) for views in (1, 5)}
    spent: dict[int, list[dict[str, float]]] = {1: [], 5: []}
    for number in range(count):
        for views, dataset in datasets.items() if number % 2 else reversed(datasets.items()):
            with watch.of_sample() as stages:
                dataset[number % len(videos)]
            spent[views].append(stages)
    names = [stage for stage in (*STAGES, "total") if stage != "collate"]
    whole, decoding = (
        {views: [sum(stages[name] for name in part) for stages in samples] for views, samples in spent.items()}
        for part in (("total",), ("open", "decode"))
    )
    return {
        f"{word}_milliseconds": {name: _spread([1e3 * stages[name] for stages in spent[views]]) for name in names}
        for views, word in ((1, "one_view"), (5, "five_views"))
    } | {
        "ratio": _spread(np.divide(whole[5], whole[1])),
        "decoding_ratio": _spread(np.divide(decoding[5], decoding[1])),
    }


def compare_readers(drawn: Sequence[Clip], config: Config, against: str | None, originals: str | None):
    """Time each reader on each clip, in rotating order: milliseconds, and ratios to the first reader."""
    runners = readers_to_compare(drawn, config.data, against, originals)
    spent: dict[str, list[float]] = {name: [] for name in runners}
    reading: dict[str, list[float]] = {name: [] for name in runners}
    difference: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(len(drawn)):
        names = list(runners) if number % 2 else list(runners)[::-1]
        outputs = {}
        for name in names:
            started = time.process_time()
            raw = runners[name].read(number)
            reading[name].append(1e3 * (time.process_time() - started))
            outputs[name] = runners[name].finish(raw)
            spent[name].append(1e3 * (time.process_time() - started))
        reference = outputs[next(iter(runners))]
        for name, clip in outputs.items():
            difference[name].append(float((clip - reference).abs().mean()))
    first = next(iter(runners))
    table = {
        name: {
            "milliseconds": _spread(values),
            "reading_milliseconds": _spread(reading[name]),
            "clips_per_second_and_core": 1e3 / float(np.mean(values)),
            "mean_difference": float(np.mean(difference[name])),
        }
        for name, values in spent.items()
    }
    others = [name for name in runners if name != first]
    ratios = {
        kind: {name: _spread(np.divide(times[name], times[first])) for name in others}
        for kind, times in (("whole", spent), ("reading", reading))
    }
    return table, ratios


def _keys(videos: VideoList, clips: int) -> list[SampleKey]:
    order = np.random.default_rng(0).permutation(len(videos))
    return [SampleKey(number // len(order), int(order[number % len(order)])) for number in range(clips)]


def _spread(values) -> dict[str, float]:
    array = np.asarray(values, dtype=np.float64)
    names = ("median", "min", "q1", "q3", "max")
    return {
        "mean": float(array.mean()),
        **dict(zip(names, np.percentile(array, [50, 0, 25, 75, 100]).tolist(), strict=True)),
    }


def _conditions(config: Config, clips: int, num_videos: int) -> dict[str, Any]:
    data = config.data
    cpu = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "versions": {name: version(name) for name in ("torch", "av", "numpy")},
        "root": data.root,
        "list": data.train,
        "videos": num_videos,
        "clips": clips,
        "clip": f"{data.num_frames}x{data.sampling_rate}, short side {data.short_side}, crop {data.crop_hw}",
    }


def loading_tables(result: dict[str, Any]) -> list[Table | str]:
    """The result for a terminal."""
    stages, loader, feed, views = (result[name] for name in ("stages", "loader", "feed", "views"))
    where = _table("One process: processor time per training clip", "stage", "mean ms", "median ms", "share")
    total = stages["milliseconds"]["total"]["mean"]
    for stage, spread in stages["milliseconds"].items():
        where.add_row(
            stage, f"{spread['mean']:.1f}", f"{spread['median']:.1f}", f"{100 * spread['mean'] / total:.0f} %"
        )
    rows = _table("Contenders in turn on the same frames: one centre view", "who", "ms", "×", "of it reading, ms", "×")
    for name, figures in result["contenders"].items():
        cells = []
        for kind, key in (("whole", "milliseconds"), ("reading", "reading_milliseconds")):
            ratio = result["ratios"][kind].get(name)
            cells += [_range(figures[key], 1), _range(ratio, 2) if ratio else "1"]
        rows.add_row(name, *cells)
    conditions = result["conditions"]
    return [
        where,
        rows,
        "medians with quartiles; × is the time relative to the first reader, clip by clip",
        f"one process: {stages['clips_per_second_and_core']:.1f} clips/s; the loader with {loader['workers']} workers: "
        f"{loader['clips_per_second']:.1f} clips/s of wall time, {loader['bytes_per_clip'] / 1e6:.2f} MB a clip",
        f"evaluation: the thread that feeds the device ({feed['device']}) passes on {feed['clips_per_second']:,.0f} views/s, "
        f"{feed['bytes_per_clip'] / 1e6:.2f} MB a view",
        f"5 views of a video against 1: {_range(views['ratio'], 2)} times the time, opening and decoding alone "
        f"{_range(views['decoding_ratio'], 2)} times",
        f"machine: {conditions['cpu']}, {conditions['cores']} cores, load {conditions['load_average']}; "
        + ", ".join(f"{name} {number}" for name, number in conditions["versions"].items()),
        f"data: {conditions['videos']} videos of {conditions['list']} in {conditions['root']}, {conditions['clip']}",
    ]


def _range(spread: dict[str, float], digits: int) -> str:
    return f"{spread['median']:.{digits}f} ({spread['q1']:.{digits}f}–{spread['q3']:.{digits}f})"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=place == 0)
    return table
