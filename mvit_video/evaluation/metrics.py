"""Arrays in, numbers out. Accuracies are in percent; a video without scores counts as wrong."""

# n videos, K classes. scores (n, K), labels (n,), decoded (n,) bool: False where a video gave no scores.

import numpy as np


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, decoded: np.ndarray, k: int) -> float:
    """Share of the videos whose label is among the k best scores; ties go to the lower class number."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    hits = (best == labels[:, None]).any(1) & decoded
    return 100.0 * float(hits.mean())


def mean_class_accuracy(scores: np.ndarray, labels: np.ndarray, decoded: np.ndarray) -> float:
    """Mean over the classes that occur of each class's top-1 accuracy."""
    hits = (scores.argmax(1) == labels) & decoded
    return 100.0 * float(np.mean([hits[labels == label].mean() for label in np.unique(labels)]))


def confusion_matrix(scores: np.ndarray, labels: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """(K, K) counts: rows are true classes, columns predicted ones; videos without scores are in no column."""
    matrix = np.zeros((scores.shape[1],) * 2, dtype=np.int64)
    np.add.at(matrix, (labels[decoded], scores[decoded].argmax(1)), 1)
    return matrix
