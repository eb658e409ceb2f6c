"""The command `evaluate` against a plain loop that shares nothing with it but the network."""

import csv
import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from plain_views import all_frames, scaled
from small_results import DEMO, INPUT, random_checkpoint, settings

from mvit_video import cli
from mvit_video.config.schema import InputSettings
from mvit_video.data.dataset import ViewDataset
from mvit_video.data.lists.read import read_videos
from mvit_video.data.synthetic import write_video
from mvit_video.data.video.source import VideoFiles
from mvit_video.evaluation.scores_file import load_scores
from mvit_video.model.weights import convert
from mvit_video.model.weights.load import load_checkpoint
from mvit_video.model.weights.zoo import ZOO

VIDEOS = 9


@pytest.fixture(scope="module")
def data(few_videos, tmp_path_factory):
    """The 8 videos of the validation list, one of them listed twice; one is damaged and one is short and wide."""
    root = tmp_path_factory.mktemp("evaluated") / "data"
    shutil.copytree(few_videos, root)
    (root / "val.csv").write_text((root / "val.csv").read_text() + "val/00002.mp4 2\n")
    (root / "val/00005.mp4").write_text("not a video")
    frames = np.random.default_rng(0).integers(0, 255, (5, 8, 12, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    write_video(root / "val/00003.mp4", frames, 15)
    return root


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    config = settings(data)
    classes = read_videos("val.csv", str(data)).classes
    return random_checkpoint(tmp_path_factory.mktemp("weights") / "model.safetensors", config, classes)


def command(data, checkpoint, output, *more):
    root = f"data.root={data}"
    return [
        "evaluate",
        str(DEMO),
        root,
        *INPUT,
        "--checkpoint",
        str(checkpoint),
        "--device",
        "cpu",
        "--output",
        str(output),
        *more,
    ]


@pytest.fixture(scope="module")
def evaluated(data, checkpoint, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "evaluation"
    assert cli.main(command(data, checkpoint, output, "--protocol", "3x3")) == 0
    return output


def scores_by_hand(model, path, clips=3, crop=32, short=40):
    """Three clips of 4 frames over 12 at 15 fps, three crops each: the mean softmax, one view at a time."""
    frames, window = all_frames(path), 4 * 3
    total = np.zeros(8)
    for clip in range(clips):
        start = clip * math.floor(max(len(frames) - window, 0) / (clips - 1))
        numbers = [min(math.floor(start + step * (window - 1) / 3), len(frames) - 1) for step in range(4)]
        big = np.stack([scaled(frames[number], short) for number in numbers])
        height, width = big.shape[1:3]
        for part in (0, 0.5, 1):
            top = math.ceil((height - crop) * (part if height > width else 0.5))
            left = math.ceil((width - crop) * (0.5 if height > width else part))
            view = (big[:, top : top + crop, left : left + crop] - 0.45) / 0.225
            with torch.inference_mode():
                logits = model(torch.tensor(view, dtype=torch.float32).permute(3, 0, 1, 2)[None])[0].double().numpy()
            total += np.exp(logits) / np.exp(logits).sum()
    return total / (3 * clips)


def test_every_score_is_that_of_a_plain_loop(evaluated, data, checkpoint):
    model = load_checkpoint(checkpoint)[0]
    rows = [line.split() for line in (data / "val.csv").read_text().splitlines()]
    actual, classes = load_scores(evaluated)
    assert actual.names == [path for path, _ in rows] and actual.labels.tolist() == [int(label) for _, label in rows]
    assert classes == load_checkpoint(checkpoint)[1].classes
    for row, (path, _) in enumerate(rows):
        expected = np.zeros(8) if row == 5 else scores_by_hand(model, data / path)
        assert np.allclose(actual.scores[row], expected, atol=2e-5), path
    assert actual.scores.std(0).max() > 0.01, "the videos' scores differ"
    assert (actual.scores[2] == actual.scores[8]).all(), (
        "the video that is listed twice counts twice, with the same scores"
    )


def test_the_results_are_what_the_scores_say(evaluated):
    found, _ = load_scores(evaluated)
    result = json.loads((evaluated / "results.json").read_text())
    right = [found.decoded[row] and found.scores[row].argmax() == found.labels[row] for row in range(VIDEOS)]
    best = np.argsort(-found.scores, 1)[:, :5]
    five = [found.decoded[row] and found.labels[row] in best[row] for row in range(VIDEOS)]
    assert result["top1"] == pytest.approx(100 * np.mean(right)) and result["top5"] == pytest.approx(
        100 * np.mean(five)
    )
    per_class = [np.mean([right[row] for row in range(VIDEOS) if found.labels[row] == label]) for label in range(8)]
    assert result["mean_class_accuracy"] == pytest.approx(100 * np.mean(per_class))
    assert (result["num_videos"], result["num_decoded"], result["protocol"]) == (VIDEOS, 8, "3x3")
    for name, (low, high) in result["intervals_95"].items():
        assert low <= result[name] <= high
    (bad,) = result["undecodable"]
    assert (bad["path"], bad["where"]) == ("val/00005.mp4", "row 6 of val.csv") and "cannot be opened" in bad["reason"]
    assert result["views_per_second"] == pytest.approx(8 * 9 / result["seconds"])


def test_the_results_say_where_they_come_from(evaluated, data, checkpoint):
    result = json.loads((evaluated / "results.json").read_text())
    digest = subprocess.run(["sha256sum", checkpoint], capture_output=True, text=True, check=True).stdout.split()[0]
    assert result["checkpoint"]["sha256"] == digest and result["checkpoint"]["card"]["protocol"] == "2x3"
    assert result["config"] == json.loads(settings(data).model_dump_json()) and result["device"] == "cpu"
    assert result["versions"]["torch"] == torch.__version__ and result["list"].endswith("val.csv")
    assert result["protocol_in_words"].startswith("3 clips of 4 frames, evenly spaced over 12 frames at 15 fps")


@pytest.mark.integration
@pytest.mark.parametrize("frames", ["reversed", "shuffled:3"])
def test_frames_in_another_order_are_scored_and_named(data, checkpoint, evaluated, tmp_path, frames, capsys):
    """The network is shown each clip of a loop in that order; nothing else changes."""
    assert cli.main(command(data, checkpoint, tmp_path / "out", "--protocol", "1x1", "--frames", frames)) == 0
    assert f"of 9 videos, 1x1, frames {frames}, fp32; details in" in capsys.readouterr().err
    result = json.loads((tmp_path / "out/results.json").read_text())
    assert result["frames"] == frames and f"The frames of each clip are {frames}." in result["protocol_in_words"]
    whole = json.loads((evaluated / "results.json").read_text())
    assert whole["frames"] == "in-order" and "The frames of each clip" not in whole["protocol_in_words"]
    config, (model, card) = settings(data), load_checkpoint(checkpoint)
    dataset = ViewDataset(
        read_videos("val.csv", str(data)),
        VideoFiles(str(data), timeout=0),
        card.preprocessing,
        1,
        1,
        "return",
    )
    actual = load_scores(tmp_path / "out")[0].scores
    for row in (0, 4):
        order = list(range(config.data.num_frames))[::-1]
        if frames != "reversed":
            order = np.random.default_rng([3, row]).permutation(config.data.num_frames)
        with torch.inference_mode():
            expected = model(dataset[row]["video"][:, :, order]).softmax(1)[0].numpy()
        assert np.allclose(actual[row], expected, atol=1e-5)


def test_pictures_of_another_size_are_scored_and_named(data, checkpoint, tmp_path, capsys):
    """Trained for 32 of 40 pixels, seen at 24 of 30."""
    assert cli.main(command(data, checkpoint, tmp_path / "out", "--protocol", "3x3", "--resolution", "24")) == 0
    assert "of 9 videos, 3x3, at 24 pixels, fp32; details in" in capsys.readouterr().err
    result = json.loads((tmp_path / "out/results.json").read_text())
    assert result["crop_size"] == [24, 24] and result["checkpoint"]["card"]["preprocessing"]["crop_size"] == 32
    assert "The short side is scaled to 30 pixels, and 24×24 pixels are cropped" in result["protocol_in_words"]
    model, found = load_checkpoint(checkpoint)[0], load_scores(tmp_path / "out")[0].scores
    for row, path in ((0, "val/00000.mp4"), (3, "val/00003.mp4")):
        assert np.allclose(found[row], scores_by_hand(model, data / path, crop=24, short=30), atol=2e-5)


def test_a_resolution_keeps_the_proportions():
    shown = InputSettings(short_side=256, crop_size=(224, 112)).at_resolution(56)
    assert (shown.short_side, shown.crop_size) == (128, (112, 56))
    shown = InputSettings(short_side=256, crop_size=224).at_resolution(160)
    assert (shown.short_side, shown.crop_size) == (183, 160)


def test_an_order_that_is_none_is_refused_before_any_work(data, checkpoint, tmp_path, capsys):
    assert cli.main(command(data, checkpoint, tmp_path / "out", "--frames", "mixed")) == 1
    assert "frames 'mixed' is not an order: choose from in-order, reversed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_tables_add_up(evaluated):
    found, classes = load_scores(evaluated)
    with (evaluated / "confusion.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["true \\ predicted", *classes, "(not decoded)"] and [row[0] for row in rows] == list(classes)
    counts = np.array([row[1:] for row in rows], int)
    assert counts.sum() == VIDEOS and counts[5].tolist() == [0] * 8 + [1]
    assert counts[2, found.scores[2].argmax()] == 2
    with (evaluated / "per_class.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["class"] for row in table] == list(classes)
    assert [int(row["videos"]) for row in table] == [1, 1, 2, 1, 1, 1, 1, 1]
    assert [int(row["undecodable"]) for row in table] == [0, 0, 0, 0, 0, 1, 0, 0]


@pytest.mark.integration
def test_two_processes_write_the_same_results(evaluated, data, checkpoint, tmp_path):
    """Nine videos for two: neither is padded, and the damaged one is the second's."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mvit_video"]
    words += command(data, checkpoint, tmp_path / "two", "--protocol", "3x3")
    done = subprocess.run(words, capture_output=True, text=True, cwd=REPOSITORY, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("counted as wrong") == 1 and done.stderr.count("top-1") == 1, "one process speaks"
    one, two = (json.loads((folder / "results.json").read_text()) for folder in (evaluated, tmp_path / "two"))
    assert two.pop("processes") == 2 and one.pop("processes") == 1
    for name in ("seconds", "clips_per_second", "views_per_second"):
        one.pop(name), two.pop(name)
    calibration = one.pop("expected_calibration_error"), two.pop("expected_calibration_error")
    assert calibration[0] == pytest.approx(calibration[1], abs=1e-6) and one == two
    (ours, _), (theirs, _) = load_scores(evaluated), load_scores(tmp_path / "two")
    assert ours.names == theirs.names and (ours.decoded == theirs.decoded).all()
    assert np.allclose(ours.scores, theirs.scores, atol=1e-6)
    for name in ("per_class.csv", "confusion.csv"):
        assert (tmp_path / "two" / name).read_text() == (evaluated / name).read_text()


def test_a_named_protocol_that_does_not_fit_costs_one_line_and_no_folder(data, checkpoint, tmp_path, capsys):
    assert cli.main(command(data, checkpoint, tmp_path / "out", "--protocol", "kinetics-5x1")) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "short side 256 → crop 224×224, the checkpoint" in err and "short side 40" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.integration
def test_the_page_of_a_public_checkpoint_shows_no_curves_of_a_run_in_this_folder(
    data, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MVIT_VIDEO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache/localhost").mkdir(parents=True)
    shutil.copy(checkpoint, tmp_path / "cache/localhost/s.safetensors")
    changed = ZOO["mvitv2_s_16x4_k400"].model_copy(update={"url": "http://localhost/s.safetensors"})
    monkeypatch.setitem(ZOO, "mvitv2_s_16x4_k400", changed)
    monkeypatch.setattr(convert, "load_network", lambda source: load_checkpoint(checkpoint))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 1, "loss": 2.0}\n')
    assert cli.main(command(data, "mvitv2_s_16x4_k400", "out", "--protocol", "1x1")) == 0
    shutil.copy(checkpoint, tmp_path / "model.safetensors")
    assert cli.main(command(data, "model.safetensors", "own", "--protocol", "1x1")) == 0
    pages = [(tmp_path / name / "report.html").read_text() for name in ("out", "own")]
    assert ["<h2>Training</h2>" in page for page in pages] == [False, True]


def test_weights_that_answer_nan_are_named_and_not_scored(data, checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        torch.nn.Linear, "forward", lambda self, x: torch.full((*x.shape[:-1], self.out_features), torch.nan)
    )
    assert cli.main(command(data, checkpoint, tmp_path / "out", "--protocol", "1x1")) == 1
    assert "val/00000.mp4: the network's scores are NaN or Inf: these weights are unusable" in capsys.readouterr().err
    assert not (tmp_path / "out/results.json").exists()


def test_earlier_results_are_kept_unless_told(evaluated, data, checkpoint, capsys):
    before = (evaluated / "results.json").read_bytes()
    assert cli.main(command(data, checkpoint, evaluated)) == 1
    assert "already contains results.json of another run" in capsys.readouterr().err
    assert (evaluated / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (["moving up", *"bcdefgh"], "class 0 is 'moving up' there but 'moving left' in the checkpoint"),
        (None, "class 7 is 'nothing' there but 'turning counter-clockwise' in the checkpoint"),
    ],
)
def test_a_checkpoint_of_other_classes_than_the_datasets_is_refused(data, checkpoint, tmp_path, own, message, capsys):
    """Numbers in a list mean the classes of the list's own classes.txt, or of data.classes."""
    classes = (data / "classes.txt").read_text().splitlines()
    (tmp_path / "names.txt").write_text("\n".join(own or classes[:7]))
    words = command(data, checkpoint, tmp_path / "out", f"data.classes={tmp_path / 'names.txt'}")
    if own is None:
        shutil.copytree(data, tmp_path / "data")
        (tmp_path / "names.txt").rename(tmp_path / "data/classes.txt")
        words = command(tmp_path / "data", checkpoint, tmp_path / "out")
    assert cli.main(words) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and message in err and ": use lists with the same classes in the same order" in err
    assert not (tmp_path / "out").exists()
