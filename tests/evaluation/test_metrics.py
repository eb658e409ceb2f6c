import itertools

import numpy as np
import pytest
from scipy.stats import binomtest, multinomial
from sklearn import metrics as reference

from mvit_video.evaluation import metrics


@pytest.fixture
def answers():
    rng = np.random.default_rng(0)
    scores, labels = rng.random((40, 7)).round(1), rng.integers(0, 7, 40)  # rounded: there are ties
    decoded = rng.random(40) > 0.2
    scores[~decoded] = 0
    return scores, labels, decoded


@pytest.fixture
def many():
    """Distributions without ties; all decoded; class 5 of 6 has no video."""
    rng = np.random.default_rng(1)
    logits, labels = 2 * rng.standard_normal((300, 6)), rng.integers(0, 5, 300)
    logits[np.arange(300), labels] += 2
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return scores, labels, np.ones(300, bool)


@pytest.mark.parametrize("k", [1, 2, 5, 7, 9])
def test_top_k_is_a_count_of_labels_among_the_best(answers, k):
    scores, labels, decoded = answers
    hits = 0
    for row in range(40):
        order = sorted(range(7), key=lambda column: (-scores[row, column], column))
        hits += bool(decoded[row]) and labels[row] in order[:k]
    assert metrics.top_k_accuracy(scores, labels, decoded, k) == pytest.approx(100 * hits / 40)


def test_accuracies_are_those_of_scikit_learn(many):
    scores, labels, _ = many
    for k in (1, 3):
        expected = reference.top_k_accuracy_score(labels, scores, k=k, labels=range(6))
        assert metrics.top_k_accuracy(*many, k) == pytest.approx(100 * expected)
    balanced = reference.balanced_accuracy_score(labels, scores.argmax(1))
    assert metrics.mean_class_accuracy(*many) == pytest.approx(100 * balanced)
    expected = reference.confusion_matrix(labels, scores.argmax(1), labels=range(6))
    assert (metrics.confusion_matrix(*many) == expected).all()


def test_with_fewer_than_five_classes_top_5_is_all_that_could_be_decoded():
    scores, labels, decoded = np.eye(3)[[0, 1, 2, 0]], np.array([1, 2, 0, 0]), np.array([True, True, True, False])
    assert metrics.top_k_accuracy(scores, labels, decoded, 5) == 75
    assert metrics.top_k_accuracy(scores, labels, decoded, 1) == 0


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
    expected = np.zeros((7, 7), int)
    for row in range(40):
        if decoded[row]:
            expected[labels[row], scores[row].argmax()] += 1
    assert (metrics.confusion_matrix(scores, labels, decoded) == expected).all()


def test_confused_pairs_are_the_largest_numbers_beside_the_diagonal():
    matrix = np.array([[9, 2, 0], [5, 7, 0], [1, 0, 0]])
    assert metrics.confused_pairs(matrix, 2) == [(1, 0, 5), (0, 1, 2)]
    assert metrics.confused_pairs(matrix, 20) == [(1, 0, 5), (0, 1, 2), (2, 0, 1)]
    assert metrics.confused_pairs(np.eye(3, dtype=int), 5) == []


def test_classes_that_are_mistaken_for_one_another_stand_side_by_side():
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(np.arange(6), 5))
    matrix = 40 * np.eye(30, dtype=int) + 5 * (groups[:, None] == groups)
    matrix[:12, 12:] += rng.integers(2, size=(12, 18))
    order = metrics.cluster_order(matrix)
    assert sorted(order) == list(range(30))
    assert (np.diff(groups[order]) != 0).sum() == 5
    assert metrics.cluster_order(np.eye(4, dtype=int)) == [0, 1, 2, 3], "nothing confused: as they were"
    assert metrics.cluster_order(np.zeros((1, 1), int)) == [0]


def test_groups_are_laid_end_to_end_where_they_touch_most():
    chain = np.zeros((6, 6), int)
    for one, other in ((3, 0), (0, 4), (4, 1), (1, 5), (5, 2)):  # a path through all classes
        chain[one, other] = chain[other, one] = 10
    order = metrics.cluster_order(chain + 20 * np.eye(6, dtype=int))
    assert order in ([3, 0, 4, 1, 5, 2], [2, 5, 1, 4, 0, 3])


def test_calibration_error_is_the_mean_gap_of_score_and_share_right(answers, many):
    for scores, labels, decoded in (answers, many):
        bins = metrics.calibration(scores, labels, decoded, 10)
        total, videos = 0.0, int(decoded.sum())
        for place in range(10):
            low, high = place / 10, (place + 1) / 10
            inside = [
                row
                for row in range(len(labels))
                if decoded[row] and (low < scores[row].max() <= high or (place == 0 and scores[row].max() == 0))
            ]
            assert bins.counts[place] == len(inside)
            if inside:
                score = np.mean([scores[row].max() for row in inside])
                right = np.mean([scores[row].argmax() == labels[row] for row in inside])
                total += len(inside) / videos * abs(score - right)
        assert bins.error == pytest.approx(total)
    assert metrics.calibration(scores, labels, np.zeros(len(labels), bool)).error is None


@pytest.mark.parametrize("digits", [1, 8])
def test_average_precision_is_that_of_scikit_learn(digits):
    """With ties and without; undecoded videos have the lowest score of all there."""
    rng = np.random.default_rng(2)
    truth, decoded = rng.random((60, 5)) < 0.3, rng.random(60) > 0.1
    scores = (rng.random((60, 5)) + 0.5 * truth).clip(0, 1).round(digits)
    scores[~decoded] = 0
    ranked = np.where(decoded[:, None], scores, -1)
    expected = reference.average_precision_score(truth, ranked, average=None)
    assert metrics.average_precisions(scores, truth, decoded) == pytest.approx(expected)
    assert metrics.mean_average_precision(scores, truth, decoded) == pytest.approx(100 * expected.mean())
    weights = rng.integers(0, 4, 60).astype(float)
    expected = reference.average_precision_score(truth, ranked, average=None, sample_weight=weights)
    assert metrics.average_precisions(scores, truth, decoded, weights) == pytest.approx(expected)


def test_resamples_of_several_labels_sort_each_class_once(monkeypatch):
    sorted_once, ranking = [], metrics._ranking
    monkeypatch.setattr(metrics, "_ranking", lambda *arrays: sorted_once.append(1) or ranking(*arrays))
    rng = np.random.default_rng(4)
    truth, scores, decoded = rng.random((40, 3)) < 0.4, rng.random((40, 3)).round(1), rng.random(40) > 0.1
    precisions = metrics.ranked_precisions(scores, truth, decoded)
    drawn = metrics.bootstrap(lambda weights: precisions(weights).tolist(), 40, 20, seed=0)
    assert len(sorted_once) == 3
    monkeypatch.undo()
    anew = metrics.bootstrap(
        lambda weights: metrics.average_precisions(scores, truth, decoded, weights).tolist(), 40, 20, seed=0
    )
    assert np.array_equal(drawn, anew)


def test_classes_without_positives_are_left_out_of_the_mean_average_precision():
    truth, scores = np.array([[1, 0], [0, 0]], bool), np.array([[0.2, 0.9], [0.8, 0.1]])
    values = metrics.average_precisions(scores, truth, np.ones(2, bool))
    assert values[0] == 0.5 and np.isnan(values[1])
    assert metrics.mean_average_precision(scores, truth, np.ones(2, bool)) == 50
    assert metrics.mean_average_precision(scores, truth & False, np.ones(2, bool)) is None


def test_the_bootstrap_draws_videos_with_replacement_and_repeats_itself(many):
    hits = metrics.top_k_hits(*many, 1)
    seen = []

    def statistic(weights):
        seen.append(weights)
        return [weights @ hits / len(hits), metrics.mean_over_classes(hits, many[1], weights)]

    values = metrics.bootstrap(statistic, 300, 400, seed=3)
    assert values.shape == (400, 2) and all(weights.sum() == 300 for weights in seen)
    assert (values == metrics.bootstrap(statistic, 300, 400, seed=3)).all()
    share = hits.mean()
    low, high = metrics.interval(values[:, 0])
    normal = 1.96 * np.sqrt(share * (1 - share) / 300)
    assert low == pytest.approx(share - normal, abs=0.012) and high == pytest.approx(share + normal, abs=0.012)
    drawn = np.repeat(np.arange(300), seen[0].astype(int))
    expected = 100 * reference.balanced_accuracy_score(many[1][drawn], many[0].argmax(1)[drawn])
    assert values[0, 1] == pytest.approx(expected)


def test_the_interval_of_wilson_is_that_of_scipy_and_never_leaves_0_to_100():
    for count in (1, 2, 8, 30, 1000):
        for hits in {0, 1, count // 3, count - 1, count}:
            expected = binomtest(hits, count).proportion_ci(method="wilson")
            actual = metrics.wilson(hits, count)
            assert actual == pytest.approx([100 * expected.low, 100 * expected.high])
            assert 0 <= actual[0] <= 100 * hits / count <= actual[1] <= 100
    assert metrics.wilson(0, 8)[0] == 0 and metrics.wilson(8, 8)[1] == 100


def cases(both, only_one, only_other, neither):
    one = np.repeat([True, True, False, False], [both, only_one, only_other, neither])
    return one, np.repeat([True, False, True, False], [both, only_one, only_other, neither])


@pytest.mark.parametrize("shares", [(0.5, 0.1, 0.1, 0.3), (0.8, 0.15, 0.05, 0.0), (0.2, 0.1, 0.4, 0.3)])
def test_the_interval_of_a_paired_difference_covers_it_in_about_95_of_100_samples(shares):
    """Over every outcome of ten videos, weighted by its probability."""
    truth, covered, number = 100 * (shares[2] - shares[1]), 0.0, 10
    for outcome in itertools.product(range(number + 1), repeat=3):
        if sum(outcome) <= number:
            outcome = (*outcome, number - sum(outcome))
            low, high = metrics.paired_difference(*cases(*outcome))
            covered += multinomial.pmf(outcome, number, shares) * (low <= truth <= high)
    assert 0.93 < covered < 0.999


def test_the_interval_of_a_paired_difference_is_the_bootstraps_where_videos_are_many():
    one, other = cases(500, 100, 160, 240)
    rng = np.random.default_rng(0)
    drawn = [100 * (other[draw].mean() - one[draw].mean()) for draw in rng.integers(1000, size=(4000, 1000))]
    found = metrics.paired_difference(one, other)
    assert found == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.4)
    assert metrics.paired_difference(other, one) == pytest.approx([-found[1], -found[0]])


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (3, 3), (1, 9), (300, 200)])
def test_mcnemar_counts_disagreements_and_is_an_exact_binomial_test(only_a, only_b):
    one = np.array([True] * (5 + only_a) + [False] * (only_b + 4))
    other = np.array([True] * 5 + [False] * only_a + [True] * only_b + [False] * 4)
    actual = metrics.mcnemar(one, other)
    counts = [actual[name] for name in ("both_right", "only_a_right", "only_b_right", "both_wrong")]
    assert counts == [5, only_a, only_b, 4]
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert actual["p_value"] == pytest.approx(expected)
