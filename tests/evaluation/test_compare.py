import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest
from small_results import made_up_scores

from mvit_video import cli
from mvit_video.errors import ConfigError
from mvit_video.evaluation.compare import compare, comparison, fuse, load_pair
from mvit_video.evaluation.scores_file import load_scores, save_scores
from mvit_video.evaluation.views import VideoScores

CLASSES = ("a", "b", "c", "d", "e", "f")


def shuffled(scores, seed=5):
    order = np.random.default_rng(seed).permutation(len(scores.names))
    names = [scores.names[row] for row in order]
    return VideoScores(names, scores.labels[order], scores.scores[order], scores.decoded[order])


@pytest.fixture
def pair(tmp_path):
    """Two files with the same videos, the second in another order; each could not decode others."""
    one, other = made_up_scores(seed=1), made_up_scores(seed=2)
    decoded = other.decoded.copy()
    decoded[[3, 8]] = True, False
    scores = other.scores.copy()
    scores[3], scores[8] = np.eye(6)[0], 0
    other = replace(other, decoded=decoded, scores=scores)
    save_scores(tmp_path / "a.npz", one, CLASSES)
    save_scores(tmp_path / "b.npz", shuffled(other), CLASSES)
    return one, other, str(tmp_path / "a.npz"), str(tmp_path / "b.npz")


def test_videos_are_matched_by_name_whatever_their_order(pair):
    first, second, classes = load_pair(*pair[2:])
    assert classes == CLASSES and first.names == second.names == pair[0].names
    once = [row for row, name in enumerate(first.names) if first.names.count(name) == 1]
    assert len(once) == 58
    assert (second.scores[once] == pair[1].scores[once]).all() and (second.decoded[once] == pair[1].decoded[once]).all()


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 0.5)])
def test_fusion_is_the_weighted_mean_of_what_could_be_decoded(pair, weights):
    one, other = pair[:2]
    fused = fuse(one, other, weights)
    for row in range(60):
        parts = [(part, weight) for part, weight in zip((one, other), weights, strict=True) if part.decoded[row]]
        total = sum(weight * part.scores[row].astype(float) for part, weight in parts)
        expected = total / sum(weight for _, weight in parts) if parts else np.zeros(6)
        assert np.allclose(fused.scores[row], expected, atol=1e-7) and fused.decoded[row] == bool(parts)
    assert fused.decoded[3] and fused.decoded[8] and not fused.decoded[17]


def test_the_difference_is_that_of_the_accuracies_and_its_interval_is_paired(pair):
    one, other = pair[:2]
    result = comparison(pair[2:], (1.0, 1.0))[0]
    actual = compare(one, other)
    for name in ("top1", "top5", "mean_class_accuracy"):
        assert actual[name]["difference"] == pytest.approx(result["b"][name] - result["a"][name])
    hits = [(part.scores.argmax(1) == part.labels) & part.decoded for part in (one, other)]
    rng = np.random.default_rng(7)
    draws = rng.integers(60, size=(4000, 60))
    expected = np.percentile(100 * (hits[1][draws].mean(1) - hits[0][draws].mean(1)), [2.5, 97.5])
    assert actual["top1"]["interval_95"] == pytest.approx(expected, abs=2.0)
    alone, split = int((hits[0] & ~hits[1]).sum()), int((hits[0] ^ hits[1]).sum())
    assert actual["mcnemar"]["only_a_right"] == alone
    assert actual["mcnemar"]["p_value"] == pytest.approx(binomtest(alone, split).pvalue)


def test_a_file_compared_with_itself_differs_by_nothing(pair):
    found = compare(pair[0], pair[0])
    assert found["top1"]["difference"] == 0 and found["mcnemar"]["p_value"] == 1
    assert found["mean_class_accuracy"] == {"difference": 0, "interval_95": [0, 0]}
    assert np.allclose(fuse(pair[0], pair[0]).scores, pair[0].scores, atol=1e-7)


def test_two_files_that_are_right_on_the_same_few_videos_may_still_differ():
    labels = np.arange(8) % 2
    right = VideoScores([f"{row}.mp4" for row in range(8)], labels, np.eye(2)[labels], np.ones(8, bool))
    low, high = compare(right, right)["top1"]["interval_95"]
    assert low == pytest.approx(-high) and 30 < high < 50


@pytest.mark.parametrize(
    ("change", "classes", "message"),
    [
        (dict(names=["x.mp4", *made_up_scores().names[1:]]), CLASSES,
         "contain different videos, 1 are in only one of them, such as x.mp4 in the second"),
        (dict(names=[*made_up_scores().names[:-1], "val/vidéo 5.mp4"]), CLASSES,
         r"repeat videos a different number of times \(60 and 60 rows\)"),
        (dict(labels=(made_up_scores().labels + (np.arange(60) == 9)) % 6), CLASSES,
         "have different labels for val/vidéo 9.mp4"),
        (dict(labels=made_up_scores(multi_label=True).labels), CLASSES, "have different labels for val/vidéo 0.mp4"),
        ({}, ("a", "b", "x", "d", "e", "f"), "have different classes: class 2 is 'c' in one and 'x'"),
    ],
)  # fmt: skip
def test_files_about_other_things_are_refused(pair, tmp_path, change, classes, message):
    save_scores(tmp_path / "c.npz", replace(made_up_scores(), **change), classes)
    with pytest.raises(ConfigError, match=f"a.npz and .*c.npz {message}.*: compare results"):
        load_pair(pair[2], tmp_path / "c.npz")


def test_fewer_classes_are_refused(pair, tmp_path):
    save_scores(tmp_path / "c.npz", made_up_scores(classes=5), CLASSES[:5])
    with pytest.raises(ConfigError, match="class 5 is 'f' in one and 'nothing'"):
        load_pair(pair[2], tmp_path / "c.npz")


def test_multi_label_files_are_compared_by_mean_average_precision(tmp_path):
    one, other = (made_up_scores(seed=seed, multi_label=True) for seed in (1, 2))
    found = compare(one, other)
    assert list(found) == ["mean_average_precision"]
    low, high = found["mean_average_precision"]["interval_95"]
    assert low < found["mean_average_precision"]["difference"] < high


def test_the_command_prints_a_table_and_leaves_the_fusion(pair, tmp_path, capsys):
    words = ["evaluate", "--scores", *pair[2:], "--weights", "2", "1"]
    assert cli.main(words) == 0, "no --output is needed"
    out = capsys.readouterr().out
    assert "top-1" in out and "mean class accuracy" in out and "McNemar's exact p = " in out
    assert f"A is {pair[2]}" in out and "60 videos, 6 classes" in out
    assert cli.main([*words, "--output", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out/results.json").read_text())
    assert f"{result['fusion']['top1']:.2f} %" in capsys.readouterr().out
    assert result["fusion"]["weights"] == [2, 1] and result["a"]["file"] == pair[2]
    fused = load_scores(tmp_path / "out")[0]
    assert np.array_equal(fused.scores, fuse(*load_pair(*pair[2:])[:2], (2.0, 1.0)).scores)
    assert cli.main([*words, "--output", str(tmp_path / "out")]) == 1
    assert "already contains results.json" in capsys.readouterr().err


def test_a_comparison_that_fails_deletes_no_earlier_results(pair, tmp_path, capsys):
    words = ["evaluate", "--scores", *pair[2:], "--output", str(tmp_path / "out")]
    assert cli.main(words) == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    words[3] = str(tmp_path / "none.npz")
    capsys.readouterr()
    assert cli.main([*words, "--overwrite"]) == 1
    assert "none.npz: no such file" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("file", ["", "/scores.npz"])
def test_what_is_compared_is_never_written_over(pair, tmp_path, capsys, file):
    save_scores(tmp_path / "scores.npz", pair[0], CLASSES)
    before = (tmp_path / "scores.npz").read_bytes()
    words = ["evaluate", "--scores", pair[3], f"{tmp_path}{file}", "--output", str(tmp_path), "--overwrite"]
    assert cli.main(words) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path}{file}: is an input and is never overwritten: choose another --output\n"
    )
    assert (tmp_path / "scores.npz").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "--output", "x"], "the following arguments are required: CONFIG"),
        (["evaluate", "c.yaml", "--output", "x"], "the following arguments are required: --checkpoint"),
        (["evaluate", "--scores", "a"], "argument --scores: expected 2 arguments"),
        (["evaluate", "--scores", "a", "b", "--weights", "1", "0"], "'0' is not a number above 0"),
    ],
)
def test_wrong_usage_exits_with_two(capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    "word",
    [
        ["c.yaml"],
        ["--checkpoint", "c"],
        ["--protocol", "5x1"],
        ["--frames", "reversed"],
        ["--resolution", "32"],
        ["--precision", "fp32"],
        ["--shard", "1/2"],
    ],
)
def test_what_evaluates_and_what_compares_exclude_each_other(capsys, word):
    assert cli.main(["evaluate", *word, "--scores", "a", "b"]) == 1
    assert (
        capsys.readouterr().err
        == "error: --scores cannot be combined with CONFIG, --checkpoint, --protocol, --frames, --resolution, --precision or --shard\n"
    )
