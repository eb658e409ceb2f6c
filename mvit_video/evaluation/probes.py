"""Classifiers of a frozen network's features: nearest neighbours, logistic regression and an attentive probe.

Each is trained on the views of some videos and gives scores (n, K) to others: the softmax of each view, averaged over a
video's views, as `predict` and `evaluate` do.
"""

# n videos, V views of all of them, K classes, C channels, N tokens of a view, Q queries

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from math import gcd

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from mvit_video.errors import ConfigError
from mvit_video.evaluation.metrics import interval, top_k_hits, wilson

NEIGHBOURS, TEMPERATURE = 20, 0.07  # of DINO's evaluation, arXiv 2104.14294, appendix F
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse strengths of the regularisation
USUAL_STRENGTH = 1e-2  # where a class has a single video or group, and none can be held out
FOLDS = 5
NEVER = -1e4  # bias of a class without a training video
QUERIES, STEPS, BATCH, RATE, DECAY = 8, 100, 64, 3e-3, 0.05  # of the attentive probe
TOGETHER = 64 * 2**20  # bytes of tokens that the attentive probes trained at once see in a step
RESAMPLES = 1000


@dataclass(frozen=True)
class VideoViews:
    """Features of n videos: of each view (V, C) or (V, C, T, H, W), the row of its video (V,), and the videos' labels (n,).

    A video that could not be decoded has no view. Videos of one of the `groups` (n,) are held out together; None: each by itself.
    """

    features: np.ndarray
    video: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None = None

    @property
    def view_labels(self) -> np.ndarray:
        """(V,)"""
        return self.labels[self.video]

    @property
    def decoded(self) -> np.ndarray:
        """(n,) whether a video has views."""
        return np.bincount(self.video, minlength=len(self.labels)) > 0

    def of(self, places: np.ndarray) -> "VideoViews":
        """These of the videos, in this order."""
        numbers = np.full(len(self.labels), -1)
        numbers[places] = np.arange(len(places))
        kept = numbers[self.video] >= 0
        groups = None if self.groups is None else self.groups[places]
        return VideoViews(self.features[kept], numbers[self.video[kept]], self.labels[places], groups)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """The mean (n, D) over its views of each video's values (V, D); 0 for a video without views."""
        sums = np.zeros((len(self.labels), values.shape[1]))
        np.add.at(sums, self.video, values)
        return sums / np.maximum(np.bincount(self.video, minlength=len(self.labels)), 1)[:, None]


@dataclass(frozen=True)
class LinearHead:
    """A linear layer on features as they come out of the network: weight (K, C), bias (K,).

    `strength` is the inverse strength of the regularisation that it was fitted with.
    """

    weight: np.ndarray
    bias: np.ndarray
    strength: float

    def scores(self, views: VideoViews) -> np.ndarray:
        logits = views.features.astype(np.float64) @ self.weight.T + self.bias
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return views.mean(powers / powers.sum(1, keepdims=True))


@dataclass(frozen=True)
class Shots:
    """Which test videos a classifier has right, (draws, n) bool, trained on `shots` videos of each class; None: on all, once."""

    method: str
    shots: int | None
    hits: np.ndarray

    @property
    def top1(self) -> float:
        """Mean over the draws, in percent."""
        return 100.0 * float(self.hits.mean())

    @property
    def interval_95(self) -> list[float]:
        """Wilson's of one draw; of several the middle 95 % when draws and test videos are drawn again, in percent."""
        draws, videos = self.hits.shape
        if draws == 1:
            return wilson(int(self.hits.sum()), videos)
        rng, values = np.random.default_rng(0), []
        for _ in range(RESAMPLES):
            rows, columns = (np.bincount(rng.integers(size, size=size), minlength=size) for size in (draws, videos))
            values.append(100.0 * float(rows @ self.hits @ columns) / (draws * videos))
        return interval(np.array(values))


Classifier = Callable[[VideoViews, Sequence[np.ndarray], VideoViews, int, int], Iterator[np.ndarray]]
"""(training views, draws, test views, K, seed) -> scores (n, K) of each draw, trained on the videos at these places"""


def require_scikit_learn() -> None:
    """Raise ConfigError if it is missing, which is found out before hours of work."""
    if importlib.util.find_spec("sklearn") is None:
        raise ConfigError(
            "the package scikit-learn, which fits the classifiers, is not installed: run 'pip install scikit-learn'"
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes with one thread: products are so small here that several cost more than they give, tenfold on a busy machine."""
    import sklearn.linear_model  # noqa: F401  which loads libraries with threads of their own
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


def nearest_scores(
    train: VideoViews, draws: Sequence[np.ndarray], test: VideoViews, num_classes: int, seed: int
) -> Iterator[np.ndarray]:
    """Votes of the nearest training videos by the cosine of their features' means, the nearer the heavier.

    As in DINO's evaluation (arXiv 2104.14294), with the mean of the training videos taken away first (arXiv 1911.04623).
    """
    for places in draws:
        yield _votes(train.of(places), test, num_classes)


def _votes(train: VideoViews, test: VideoViews, num_classes: int) -> np.ndarray:
    known, asked = (views.mean(views.features) for views in (train, test))
    known, asked = (_unit(means - known.mean(0)) for means in (known, asked))
    near = asked @ known.T
    places = np.argsort(-near, axis=1, kind="stable")[:, :NEIGHBOURS]
    votes = np.exp((np.take_along_axis(near, places, 1) - 1) / TEMPERATURE)
    scores = np.zeros((len(asked), num_classes))
    np.add.at(scores, (np.arange(len(asked))[:, None], train.labels[places]), votes)
    return scores / scores.sum(1, keepdims=True)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def linear_scores(
    train: VideoViews, draws: Sequence[np.ndarray], test: VideoViews, num_classes: int, seed: int
) -> Iterator[np.ndarray]:
    """Scores of logistic regression."""
    for places in draws:
        yield fit_linear(train.of(places), num_classes, seed).scores(test)


def fit_linear(train: VideoViews, num_classes: int, seed: int) -> LinearHead:
    """Logistic regression of standardised features.

    The strength of its regularisation is the one with the least log loss on videos held out in turn.
    """
    strength = _best_strength(train, num_classes, seed)
    return _fitted(train, num_classes, strength)


def _best_strength(train: VideoViews, num_classes: int, seed: int) -> float:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    groups = np.arange(len(train.labels)) if train.groups is None else train.groups
    folds = min(FOLDS, *(len(np.unique(groups[train.labels == label])) for label in np.unique(train.labels)))
    if folds < 2:
        return USUAL_STRENGTH
    kind = StratifiedKFold if train.groups is None else StratifiedGroupKFold
    splits = kind(folds, shuffle=True, random_state=seed).split(train.labels, train.labels, train.groups)
    losses = np.zeros(len(STRENGTHS))
    for rest, held_out in splits:
        known, asked = train.of(rest), train.of(held_out)
        for place, strength in enumerate(STRENGTHS):
            scores = _fitted(known, num_classes, strength).scores(asked)
            right = scores[np.arange(len(held_out)), asked.labels]
            losses[place] -= np.log(np.maximum(right, 1e-12)).sum()
    return STRENGTHS[int(losses.argmin())]


def _fitted(train: VideoViews, num_classes: int, strength: float) -> LinearHead:
    """Fit at this strength, and put the standardisation into the layer: W(x − m)/s + b = (W/s)x + (b − (W/s)m)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler, features = StandardScaler(), train.features.astype(np.float64)
    fitted = LogisticRegression(C=strength, max_iter=1000).fit(scaler.fit_transform(features), train.view_labels)
    slopes, offsets = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:  # one row for the second class: softmax(−z/2, z/2) is its sigmoid
        slopes, offsets = (np.concatenate([-values, values]) / 2 for values in (slopes, offsets))
    weight, bias = np.zeros((num_classes, slopes.shape[1])), np.full(num_classes, NEVER)
    weight[fitted.classes_] = slopes / scaler.scale_
    bias[fitted.classes_] = offsets - weight[fitted.classes_] @ scaler.mean_
    return LinearHead(weight, bias, strength)


class AttentiveProbe(nn.Module):
    """Learned queries attend to the tokens (B, N, C) of a frozen network, each for a slice of the channels; a linear layer
    classifies the result.

    Queries and keys are not projected: learned queries make that unnecessary ("efficient probing", arXiv 2506.10178). The tokens
    are normalised over their channels (`normalised`): as weights add up to 1, scale and shift of the norm can be applied to
    the result, instead of to each token, and the shift cancels out of the weights.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.queries = nn.Parameter(0.02 * torch.randn(gcd(QUERIES, dim), dim))
        self.value = nn.Linear(dim, dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        attention = (tokens @ (self.scale * self.queries).T).softmax(1)  # (B, N, Q)
        gathered = attention.transpose(1, 2) @ tokens * self.scale + self.shift  # (B, Q, C)
        slices = self.value.weight.unflatten(0, (len(self.queries), -1))  # (Q, C/Q, C)
        values = torch.einsum("bqc,qdc->bqd", gathered, slices).flatten(1) + self.value.bias
        return self.head(values)


def normalised(maps: np.ndarray) -> Tensor:
    """(V, C, T, H, W) -> tokens (V, N, C) of mean 0 and variance 1 over their channels."""
    tokens = torch.from_numpy(maps).flatten(2).transpose(1, 2)
    return F.layer_norm(tokens, tokens.shape[2:])


def attentive_scores(
    train: VideoViews, draws: Sequence[np.ndarray], test: VideoViews, num_classes: int, seed: int
) -> Iterator[np.ndarray]:
    """Scores of an attentive probe, trained by AdamW with a cosine schedule. The features are maps (V, C, T, H, W).

    The probes of several draws are trained at once, as they are small. All start with the same weights, and see their views in
    the same order.
    """
    tokens, asked = normalised(train.features), normalised(test.features)
    labels = torch.from_numpy(train.view_labels)
    for rows in _together([np.flatnonzero(np.isin(train.video, places)) for places in draws], tokens[:1].nbytes):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            probe = AttentiveProbe(tokens.shape[2], num_classes)
            weights = _trained(probe, tokens, labels, torch.from_numpy(rows))
        for number in range(len(rows)):
            probe.load_state_dict({name: stacked[number] for name, stacked in weights.items()})
            with torch.inference_mode():
                scores = [probe(batch).softmax(1) for batch in asked.split(BATCH)] or [torch.zeros(0, num_classes)]
            yield test.mean(torch.cat(scores).numpy())


def _together(rows: Sequence[np.ndarray], bytes_each: int) -> Iterator[np.ndarray]:
    """Draws (D, V) of equally many views that are trained at once."""
    for count, equal in groupby(rows, key=len):
        draws, most = np.stack(list(equal)), max(TOGETHER // max(min(count, BATCH) * bytes_each, 1), 1)
        yield from (draws[first : first + most] for first in range(0, len(draws), most))


def _trained(probe: AttentiveProbe, tokens: Tensor, labels: Tensor, rows: Tensor) -> dict[str, Tensor]:
    """The weights, (D, ...) by name, of a probe for each of the draws, views `rows` (D, V); all begin as `probe`."""
    weights = stack_module_state([probe] * len(rows))[0]  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(weights.values(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)

    def loss(state: dict[str, Tensor], batch: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(probe, state, (batch,)), wanted)

    for _ in range(STEPS):
        batch = rows[:, torch.randperm(rows.shape[1])[:BATCH]]
        optimizer.zero_grad()
        vmap(loss)(weights, tokens[batch], labels[batch]).sum().backward()
        optimizer.step()
        schedule.step()
    return {name: stacked.detach() for name, stacked in weights.items()}


METHODS: Mapping[str, Classifier] = {
    "nearest neighbours": nearest_scores,
    "logistic regression": linear_scores,
    "attentive probe": attentive_scores,
}


def choose(labels: np.ndarray, shots: int, rng: np.random.Generator) -> np.ndarray:
    """Places of `shots` random videos of each class that occurs."""
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.sort(np.concatenate([rng.choice(places, shots, replace=False) for places in classes]))


def usual_shots(labels: np.ndarray) -> list[int]:
    """1, 2, 4 and so on, as long as each class has more videos."""
    fewest = int(np.unique(labels, return_counts=True)[1].min())
    return [shots for shots in (2**power for power in range(10)) if shots < fewest]


def measure(
    views: Mapping[str, tuple[VideoViews, VideoViews]],
    num_classes: int,
    shots: Sequence[int | None],
    draws: int,
    seed: int,
    advance: Callable[[], object] = lambda: None,
) -> list[Shots]:
    """Train each method on `shots` videos of each class, in as many draws, or on all videos (None), and test it.

    `views` has training and test views by the method; draw i of a number of shots has the same videos for every method.
    `advance` is called for each classifier trained.
    """
    found = []
    for method, (train, test) in views.items():
        for count in shots:
            hits = []
            for scores in METHODS[method](train, _draws(train, count, draws, seed), test, num_classes, seed):
                hits.append(top_k_hits(scores, test.labels, test.decoded, 1))
                advance()
            found.append(Shots(method, count, np.stack(hits)))
    return found


def _draws(train: VideoViews, count: int | None, draws: int, seed: int) -> list[np.ndarray]:
    """The places of the training videos of each draw."""
    if count is None:
        return [np.arange(len(train.labels))]
    return [choose(train.labels, count, np.random.default_rng((seed, count, draw))) for draw in range(draws)]
