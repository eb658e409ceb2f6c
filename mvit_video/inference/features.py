"""Extract features of every clip of a dataset to files: pooled features, or the feature maps of a stage.

A folder of them holds features.json (what they are of), features-00000.npz and so on (shards of videos, each written
whole, so that an interrupted call goes on behind the last one), index.csv (a row for each array: where it lies, video,
label, clip, crop, first moment) and undecodable.csv.
"""

# V views (clips × crops) of a video, n views in a shard, C channels, T/H/W token grid

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvit_video.data.dataset import read_pixels, view_indices
from mvit_video.data.lists.records import NO_LABEL, VideoList, VideoRecord
from mvit_video.data.pixels import pinned
from mvit_video.data.video.guard import TIMEOUT, Guard
from mvit_video.errors import ConfigError, DecodeError
from mvit_video.inference.predictor import READERS, Predictor, groups, read_ahead
from mvit_video.model.registry import capabilities_of, lacks
from mvit_video.model.weights.fingerprint import weights_digest
from mvit_video.paths import fresh_folder, write_json, write_whole
from mvit_video.printable import csv_text
from mvit_video.progress import progress_bar
from mvit_video.shards import PART, WHOLE, Part, Shard, write_part

JOB_FILE, INDEX_FILE, BAD_FILE = "features.json", "index.csv", "undecodable.csv"
POOLED = "pooled"
SHARD_BYTES = 256 * 2**20
MOST_VIDEOS = 512


@dataclass(frozen=True)
class Task:
    """Which features of which videos. `stage` is "pooled" or the number of a stage from 1, `timeout` that of a Guard."""

    videos: VideoList
    root: str
    stage: str
    decoder: str = "pyav"
    timeout: float = TIMEOUT


@dataclass(frozen=True)
class _Read:
    """The pixels of a video's views (V, 3, T, H, W) and the second at which each begins; or why there are none."""

    record: VideoRecord
    views: Tensor
    starts: np.ndarray
    error: str = ""


def extract_features(
    predictor: Predictor,
    task: Task,
    output: str | Path,
    overwrite: bool,
    shard: Shard | None = None,
    option: str = "--output",
) -> list[tuple[str, str]]:
    """Write the features of all videos to `output`; shards that are already there are kept, those with videos that
    could not be decoded as long as that is so.

    Of a `shard` of N, every Nth file of features is written, for `merge_features`.

    Returns the videos that cannot be decoded, with the reasons. ConfigError where the folder holds features of another
    checkpoint, list, stage or protocol.
    """
    maker = _Maker(predictor, task)
    job, part = maker.job(), {} if shard is None else {"shard": str(shard)}
    folder = _job_folder(Path(output), job | part, overwrite, option)
    numbers = (shard or WHOLE).places(-(-len(task.videos) // maker.videos_per_shard))
    with progress_bar("features", sum(len(maker.records(number)) for number in numbers)) as bar:
        for number in numbers:
            file, records = folder / shard_name(number), maker.records(number)
            if not maker.holds(file, records):
                write_whole(file, maker.shard(records))
            bar.advance(len(records))
    bad = _write_index(folder, task.videos.classes, numbers)
    if shard is not None:
        write_part(folder, "features", shard, job, {"files": [shard_name(number) for number in numbers]})
    return bad


def merge_features(parts: Sequence[Part], output: Path) -> int:
    """The folder of all features; returns the number of videos that could not be decoded."""
    files = [(part.folder / name, name) for part in parts for name in part.content["files"]]
    for file, name in files:
        write_whole(output / name, file.read_bytes())
    write_json(output / JOB_FILE, parts[0].job)
    return len(_write_index(output, parts[0].job["classes"], range(len(files))))


def shard_name(number: int) -> str:
    return f"features-{number:05}.npz"


class _Maker:
    """Makes shards. Views of different shards never share a forward pass, so a shard's bytes depend on it alone."""

    def __init__(self, predictor: Predictor, task: Task) -> None:
        model, name = predictor.model, predictor.card.name
        known = stages_of(model)
        if not known:
            raise lacks(
                name,
                "feature",
                "does not provide features",
                "use a checkpoint of one of our own networks, such as mvitv2_s_16x4",
            )
        if task.stage not in known:
            raise ConfigError(f"--stage {task.stage}: allowed for '{name}' are {', '.join(known)}")
        self.predictor, self.task, self.model = predictor, task, model
        self.forward_features: Any = getattr(model, "forward_features", None)
        self.settings, self.protocol = predictor.card.preprocessing, predictor.protocol
        size = (1, 3, self.settings.num_frames, *self.settings.crop_hw)
        self.shape = tuple(self.features(torch.zeros(size)).shape[1:])
        of_video = int(np.prod(self.shape)) * 4 * self.protocol.clips * self.protocol.crops
        self.videos_per_shard = min(max(SHARD_BYTES // of_video, 1), MOST_VIDEOS)

    def job(self) -> dict:
        """What determines the features; a resumed call must have the same."""
        rows = [[record.path, record.label] for record in self.task.videos.records]
        return {
            "precision": str(self.predictor.precision),
            "checkpoint": weights_digest(self.model),
            "network": self.predictor.card.name,
            "list": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
            "root": os.path.realpath(self.task.root),
            "decoder": self.task.decoder,
            "stage": self.task.stage,
            "shape": list(self.shape),
            "protocol": str(self.protocol),
            "preprocessing": self.settings.model_dump(mode="json"),
            "videos": len(rows),
            "videos_per_shard": self.videos_per_shard,
            "classes": list(self.task.videos.classes),
        }

    def records(self, number: int) -> Sequence[VideoRecord]:
        """The videos of a file of features."""
        first = number * self.videos_per_shard
        return self.task.videos.records[first : first + self.videos_per_shard]

    def shard(self, records: Sequence[VideoRecord]) -> bytes:
        """An npz file: `features` (n, *shape) and, for each, `video` (its place in `names`), `clip`, `crop`, `start`."""
        features, video, starts, errors = list[np.ndarray](), list[int](), list[np.ndarray](), list[str]()
        with Guard(self.task.timeout).scoped() as guard:
            read = read_ahead(partial(self._read, guard=guard), records, READERS)
            for group in groups(read, lambda one: len(one.views), self.predictor.views_at_once):
                views, size = [one.views for one in group], self.predictor.views_at_once
                batches = self.predictor.normalise.batches(views, size, self.predictor.device)
                features += [self.features(clips).numpy() for clips in batches]
                for one in group:
                    video += [len(errors)] * len(one.views)
                    starts.append(one.starts)
                    errors.append(one.error)
        views_each = self.protocol.clips * self.protocol.crops
        places = np.arange(len(video)) % views_each
        content = io.BytesIO()
        np.savez(
            content,
            features=np.concatenate(features) if features else np.zeros((0, *self.shape), np.float32),
            video=np.array(video, np.int64),
            clip=places // self.protocol.crops,
            crop=places % self.protocol.crops,
            start=np.concatenate(starts).astype(np.float64),
            names=np.array([record.path for record in records]),
            labels=np.array([record.label for record in records], np.int64),
            errors=np.array(errors),
        )
        return content.getvalue()

    def holds(self, file: Path, records: Sequence[VideoRecord]) -> bool:
        """Whether a complete shard of these videos exists, and its bad videos are still bad."""
        if not file.is_file():
            return False
        try:
            with zipfile.ZipFile(file) as archive:
                if archive.testzip() is not None:
                    return False
            with np.load(file, allow_pickle=False) as shard:
                names, errors = shard["names"].tolist(), shard["errors"].tolist()
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return False
        lacking = (pair for pair in zip(records, errors, strict=True) if pair[1])
        return names == [record.path for record in records] and all(
            self._read(record, Guard(self.task.timeout)).error == error for record, error in lacking
        )

    def features(self, views: Tensor) -> Tensor:
        """(V, 3, T, H, W) -> (V, C), or (V, C, T', H', W') of a stage; on the CPU."""
        views = views.to(self.predictor.device)
        with torch.inference_mode(), self.predictor.precision.autocast():
            if self.task.stage == POOLED:
                return self.model(views, with_feature=True)[1].float().cpu()
            return self.forward_features(views)[int(self.task.stage) - 1].float().cpu()

    def _read(self, record: VideoRecord, guard: Guard) -> _Read:
        try:
            with guard.open(record.path, self.task.root, self.task.decoder) as reader:
                views = read_pixels(reader, self.settings, self.protocol.clips, self.protocol.crops)
                first = view_indices(len(reader), reader.fps, self.settings, self.protocol.clips)[:, 0]
                times = reader.times()
                starts = np.array([float(times[number] - times[0]) for number in first])
                return _Read(record, pinned(views, self.predictor.device), starts.repeat(self.protocol.crops))
        except DecodeError as reason:
            size = (0, 3, self.settings.num_frames, *self.settings.crop_hw)
            return _Read(record, torch.zeros(size), np.zeros(0), str(reason))


def cached_features(predictor: Predictor, task: Task, cache: Path) -> tuple[Path, list[tuple[str, str]]]:
    """The folder in `cache` with the features of exactly this task, extracted where it is not there or not complete yet.

    Also returns what `extract_features` does.
    """
    job = json.dumps(_Maker(predictor, task).job(), sort_keys=True)
    folder = cache / f"{task.stage}-{hashlib.sha256(job.encode()).hexdigest()[:16]}"
    return folder, extract_features(predictor, task, folder, overwrite=False, option="--features")


def read_features(folder: str | Path) -> dict[str, np.ndarray]:
    """The mean over its views (C,) of each video's pooled features, by its path in the list; bad videos are left out.

    ConfigError where the folder holds no pooled features.
    """
    return {name: views.mean(0) for name, views in read_views(folder).items()}


def read_views(folder: str | Path, stage: str = POOLED) -> dict[str, np.ndarray]:
    """The features (V, C) of each video's views, of a stage (V, C, T, H, W), by path as `read_features`; ConfigError like it."""
    folder, features = Path(folder), dict[str, np.ndarray]()
    try:
        job = json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))
        if job["stage"] != stage:
            raise ConfigError(
                f"{folder}: holds features of stage {job['stage']}, expected {stage} ones: leave out --stage"
            )
        for number in range(-(-job["videos"] // job["videos_per_shard"])):
            with np.load(folder / shard_name(number), allow_pickle=False) as shard:
                arrays, video, names = shard["features"], shard["video"], shard["names"].tolist()
            for place in np.unique(video).tolist():
                features[names[place]] = arrays[video == place]
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError, zipfile.BadZipFile) as reason:
        raise ConfigError(
            f"{folder}: holds no features that can be read ({type(reason).__name__}): expected what "
            "`mvit-video features --output` has written"
        ) from None
    return features


def stages_of(model: torch.nn.Module) -> list[str]:
    """Allowed values of `Task.stage` for a network."""
    capabilities, dims = capabilities_of(model), getattr(model, "stage_dims", ())
    stages = [str(stage) for stage in range(1, len(dims) + 1)] if capabilities.stage_maps else []
    return [POOLED] * capabilities.feature + stages


def _job_folder(folder: Path, job: dict, overwrite: bool, option: str) -> Path:
    """Open the output folder with its features.json: a new one, or one of the same job to resume."""
    if (folder / JOB_FILE).is_file() and not overwrite:
        try:
            before = json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))
        except ValueError:
            before = None
        if not isinstance(before, dict):
            raise ConfigError(f"{folder / JOB_FILE}: cannot be read: choose another {option}, or pass --overwrite")
        before = {"precision": "fp32"} | before  # which earlier versions did not write
        for name in job | before:
            value = job.get(name)
            if before.get(name) != value:
                raise ConfigError(
                    f"{folder}: contains features of a different {name} ({_brief(before.get(name))}, now {_brief(value)}): "
                    f"choose another {option}, or pass --overwrite"
                )
        return folder
    shards = sorted(path.name for path in folder.glob("features-*.npz")) if folder.is_dir() else []
    folder = fresh_folder(folder, (JOB_FILE, INDEX_FILE, BAD_FILE, PART, *shards), overwrite, option)
    write_json(folder / JOB_FILE, job)
    return folder


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _write_index(folder: Path, classes: Sequence[str], numbers: Sequence[int]) -> list[tuple[str, str]]:
    """index.csv and undecodable.csv from the shards; returns what the latter holds."""
    rows: list[tuple] = [("shard", "row", "video", "label", "class", "clip", "crop", "start")]
    bad: list[tuple[str, str]] = []
    for number in numbers:
        with np.load(folder / shard_name(number), allow_pickle=False) as shard:
            names, labels = shard["names"].tolist(), shard["labels"].tolist()
            bad += [(name, error) for name, error in zip(names, shard["errors"].tolist(), strict=True) if error]
            columns = zip(*(shard[key].tolist() for key in ("video", "clip", "crop", "start")), strict=True)
        for row, (video, clip, crop, start) in enumerate(columns):
            label = labels[video]
            name = "" if label == NO_LABEL else classes[label]
            where = (shard_name(number), row, names[video], "" if label == NO_LABEL else label, name)
            rows.append((*where, clip, crop, f"{start:.3f}"))
    write_whole(folder / INDEX_FILE, csv_text(rows))
    write_whole(folder / BAD_FILE, csv_text([("video", "reason"), *bad]))
    return bad
