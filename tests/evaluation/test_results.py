import csv
import json

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score
from small_results import made_up_scores

from mvit_video.data.lists.read import VideoList, VideoRecord
from mvit_video.evaluation.evaluate import true_labels
from mvit_video.evaluation.protocols import Protocol
from mvit_video.evaluation.results import accuracies, class_rows, measures, results, write_results
from mvit_video.evaluation.views import VideoScores

CLASSES = ("a", "=b", 'c, "c"', "d", "é", "f", "never")


@pytest.fixture
def scores():
    made = made_up_scores(classes=6)
    wider = np.column_stack([made.scores, np.zeros(60, np.float32)])
    return VideoScores(made.names, made.labels, wider, made.decoded)


def test_class_rows_are_counts_of_each_class(scores):
    rows = class_rows(scores, CLASSES)
    best, order = scores.scores.argmax(1), np.argsort(-scores.scores, 1)
    for label in range(6):
        own = [row for row in range(60) if scores.labels[row] == label]
        answers = [int(best[row]) for row in own if scores.decoded[row]]
        wrong = [answer for answer in answers if answer != label]
        everywhere = [int(best[row]) for row in range(60) if scores.decoded[row]]
        row = rows[label]
        assert row["videos"] == len(own) and row["undecodable"] == len(own) - len(answers)
        assert row["top1"] == pytest.approx(100 * answers.count(label) / len(own))
        five = sum(bool(scores.decoded[place]) and label in order[place, :5] for place in own)
        assert row["top5"] == pytest.approx(100 * five / len(own))
        assert row["predicted"] == everywhere.count(label)
        assert row["precision"] == pytest.approx(100 * answers.count(label) / everywhere.count(label))
        assert row["mistaken_videos"] == max((wrong.count(other) for other in wrong), default=0)
        if wrong:
            assert wrong.count(CLASSES.index(row["mistaken_for"])) == row["mistaken_videos"]
    assert rows[6]["videos"] == 0 and rows[6]["top1"] is None and rows[6]["precision"] is None


def test_names_with_commas_and_quotes_survive_the_tables(scores, tmp_path):
    write_results(tmp_path, scores, CLASSES, results(scores, CLASSES, Protocol(1, 1), 2.0))
    for name in ("per_class.csv", "confusion.csv"):
        with (tmp_path / name).open(newline="") as file:
            # what a spreadsheet would run has a ' before it
            assert [row[0] for row in csv.reader(file)][1:] == [
                f"'{name}" if name == "=b" else name for name in CLASSES
            ]
    with (tmp_path / "per_class.csv").open(newline="") as file:
        assert list(csv.DictReader(file))[6]["top1"] == ""
    assert json.loads((tmp_path / "results.json").read_text())["clips_per_second"] == 29


def test_nothing_decoded_is_zero_percent_and_no_calibration(scores):
    nothing = VideoScores(scores.names, scores.labels, np.zeros((60, 7), np.float32), np.zeros(60, bool))
    actual = measures(nothing)
    assert actual["top1"] == actual["top5"] == actual["mean_class_accuracy"] == 0
    assert actual["expected_calibration_error"] is None
    expected = [0, 100 * binomtest(0, 60).proportion_ci(method="wilson").high]
    assert actual["intervals_95"]["top1"] == actual["intervals_95"]["top5"] == pytest.approx(expected)
    json.dumps(actual, allow_nan=False)


@pytest.mark.parametrize("right", [0, 5, 8])
def test_shares_of_few_videos_have_the_interval_of_wilson_and_the_mean_over_classes_a_bootstrap(right):
    labels = np.arange(8) % 2
    answers = np.where(np.arange(8) < right, labels, 1 - labels)
    found = measures(VideoScores([f"{row}.mp4" for row in range(8)], labels, np.eye(2)[answers], np.ones(8, bool)))
    wilson = binomtest(right, 8).proportion_ci(method="wilson")
    assert found["top1"] == 100 * right / 8
    assert found["intervals_95"]["top1"] == pytest.approx([100 * wilson.low, 100 * wilson.high])
    assert (found["intervals_95"]["mean_class_accuracy"] == [found["top1"]] * 2) == (right in (0, 8))


def test_two_classes_have_results(tmp_path):
    scores = made_up_scores(classes=2)
    found = results(scores, ("a", "b"), Protocol(1, 1), 1.0)
    assert found["top5"] == pytest.approx(100 * 58 / 60)
    write_results(tmp_path, scores, ("a", "b"), found)
    assert len((tmp_path / "confusion.csv").read_text().splitlines()) == 3


def test_multi_label_results_are_average_precisions(tmp_path):
    scores = made_up_scores(multi_label=True)
    actual = measures(scores)
    ranked = np.where(scores.decoded[:, None], scores.scores, -1)
    expected = 100 * average_precision_score(scores.labels, ranked, average="macro")
    assert actual["mean_average_precision"] == pytest.approx(expected) and "top1" not in actual
    assert accuracies(scores) == {"mean_average_precision": pytest.approx(expected)}
    low, high = actual["intervals_95"]["mean_average_precision"]
    assert low < expected < high
    write_results(tmp_path, scores, CLASSES[:6], results(scores, CLASSES[:6], Protocol(1, 1), 1.0))
    with (tmp_path / "per_class.csv").open(newline="") as file:
        values = [float(row["average_precision"]) for row in csv.DictReader(file)]
    assert np.mean(values) == pytest.approx(expected)
    assert not (tmp_path / "confusion.csv").exists()


class Several(VideoRecord):
    """A record of a list whose videos have several labels."""

    def __init__(self, path, *labels):
        super().__init__(path, labels[0])
        object.__setattr__(self, "more_labels", labels[1:])


def test_labels_are_numbers_or_where_videos_have_several_a_table():
    single = VideoList((VideoRecord("a", 2), VideoRecord("b", 0)), ("x", "y", "z"), "list")
    assert true_labels(single).tolist() == [2, 0]
    several = VideoList((Several("a", 2, 0), Several("b", 1)), ("x", "y", "z"), "list")
    assert true_labels(several).tolist() == [[True, False, True], [False, True, False]]
