"""Scores of videos: the softmax (or sigmoid) of each view, averaged over the views of a video."""

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
from mvit_video.errors import ConfigError

Reorder = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class VideoScores:
    """What a list of videos has been scored with.

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
    in `autocast`. `sums` (n, K) float64 and
    `counts` (n,) of several scorers with other videos may be added up.
    """

    def __init__(
        self,
        model: nn.Module,
        num_videos: int,
        num_classes: int,
        views_per_batch: int,
        device: torch.device,
        multi_label: bool = False,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model, self.views_per_batch, self.device, self.autocast = model, views_per_batch, device, autocast
        self.activation = torch.sigmoid if multi_label else partial(torch.softmax, dim=1)
        self.sums = torch.zeros(num_videos, num_classes, dtype=torch.float64)
        self.counts = torch.zeros(num_videos, dtype=torch.int64)
        self._views: list[Tensor] = []
        self._owners: list[int] = []

    def process(self, row: int, views: Tensor) -> None:
        """Take the views (V, C, T, H, W) of the video in `row`."""
        for view in views:
            self._views.append(view)
            self._owners.append(row)
            if len(self._views) == self.views_per_batch:
                self.flush()

    def flush(self) -> None:
        """Run the network on what waits."""
        if not self._views:
            return
        with torch.inference_mode(), self.autocast():
            logits = self.model(torch.stack(self._views).to(self.device))
        owners = torch.tensor(self._owners)
        self.sums.index_add_(0, owners, self.activation(logits.double()).cpu())
        self.counts.index_add_(0, owners, torch.ones_like(owners))
        self._views, self._owners = [], []


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
    scorer.flush()
    return bad


def frame_order(text: str) -> Reorder | None:
    """`in-order` -> None, `reversed`, or `shuffled:SEED` (`shuffled` is seed 0) -> what puts a video's frames so."""
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
