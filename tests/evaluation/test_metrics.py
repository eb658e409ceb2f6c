import numpy as np
import pytest

from mvit_video.evaluation import metrics


@pytest.fixture
def answers():
    rng = np.random.default_rng(0)
    scores, labels = rng.random((40, 7)).round(1), rng.integers(0, 7, 40)  # rounded: there are ties
    decoded = rng.random(40) > 0.2
    scores[~decoded] = 0
    return scores, labels, decoded


@pytest.mark.parametrize("k", [1, 2, 5, 7, 9])
def test_top_k_is_a_count_of_labels_among_the_best(answers, k):
    scores, labels, decoded = answers
    hits = 0
    for row in range(40):
        order = sorted(range(7), key=lambda column: (-scores[row, column], column))
        hits += bool(decoded[row]) and labels[row] in order[:k]
    assert metrics.top_k_accuracy(scores, labels, decoded, k) == pytest.approx(100 * hits / 40)


def test_a_video_without_scores_is_wrong_even_where_its_label_is_the_first_class():
    scores, labels = np.zeros((2, 3)), np.array([0, 0])
    scores[1] = (0.9, 0.1, 0)
    assert metrics.top_k_accuracy(scores, labels, np.array([False, True]), 1) == 50
    assert metrics.mean_class_accuracy(scores, labels, np.array([False, True])) == 50


def test_mean_class_accuracy_weighs_classes_not_videos():
    scores, labels = np.eye(3)[[0, 0, 0, 1, 2]], np.array([0, 0, 0, 1, 1])
    assert metrics.mean_class_accuracy(scores, labels, np.ones(5, bool)) == 75


def test_the_confusion_matrix_counts_true_by_predicted(answers):
    scores, labels, decoded = answers
    wanted = np.zeros((7, 7), int)
    for row in range(40):
        if decoded[row]:
            wanted[labels[row], scores[row].argmax()] += 1
    assert (metrics.confusion_matrix(scores, labels, decoded) == wanted).all()
