"""Few labels: classifiers of features, and the checkpoint that they leave."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from tiny_checkpoint import write_tiny
from tiny_predictor import nano_card, nano_model

from mvit_video import cli, evaluate
from mvit_video import probe as probe_in_python
from mvit_video.config.schema import InputSettings
from mvit_video.errors import ConfigError
from mvit_video.evaluation.probes import USUAL_STRENGTH, LinearHead
from mvit_video.inference import features
from mvit_video.inference.predictor import Predictor
from mvit_video.inference.probe import probed as probed_by
from mvit_video.inference.probe import with_head
from mvit_video.model.registry import build_model
from mvit_video.model.weights.card import ModelCard

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def probed(few_videos, tmp_path_factory):
    """A probe of 16 videos of the demonstration, tested on 8."""
    folder = tmp_path_factory.mktemp("probe")
    checkpoint = write_tiny(folder / "network.safetensors")
    config = folder / "config.yaml"
    config.write_text(
        f"data: {{root: {few_videos}, train: train.csv, test: val.csv, num_frames: 8, sampling_rate: 2, short_side: 44,\n"
        "  crop_size: [32, 40], mean: [0.4, 0.45, 0.5]}\nmodel: {name: mvitv2_s_16x4}\nevaluation: {protocol: 2x1}\n"
    )
    words = ["probe", str(config), "--checkpoint", str(checkpoint), "--device", "cpu", "--draws", "2"]
    assert cli.main([*words, "--attentive", "--output", str(folder / "out")]) == 0
    return folder, words


def test_the_saved_checkpoint_scores_in_evaluate_and_predict_what_the_probe_has_measured(probed, few_videos):
    folder, words = probed
    content = json.loads((folder / "out/results.json").read_text())
    saved = folder / "out/model.safetensors"
    result = evaluate(words[1], saved, device="cpu")
    assert {name: content["saved"][name] for name in result.accuracies} == pytest.approx(result.accuracies)
    predictor = Predictor.from_checkpoint(saved, "cpu")
    assert str(predictor.protocol) == "2x1" and predictor.card.measured.percent["top1"] == result.top1
    [prediction] = predictor(few_videos / result.scores.names[3], top=8)
    order = np.argsort(-result.scores.scores[3], kind="stable")
    assert [label for label, _ in prediction.predictions] == [result.classes[place] for place in order]


def test_each_number_of_shots_has_its_draws_and_an_interval(probed):
    content = json.loads((probed[0] / "out/results.json").read_text())
    rows = [(row["classifier"], row["videos_per_class"], row["draws"]) for row in content["results"]]
    methods = ("nearest neighbours", "logistic regression", "attentive probe")
    assert rows == [(method, *shots) for method in methods for shots in ((1, 2), (None, 1))]
    for row in content["results"]:
        low, high = row["interval_95"]
        assert low <= row["top1"] <= high and np.mean(row["top1_of_draws"]) == pytest.approx(row["top1"])


def test_features_are_extracted_once_and_kept_for_other_outputs(probed, monkeypatch, tmp_path):
    folder, words = probed
    cache = folder / "out/features"
    assert sorted(path.name.partition("-")[0] for path in cache.iterdir()) == ["2", "2", "pooled", "pooled"]

    def never(maker, records):
        raise AssertionError("extracted again")

    monkeypatch.setattr(features._Maker, "shard", never)
    before = (folder / "out/results.json").read_text()
    assert cli.main([*words, "--attentive", "--output", str(folder / "out"), "--overwrite"]) == 0
    again = [json.loads(text) | {"seconds": 0} for text in (before, (folder / "out/results.json").read_text())]
    assert again[0] == again[1]
    assert cli.main([*words, "--output", str(tmp_path / "other"), "--features", str(cache), "--shots", "2"]) == 0
    rows = json.loads((tmp_path / "other/results.json").read_text())["results"]
    assert [row["videos_per_class"] for row in rows] == [2, None] * 2


def test_a_program_gets_what_the_command_line_prints_and_its_groups_are_those_of_the_settings(probed, tmp_path):
    folder, words = probed
    asked = dict(draws=2, device="cpu", features=folder / "out/features")
    result = probe_in_python(words[1], words[3], tmp_path / "out", attentive=True, **asked)
    content = json.loads((folder / "out/results.json").read_text())
    assert json.loads(json.dumps(result.content)) | {"seconds": 0} == content | {"seconds": 0}
    rows = [(one.method, one.shots, one.top1, one.interval_95) for one in result.shots]
    names = ("classifier", "videos_per_class", "top1", "interval_95")
    assert rows == [tuple(row[name] for name in names) for row in content["results"]]
    assert result.accuracies == {name: content["saved"][name] for name in result.accuracies}
    assert len(result.classes) == 8 and result.undecodable == [] and result.weights.parent == result.folder
    assert result.weights.read_bytes() == (folder / "out/model.safetensors").read_bytes()
    together = {"data.split_group": "mp4"}  # all videos are one group, so none can be held out
    alone = probe_in_python(words[1], words[3], tmp_path / "one", shots=[2], **asked, **together)
    assert alone.content["saved"]["strength"] == USUAL_STRENGTH != result.content["saved"]["strength"]
    with pytest.raises(ConfigError, match="shots = 0: expected whole numbers from 1"):
        probe_in_python(words[1], words[3], tmp_path / "two", shots=[0, 2], **asked)


def test_any_network_with_a_feature_gets_the_layer_as_its_head():
    rng = np.random.default_rng(0)
    for name in ("mvitv2_nano_8x3", "pvt_v2_b0_16x4"):
        model = build_model(name, num_classes=3, num_frames=8, crop_size=64).eval()
        card = ModelCard(
            name=name, arguments={}, classes=("a", "b", "c"), preprocessing=InputSettings(num_frames=8, crop_size=64)
        )
        with torch.inference_mode():
            clips = torch.randn(2, 3, 8, 64, 64)
            feature = model(clips, with_feature=True)[1]
            head = LinearHead(rng.normal(size=(5, feature.shape[1])), rng.normal(size=5), 1.0)
            new, new_card = with_head(model, card, head, ["v", "w", "x", "y", "z"])
            expected = feature.double() @ torch.from_numpy(head.weight).T + torch.from_numpy(head.bias)
            assert torch.allclose(new(clips), expected.float(), atol=1e-4) and new_card.classes[4] == "z"


def one_line(capsys):
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines
    return lines[0]


def test_what_cannot_be_probed_is_one_sentence(probed, few_videos, tmp_path, capsys):
    folder, words = probed
    there = ["--output", str(tmp_path / "out"), "--features", str(folder / "out/features")]
    root = tmp_path / "data"
    shutil.copytree(few_videos, root)
    rows = list(csv.reader((root / "train.csv").read_text().splitlines(), delimiter=" "))
    (root / "plain.txt").write_text("".join(f"{row[0]}\n" for row in rows))
    (root / "alike.csv").write_text("".join(f"{row[0]} 3\n" for row in rows))
    (root / "several.csv").write_text("".join(f"{row[0]} 3;4\n" for row in rows))
    wrong = {
        "--shots 9": (["--shots", "9"], "has only 2 training videos"),
        "no labels": ([f"data.root={root}", "data.train=plain.txt"], "none of its 16 videos has a label"),
        "one class": ([f"data.root={root}", "data.train=alike.csv"], "all its videos are of the class"),
        "several": ([f"data.root={root}", "data.train=several.csv"], "several labels"),
        "groups": (["data.split_group=^film"], "data.split_group = ^film does not match the file name of 16 of 16"),
        "no test list": (["data.test=null"], "neither data.test nor data.val is set"),
        "again": (["--output", str(folder / "out")], "pass --overwrite"),
    }
    for name, (more, sentence) in wrong.items():
        assert cli.main([*words, *there, *more]) == 1, name
        assert sentence in one_line(capsys), name


@pytest.mark.parametrize("more", [["--shots", "9"], ["data.train=alike.csv"]])
def test_what_the_lists_tell_is_refused_before_a_video_is_decoded(probed, few_videos, tmp_path, more):
    shutil.copytree(few_videos, tmp_path / "data")
    rows = [line.split()[0] for line in (few_videos / "train.csv").read_text().splitlines()]
    (tmp_path / "data/alike.csv").write_text("".join(f"{path} 3\n" for path in rows))
    words = [*probed[1], f"data.root={tmp_path / 'data'}", "--output", str(tmp_path / "out"), *more]
    assert cli.main(words) == 1 and not (tmp_path / "out/features").exists()


def test_test_videos_that_are_trained_on_are_noted(probed, tmp_path, capsys):
    words = [*probed[1], "data.test=train.csv", "--features", str(probed[0] / "out/features"), "--draws", "1"]
    assert cli.main([*words, "--output", str(tmp_path / "out")]) == 0
    assert "16 of the 16 videos" in (told := capsys.readouterr().err) and "results on them prove little" in told


def test_a_probe_of_a_network_for_several_labels_gives_one():
    """Neither its sigmoids nor its thresholds and fusion are those of the logistic regression."""
    several = {"multi_label": True, "thresholds": dict.fromkeys(nano_card().classes, 0.4), "fusion": "max"}
    model, card = nano_model(), nano_card().model_copy(update=several)
    head = LinearHead(np.zeros((2, model.head.projection.in_features)), np.zeros(2), 1.0)
    _, new = with_head(model, card, head, ("here", "there"))
    assert new == nano_card().model_copy(update={"classes": ("here", "there")})


def test_missing_videos_are_left_out_or_count_as_wrong_and_are_listed(probed, few_videos, tmp_path, capsys):
    root = tmp_path / "data"
    shutil.copytree(few_videos, root)
    (root / "train/00000.mp4").unlink()
    (root / "val/00000.mp4").unlink()
    words = [*probed[1], f"data.root={root}", "--output", str(tmp_path / "out")]
    assert cli.main(words) == 1 and "pass --allow-missing" in one_line(capsys)
    assert cli.main([*words, "--allow-missing"]) == 1 and "val/00000.mp4" in one_line(capsys)
    assert [line.split("\t")[0] for line in (tmp_path / "out/missing.txt").read_text().splitlines()] == [
        "train/00000.mp4",
        "val/00000.mp4",
    ]


def test_a_network_that_was_pre_trained_without_labels_gets_its_first_head(few_videos, tmp_path, capsys):
    state = nano_model().state_dict()
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(("norm.", "head."))}
    kept |= {"mask_token": torch.zeros(1, 1, 32), "pred_head.projections.0.weight": torch.zeros(27, 128)}
    torch.save({"model_state": kept}, tmp_path / "pretrained.pyth")
    words = ["probe", "demo/motion", f"data.root={few_videos}", "--checkpoint", str(tmp_path / "pretrained.pyth")]
    words += ["--protocol", "1x1", "--draws", "1", "--device", "cpu"]
    assert cli.main([*words, "--output", str(tmp_path / "out")]) == 0
    assert "(head.projection.weight, head.projection.bias, norm.weight, norm.bias)" in capsys.readouterr().err
    assert cli.main([*words, "--output", str(tmp_path / "again"), "--features", str(tmp_path / "out/features")]) == 0
    assert len([*(tmp_path / "out/features").iterdir()]) == 2, "found again"
    saved = Predictor.from_checkpoint(tmp_path / "out/model.safetensors", "cpu")
    blocks = [name for name in kept if name.startswith("blocks.")]
    assert all(torch.equal(saved.model.state_dict()[name], kept[name]) for name in blocks)
    assert saved.model.head.projection.weight.std() > 0 and saved.card.classes[0] == "moving left"


class Plain(torch.nn.Module):
    """A network of which nothing is known but its logits."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(3, 2)

    def forward(self, clips):
        return self.head(clips.mean((2, 3, 4)))


def test_a_network_without_the_feature_before_its_head_is_refused(tmp_path):
    card = ModelCard(name="plain", arguments={}, classes=("a", "b"), preprocessing=InputSettings(num_frames=2))
    predictor = Predictor(Plain(), card, torch.device("cpu"))
    with pytest.raises(ConfigError, match="'plain' does not provide the feature that its head classifies: use"):
        probed_by(predictor, None, tmp_path)


def test_videos_that_cannot_be_decoded_cost_a_line_each_and_count_as_wrong_in_the_test(
    probed, few_videos, tmp_path, capsys
):
    root = tmp_path / "data"
    shutil.copytree(few_videos, root)
    (root / "train/00000.mp4").write_bytes(b"no video")
    (root / "val/00000.mp4").write_bytes(b"no video")
    assert cli.main([*probed[1], f"data.root={root}", "--output", str(tmp_path / "out")]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert [line.split(":")[1] for line in errors] == [" train/00000.mp4", " val/00000.mp4"]
    content = json.loads((tmp_path / "out/results.json").read_text())
    assert len(content["undecodable"]) == 2 and content["saved"]["top1"] <= 87.5
