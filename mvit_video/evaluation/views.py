"""Scores of videos: the softmax of each view, summed over the views of a video, averaged to a distribution."""

# V views of a video (clips × crops), K classes

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from mvit_video.data.dataset import BadVideo

Reorder = Callable[[Tensor, int], Tensor]


@dataclass
class VideoScores:
    """scores (n, K) float32 that sum to 1 per decoded video and are 0 for the others, which `bad` lists."""

    names: list[str]
    labels: np.ndarray
    scores: np.ndarray
    decoded: np.ndarray
    bad: list[BadVideo] = field(default_factory=list)


class ViewScorer:
    """Collects views across videos until a batch is full, runs the network, and adds each view to its video's scores."""

    def __init__(self, model: nn.Module, num_videos: int, num_classes: int, views_per_batch: int, device: torch.device):
        self.model, self.views_per_batch, self.device = model, views_per_batch, device
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
                self._run()

    def evaluate(self) -> np.ndarray:
        """Mean scores (n, K) float32 of all that has been taken; rows without views are 0."""
        if self._views:
            self._run()
        return (self.sums / self.counts.clamp(min=1)[:, None]).float().numpy()

    def _run(self) -> None:
        with torch.inference_mode():
            logits = self.model(torch.stack(self._views).to(self.device))
        owners = torch.tensor(self._owners)
        self.sums.index_add_(0, owners, logits.double().softmax(1).cpu())
        self.counts.index_add_(0, owners, torch.ones_like(owners))
        self._views, self._owners = [], []


def score_videos(
    model: nn.Module,
    samples: Iterable[dict | BadVideo],
    num_videos: int,
    num_classes: int,
    views_per_batch: int,
    device: torch.device,
    reorder: Reorder | None = None,
    on_video: Callable[[], None] = lambda: None,
) -> VideoScores:
    """Score each sample of a view loader, once. `reorder(views, row)` may change the order of the frames, for controls.

    The model is put into eval mode and stays there.
    """
    scorer = ViewScorer(model.eval(), num_videos, num_classes, views_per_batch, device)
    result = VideoScores([""] * num_videos, np.zeros(num_videos, np.int64), np.empty(0), np.zeros(num_videos, bool))
    for sample in samples:
        if isinstance(sample, BadVideo):
            result.bad.append(sample)
        else:
            row = sample["video_index"]
            views = sample["video"] if reorder is None else reorder(sample["video"], row)
            result.names[row], result.labels[row], result.decoded[row] = sample["video_name"], sample["label"], True
            scorer.process(row, views)
        on_video()
    result.scores = scorer.evaluate()
    return result


def shuffled_frames(seed: int) -> Reorder:
    """A random order of the frames, the same for all views of a video; another one for each seed."""

    def reorder(views: Tensor, row: int) -> Tensor:
        return views[:, :, np.random.default_rng([seed, row]).permutation(views.shape[2])]

    return reorder


def reversed_frames(views: Tensor, row: int) -> Tensor:
    """The frames backwards in time."""
    return views.flip(2)
