"""Predict labels of videos from a checkpoint."""

# V views (clips × crops) of a video, K classes

import glob
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from functools import partial
from math import ceil
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mvit_video.config.schema import InputSettings
from mvit_video.data.dataset import read_pixels, view_indices
from mvit_video.data.lists.files import videos_of_folder
from mvit_video.data.pixels import Normalise, pinned
from mvit_video.data.transforms import ViewTransform
from mvit_video.data.video.guard import Guard
from mvit_video.data.video.limits import short_reason
from mvit_video.data.video.reader import Reader
from mvit_video.errors import ConfigError, DecodeError, InputError
from mvit_video.evaluation.protocols import Protocol
from mvit_video.inference.inputs import Video, as_frames, as_path, is_file, name_of, several
from mvit_video.model.graphs import graphed
from mvit_video.model.precision import resolve_precision
from mvit_video.model.weights.card import ModelCard
from mvit_video.model.weights.convert import load_network

Item = TypeVar("Item")
Result = TypeVar("Result")

PICTURES = frozenset({".jpg", ".jpeg", ".png"})
READERS = 8  # videos that are decoded while the network works on others
MAX_VIEWS = 32
VALUES_AT_ONCE = {"cpu": 4 * 16 * 224 * 224, "cuda": 32 * 16 * 224 * 224}  # pixels per forward: 4 and 32 views of S


@dataclass(frozen=True)
class Prediction:
    """The best classes of one video with scores (0 to 1), best first; or the error that prevented them.

    `labels`, of a network for several labels, are the classes whose score reaches their threshold, best first; else None.
    """

    path: str
    predictions: tuple[tuple[str, float], ...]
    error: str | None = None
    labels: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        """The best class. Raises DecodeError if the video could not be decoded."""
        return self._best[0]

    @property
    def score(self) -> float:
        """The score of the best class. Raises DecodeError if the video could not be decoded."""
        return self._best[1]

    @property
    def _best(self) -> tuple[str, float]:
        if self.error is not None:
            raise DecodeError(self.error)
        return self.predictions[0]

    def as_dict(self) -> dict[str, Any]:
        if self.error is not None:
            return {"path": self.path, "error": self.error}
        return {
            "path": self.path,
            "predictions": [{"label": label, "score": score} for label, score in self.predictions],
            **({} if self.labels is None else {"labels": list(self.labels)}),
        }


class Predictor:
    """A network with its class names and preprocessing; `guard` determines how files are decoded.

    `precision` is fp32, bf16, fp16, or auto: bf16 on GPUs that have it, else fp32. In half precision `model` is a copy with
    rounded weights, to be called in `precision.autocast()`. On a GPU, scores come from CUDA graphs (`model/graphs.py`) through
    `forward`; set it to `model` to do without.

    >>> predictor = Predictor.from_checkpoint("model.safetensors")  # doctest: +SKIP
    >>> [prediction] = predictor("video.mp4")  # doctest: +SKIP
    >>> prediction.label, prediction.score  # doctest: +SKIP
    ('moving left', 0.91)
    """

    def __init__(
        self,
        model: nn.Module,
        card: ModelCard,
        device: torch.device,
        protocol: Protocol | None = None,
        guard: Guard | None = None,
        precision: str = "auto",
    ) -> None:
        self.precision = resolve_precision(precision, device)
        self.model, self.card, self.device = self.precision.held(model).to(device).eval(), card, device
        self.forward = graphed(self.model, self.precision)
        self.normalise = Normalise(card.preprocessing.mean, card.preprocessing.std)
        self.guard = guard or Guard()
        self.protocol = protocol or Protocol.parse(card.protocol)
        self.protocol.check(card.preprocessing)

    @classmethod
    def from_checkpoint(
        cls,
        source: str | Path,
        device: str = "auto",
        protocol: str | None = None,
        guard: Guard | None = None,
        precision: str = "auto",
    ) -> "Predictor":
        """Load a file, a URL, or a name from `mvit-video models` (downloaded once), in any known format.

        `protocol` (clips × crops, such as 5x1) is the checkpoint's own by default, for public ones the published one.
        """
        place = choose_device(device)
        asked = Protocol.parse(protocol) if protocol else None
        resolve_precision(precision, place)  # raises before anything is fetched or read
        return cls(*load_network(source), place, asked, guard, precision)

    def with_guard(self, guard: Guard) -> "Predictor":
        """A predictor with the same network and another guard."""
        other = copy(self)
        other.guard = guard
        return other

    def __call__(self, videos: Video | Iterable[Video], top: int = 5, fps: float = 30.0) -> list[Prediction]:
        """Predict the `top` best classes of each video; always returns a list.

        A video is a path, the bytes of a file, a file opened for reading bytes; or its frames at `fps` frames a second (a
        file knows its own): a uint8 array or tensor, (T, H, W, 3) or (T, 3, H, W), RGB, or a list of uint8 arrays
        (H, W, 3) or PIL images. Raises DecodeError for the first that cannot be decoded, where `each` goes on, and
        InputError for what is no video.
        """
        predictions = []
        for prediction in self.each(several(videos), top, fps):
            if prediction.error is not None:
                raise DecodeError(prediction.error)
            predictions.append(prediction)
        return predictions

    def each(self, videos: Iterable[Video], top: int = 5, fps: float = 30.0) -> Iterator[Prediction]:
        """Yield predictions in the order of the videos; a video that cannot be decoded has an `error`.

        The next videos are read meanwhile, and views of several share a forward pass, which changes no score.
        """
        if isinstance(top, bool) or not isinstance(top, Integral) or top < 1:
            raise InputError(f"top is {top}, expected the number of best classes, a whole number from 1")
        if isinstance(fps, bool) or not isinstance(fps, Real) or not 0 < fps < float("inf"):
            raise InputError(f"fps is {fps}, expected the frames per second of arrays and images, above 0")
        return self._each(videos, int(top), float(fps))

    def _each(self, videos: Iterable[Video], top: int, fps: float) -> Iterator[Prediction]:
        with self.guard.scoped() as guard:
            read = read_ahead(lambda video: (video, self._read(video, fps, guard)), videos, READERS)
            for group in groups(read, lambda pair: 0 if isinstance(pair[1], str) else len(pair[1]), self.views_at_once):
                parts = [views for _, views in group if not isinstance(views, str)]
                scores = iter(self.scores_of(parts) if parts else ())
                for video, views in group:
                    if isinstance(views, str):
                        yield Prediction(name_of(video), (), views)
                    else:
                        yield self.prediction(name_of(video), self._fused([next(scores) for _ in views]), top)

    @property
    def views_at_once(self) -> int:
        """Views per forward pass, bounded by memory."""
        height, width = self.card.preprocessing.crop_hw
        most = VALUES_AT_ONCE.get(self.device.type, VALUES_AT_ONCE["cuda"])
        return min(max(most // (self.card.preprocessing.num_frames * height * width), 1), MAX_VIEWS)

    def scores(self, views: Tensor) -> np.ndarray:
        """Scores of views (V, C, T, H, W): (V, K) float32, computed in equal batches."""
        return self._scores(part.to(self.device) for part in views.chunk(ceil(len(views) / self.views_at_once)))

    def scores_of(self, parts: Sequence[Tensor]) -> np.ndarray:
        """`scores` of the views whose pixels are given, in parts of any length: (V, K) float32."""
        count = sum(len(part) for part in parts)
        size = ceil(count / ceil(count / self.views_at_once))
        return self._scores(self.normalise.batches(parts, size, self.device))

    def _scores(self, batches: Iterable[Tensor]) -> np.ndarray:
        with torch.inference_mode(), self.precision.autocast():
            logits = torch.cat([self.forward(clips).float() for clips in batches])
        return self.activation(logits).cpu().numpy()

    @property
    def activation(self) -> Callable[[Tensor], Tensor]:
        """Logits (V, K) -> scores: the sigmoid of each where videos may have several labels, else the softmax of all."""
        return torch.sigmoid if self.card.multi_label else partial(torch.softmax, dim=1)

    def prediction(self, path: str, scores: np.ndarray, top: int = 5) -> Prediction:
        """The `top` best of the scores (K,)."""
        order, classes = np.argsort(-scores, kind="stable"), self.card.classes
        best = tuple((classes[place], float(scores[place])) for place in order[:top])
        if not self.card.multi_label:
            return Prediction(path, best)
        reached = scores >= self.thresholds
        return Prediction(path, best, labels=tuple(classes[place] for place in order if reached[place]))

    def _fused(self, scores: Sequence[np.ndarray]) -> np.ndarray:
        """A video's scores from those of its views, (K,) each."""
        stacked = np.stack(scores)
        fused: np.ndarray = stacked.max(0) if self.card.fusion == "max" else stacked.mean(0, dtype=np.float64)
        return fused

    @property
    def thresholds(self) -> np.ndarray:
        """With several labels, the score from which on each class is one of them: (K,)."""
        chosen = self.card.thresholds or {}
        return np.array([chosen.get(name, 0.5) for name in self.card.classes])

    def _read(self, video: Video, fps: float, guard: Guard) -> Tensor | str:
        """The pixels of a video's views, or why there are none."""
        settings, protocol = self.card.preprocessing, self.protocol
        if not is_file(video):
            return pinned(_pixels_of_frames(as_frames(video), fps, settings, protocol), self.device)
        with as_path(video) as path:
            try:
                with open_video(path, guard) as reader:
                    return pinned(read_pixels(reader, settings, protocol.clips, protocol.crops), self.device)
            except DecodeError as reason:
                return str(reason).replace(path, name_of(video), 1)


def _pixels_of_frames(frames: np.ndarray, fps: float, settings: InputSettings, protocol: Protocol) -> Tensor:
    transform = ViewTransform(settings.crop_hw, settings.mean, settings.std, settings.short_side, protocol.crops)
    indices = view_indices(len(frames), fps, settings, protocol.clips)
    return torch.cat([transform.pixels(frames[row]) for row in indices])


def open_video(path: str | Path, guard: Guard, whole: bool = True, again: bool = False) -> Reader:
    """Open a reader of a video, and log its note unless it is opened `again`.

    Raises DecodeError if it cannot be read, or for a folder without videos.
    """
    try:
        inside = list(Path(path).iterdir()) if os.path.isdir(path) else None
    except OSError as reason:
        raise DecodeError(f"{path}: cannot be opened ({short_reason(reason)})") from None
    if inside is not None and not any(file.suffix.lower() in PICTURES for file in inside):
        raise DecodeError(f"{path}: this folder contains no videos, expected files such as .mp4, .mkv, .webm or .avi")
    reader = guard.open(path, whole=whole)
    if reader.note and not again:
        logging.getLogger(__name__).warning("%s: %s", path, reader.note)
    return reader


def choose_device(name: str) -> torch.device:
    """Resolve a device name; `auto` is a GPU if there is one. ConfigError for a device that this machine does not have."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as reason:
        raise ConfigError(
            f"device '{name}' cannot be used here ({str(reason).splitlines()[0]}): try auto or cpu"
        ) from None
    return device


def expand_paths(paths: Iterable[str], on_note: Callable[[str], None] = lambda note: None) -> Iterator[str]:
    """Expand folders to their videos, and patterns such as `clips/**/*.mp4` to their matches, sorted by name.

    A folder or pattern without any is kept, so that reading it raises the error. `on_note` is called with what was skipped
    in a folder (see `videos_of_folder`).
    """
    for path in paths:
        if os.path.isdir(path):
            found = videos_of_folder(path)
            if found.videos and (note := found.note(path)):
                on_note(note)
            yield from [str(Path(path) / video) for video in found.videos] or [path]
        elif glob.has_magic(path) and not os.path.exists(path):
            matches = sorted(glob.glob(path, recursive=True))
            yield from expand_paths(matches, on_note) if matches else [path]
        else:
            yield path


def groups(items: Iterable[Item], size: Callable[[Item], int], limit: int) -> Iterator[list[Item]]:
    """Group consecutive items until their sizes add up to at least `limit`."""
    group: list[Item] = []
    total = 0
    for item in items:
        group.append(item)
        total += size(item)
        if total >= limit:
            yield group
            group, total = [], 0
    if group:
        yield group


def read_ahead(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Apply `function` to items in threads, in order, with at most `workers` (or one per core) items ahead."""
    workers = min(workers, os.cpu_count() or 1)
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
