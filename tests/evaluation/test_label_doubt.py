"""Doubtful labels: planted ones are found, and copies do not vouch for one another."""

import numpy as np
import pytest

from mvit_video.errors import ConfigError
from mvit_video.evaluation import label_doubt
from mvit_video.evaluation.label_doubt import judged, label_doubts, out_of_fold

CLASSES, EACH = 4, 30


@pytest.fixture
def planted():
    """(features, labels with eight wrong ones, places of these, right labels)."""
    rng = np.random.default_rng(3)
    right = np.arange(CLASSES).repeat(EACH)
    features = np.eye(CLASSES)[right] @ rng.normal(0, 2, (CLASSES, 16)) + rng.normal(0, 0.5, (len(right), 16))
    wrong = rng.choice(len(right), 8, replace=False)
    labels = right.copy()
    labels[wrong] = (labels[wrong] + 1) % CLASSES
    return features, labels, wrong, right


def test_planted_wrong_labels_are_found_with_their_right_class(planted):
    features, labels, wrong, right = planted
    doubts = label_doubts(features, labels, np.arange(len(labels)))
    found = {doubt.place for doubt in doubts}
    assert found <= {*wrong.tolist()} and len(found) >= 6
    assert all(doubt.likely == right[doubt.place] and doubt.label == labels[doubt.place] for doubt in doubts)
    heights = [doubt.label_probability for doubt in doubts]
    assert heights == sorted(heights) and max(heights) < min(doubt.likely_probability for doubt in doubts)


def test_probabilities_are_of_a_classifier_that_saw_neither_the_video_nor_its_copies(planted):
    features, labels, _, _ = planted
    groups = np.arange(len(labels))
    lone = np.concatenate([features, np.full((2, 16), 9.0)])  # two copies far from everything, of class 0
    both = np.concatenate([labels, [0, 0]])
    apart = out_of_fold(lone, both, np.concatenate([groups, [200, 201]]), seed=0)
    together = out_of_fold(lone, both, np.concatenate([groups, [200, 200]]), seed=0)
    assert np.allclose(apart.sum(1), 1) and np.allclose(together.sum(1), 1)
    assert (together[-2:, 0] < apart[-2:, 0]).all()


def test_classes_with_too_few_different_videos_are_not_judged(planted):
    features, labels, _, _ = planted
    few = np.where(np.arange(len(labels)) < 6, 9, labels)
    groups = np.arange(len(labels))
    groups[:6] = [0, 0, 0, 1, 2, 3]
    assert judged(few, groups).tolist() == [False] * 6 + [True] * (len(labels) - 6)
    assert all(doubt.place >= 6 for doubt in label_doubts(features, few, groups))
    assert label_doubts(features, np.zeros(len(labels), int), groups) == []
    assert label_doubts(features[:0], labels[:0], groups[:0]) == []


def test_a_missing_package_is_one_sentence_with_the_command(monkeypatch):
    monkeypatch.setattr(label_doubt.importlib.util, "find_spec", lambda name: None if name == "cleanlab" else 1)
    with pytest.raises(ConfigError, match=r"cleanlab.*run 'pip install cleanlab', or leave out --checkpoint"):
        label_doubt.require_packages()
