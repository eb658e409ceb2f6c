"""Videos whose label is doubtful to a classifier of features trained on the other videos (confident learning)."""

# N videos, C features, K classes

import importlib.util
from dataclasses import dataclass

import numpy as np

from mvit_video.errors import ConfigError

FOLDS = 5
PENALTY = 0.01  # inverse strength of the regularisation: hundreds of features meet few videos


@dataclass(frozen=True)
class Doubt:
    """A video by its place, its label, the one that fits better, and the probabilities of both for a video not trained on."""

    place: int
    label: int
    likely: int
    label_probability: float
    likely_probability: float


def require_packages() -> None:
    """Raise ConfigError if the optional packages are missing, which is found out before hours of work."""
    for name, package in (("sklearn", "scikit-learn"), ("cleanlab", "cleanlab")):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"the package {package}, which finds doubtful labels, is not installed: run 'pip install {package}', "
                "or leave out --checkpoint and --features"
            )


def label_doubts(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int = 0) -> list[Doubt]:
    """The doubtful labels, most doubtful first, of features (N, C), labels (N,) and groups (N,), which folds keep together.

    Near-duplicates belong into one group, or a wrong label would be confirmed by its copy. Classes with fewer than FOLDS
    groups are left out (see `judged`).
    """
    kept = np.flatnonzero(judged(labels, groups))
    names, own = np.unique(labels[kept], return_inverse=True)
    if len(names) < 2:
        return []
    probabilities = out_of_fold(features[kept], own, groups[kept], seed)
    likely = probabilities.argmax(1)
    return [
        Doubt(
            int(kept[row]),
            int(names[own[row]]),
            int(names[likely[row]]),
            float(probabilities[row, own[row]]),
            float(probabilities[row, likely[row]]),
        )
        for row in _issues(own, probabilities)
        if likely[row] != own[row]
    ]


def judged(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(N,) whether a label's class has videos of enough groups for each fold to hold one."""
    classes, own = np.unique(labels, return_inverse=True)
    counts = np.array([len(np.unique(groups[own == number])) for number in range(len(classes))])
    return counts[own] >= FOLDS


def out_of_fold(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """(N, K) probabilities of each video by a classifier trained on the folds that it is not in."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probabilities = np.zeros((len(labels), labels.max() + 1))
    for rest, held_out in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(features, labels, groups):
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=1000))
        classifier.fit(features[rest], labels[rest])
        probabilities[np.ix_(held_out, classifier.classes_)] = classifier.predict_proba(features[held_out])
    return probabilities


def _issues(labels: np.ndarray, probabilities: np.ndarray) -> list[int]:
    from cleanlab.filter import find_label_issues

    places = find_label_issues(labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    return [int(place) for place in places]
