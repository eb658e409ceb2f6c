"""Scores of videos: the softmax (or sigmoid) of each view, averaged over the views of a video, or the largest of them."""

# V views of a video (clips × crops), K classes

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mvit_video.data.dataset import BadVideo
from mvit_video.data.pixels import Normalise
from mvit_video.errors import ConfigError

Reorder = Callable[[Tensor, int], Tensor]

BATCHES_BEHIND = 8  # batches of scores that a device may have before they are fetched


@dataclass(frozen=True)
class VideoScores:
    """Scores of a list of videos.

    scores (n, K) float32: a distribution per decoded video, or one number from 0 to 1 per class where the list is
    multi-label; 0 for the videos that `bad` lists. labels (n,) int64, or (n, K) bool of a multi-label list.
    """

    names: list[str]
    labels: np.ndarray
    scores: np.ndarray
    decoded: np.ndarray
    bad: list[BadVideo] = field(default_factory=list)

    @property
    def multi_label(self) -> bool:
        return self.labels.ndim == 2


class ViewScorer:
    """Collects views across videos until a batch is full, runs the network, and adds each view to its video's scores.

    A view's scores are the softmax of its logits, or with `multi_label` the sigmoid of each, in float64; the network runs
    in `autocast`, called through `forward` if that is given.
    Views come as pixels, and are normalised when they are scored. An asynchronous device, such as a GPU, may be some
    batches behind: its scores are fetched later. After `finish`, `sums` (n, K) float64 and `counts` (n,) are
    complete; those of several scorers with other videos may be added up. With `largest`, `sums` are each class's largest
    scores.
    """

    def __init__(
        self,
        model: nn.Module,
        num_videos: int,
        num_classes: int,
        views_per_batch: int,
        device: torch.device,
        normalise: Normalise,
        multi_label: bool = False,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        forward: Callable[[Tensor], Tensor] | None = None,
        largest: bool = False,
    ) -> None:
        self.forward, self.largest = forward or model, largest
        self.model, self.views_per_batch, self.device, self.autocast = model, views_per_batch, device, autocast
        self.normalise = normalise
        self.activation = torch.sigmoid if multi_label else partial(torch.softmax, dim=1)
        self.sums = torch.zeros(num_videos, num_classes, dtype=torch.float64)
        self.counts = torch.zeros(num_videos, dtype=torch.int64)
        self._views: list[Tensor] = []
        self._owners: list[int] = []
        self._scored: list[tuple[list[int], Tensor]] = []

    def process(self, row: int, views: Tensor) -> None:
        """Take the pixels (V, C, T, H, W) of the views of the video in `row`."""
        while len(views):
            taken = views[: self.views_per_batch - len(self._owners)]
            views = views[len(taken) :]
            self._views.append(taken)
            self._owners += [row] * len(taken)
            if len(self._owners) == self.views_per_batch:
                self._score()

    def finish(self) -> None:
        """Run the network on the remaining views, and fetch all scores."""
        if self._views:
            self._score()
        self._fetch()

    def _score(self) -> None:
        with torch.inference_mode(), self.autocast():
            logits = self.forward(self.normalise.joined(self._views, self.device))
            self._scored.append((self._owners, self.activation(logits.double())))
        self._views, self._owners = [], []
        if len(self._scored) == BATCHES_BEHIND:
            self._fetch()

    def _fetch(self) -> None:
        for rows, scores in self._scored:
            owners = torch.tensor(rows)
            if self.largest:
                np.maximum.at(self.sums.numpy(), rows, scores.cpu().numpy())
            else:
                self.sums.index_add_(0, owners, scores.cpu())
            self.counts.index_add_(0, owners, torch.ones_like(owners))
        self._scored = []


def score_views(
    scorer: ViewScorer,
    samples: Iterable[dict[str, Any] | BadVideo],
    reorder: Reorder | None = None,
    on_video: Callable[[], None] = lambda: None,
) -> list[BadVideo]:
    """Feed each sample of a view loader to the scorer, once; returns those that gave no views.

    `reorder(views, row)` may change the order of the frames, for controls. The model is put into eval mode and stays
    there.
    """
    scorer.model.eval()
    bad = []
    for sample in samples:
        if isinstance(sample, BadVideo):
            bad.append(sample)
        else:
            row = sample["video_index"]
            scorer.process(row, sample["video"] if reorder is None else reorder(sample["video"], row))
        on_video()
    scorer.finish()
    return bad


def frame_order(text: str) -> Reorder | None:
    """`in-order` -> None, `reversed`, or `shuffled:SEED` (`shuffled` is seed 0) -> a function that reorders a video's frames."""
    if text == "in-order":
        return None
    if text == "reversed":
        return reversed_frames
    name, _, seed = text.partition(":")
    if name != "shuffled" or (text != name and not (seed.isascii() and seed.isdigit())):
        raise ConfigError(
            f"frames '{text}' is not an order: choose from in-order, reversed, shuffled and shuffled:SEED"
        )
    return shuffled_frames(int(seed or 0))


def shuffled_frames(seed: int) -> Reorder:
    """A random order of the frames, the same for all views of a video; another one for each seed."""

    def reorder(views: Tensor, row: int) -> Tensor:
        return views[:, :, np.random.default_rng([seed, row]).permutation(views.shape[2])]

    return reorder


def reversed_frames(views: Tensor, row: int) -> Tensor:
    """The frames backwards in time."""
    return views.flip(2)
