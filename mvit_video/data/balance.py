"""How often each class is shown in an epoch, where its videos are not taken as they come."""

# N videos, K classes, S videos shown in an epoch

import numpy as np

from mvit_video.data.draws import generator
from mvit_video.data.lists.records import NO_LABEL
from mvit_video.errors import ConfigError

POWERS = {
    "none": 1.0,
    "sqrt": 0.5,
    "class": 0.0,
}  # of a class's number of videos, which its share of an epoch is proportional to


def check_labels(labels: np.ndarray, balance: str) -> None:
    """ConfigError for a balance of classes and videos without one."""
    if balance != "none" and (labels == NO_LABEL).any():
        raise ConfigError(
            f"data.sampling_balance = {balance} needs a label for each of the training videos, of which {int((labels == NO_LABEL).sum())} "
            "have none: set it to none"
        )


def shown_counts(counts: np.ndarray, shown: int, balance: str) -> np.ndarray:
    """How many of the `shown` videos of an epoch are of each class (K,), of which there are `counts` (K,) videos.

    >>> shown_counts(np.array([80, 20, 0]), 100, "class").tolist(), shown_counts(np.array([80, 20, 0]), 99, "sqrt").tolist()
    ([50, 50, 0], [66, 33, 0])
    """
    shares = np.where(counts > 0, np.maximum(counts, 1).astype(np.float64) ** POWERS[balance], 0.0)
    exact = shown * shares / shares.sum()
    whole = np.floor(exact + 1e-9).astype(np.int64)
    largest = np.argsort(-(exact - whole), kind="stable")  # of the remainders
    whole[largest[: shown - int(whole.sum())]] += 1
    return whole


def balanced_order(
    labels: np.ndarray, shown: int, balance: str, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """The places (S,) of the videos of an epoch, and how often each has been shown in it before (S,), from 0.

    A class that is shown more often than it has videos shows all of them equally often, but for some, drawn anew in each
    epoch, which are shown once more.
    """
    videos, turns = [], []
    for label, count in enumerate(shown_counts(np.bincount(labels), shown, balance)):
        places = np.flatnonzero(labels == label)
        if count:
            order = generator("balance", seed, epoch, label).permutation(places)
            videos.append(np.resize(order, count))
            turns.append(np.arange(count) // len(places))
    mixed = generator("order", seed, epoch).permutation(shown)
    return np.concatenate(videos)[mixed], np.concatenate(turns)[mixed]
