"""Several labels per video: the loss, mixed label sets, a whole run, and scores that are sigmoids."""

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CPU, REPOSITORY, silent
from run_records import numbers_of_steps
from tiny_predictor import nano_card, nano_model, nano_predictor

from mvit_video import api
from mvit_video.config.load import load_config
from mvit_video.config.schema import TrainSettings
from mvit_video.data.dataset import read_views
from mvit_video.data.lists.records import VideoList, VideoRecord
from mvit_video.data.mixing import Mixer, MixParameters, apply_mix, mix_generator, smooth_targets
from mvit_video.data.synthetic import CLASSES
from mvit_video.data.video.reader import VideoReader
from mvit_video.engine.checkpoint import read_best
from mvit_video.engine.data_warnings import class_counts
from mvit_video.engine.dry_run import dry_run
from mvit_video.engine.hooks.first_batch import label_text
from mvit_video.engine.losses import objective_from
from mvit_video.engine.metrics_log import read_metrics
from mvit_video.engine.resolve import model_card, resolve
from mvit_video.engine.run import train_run
from mvit_video.engine.teacher import Teacher
from mvit_video.errors import AnnotationError, CheckpointError, ConfigError
from mvit_video.evaluation.evaluate import evaluation_task, validator
from mvit_video.evaluation.metrics import best_thresholds
from mvit_video.figures import curves
from mvit_video.inference.predictor import Predictor
from mvit_video.inference.timeline import Timeline, reached_segments
from mvit_video.model.weights.card import CARD_KEY, ModelCard, read_card
from mvit_video.model.weights.files import save_checkpoint
from mvit_video.model.weights.load import read_weights
from mvit_video.report.outputs import timeline_outputs
from mvit_video.report.render import timeline_figure

SETTINGS = TrainSettings(loss="binary_cross_entropy", label_smoothing=0.0)
SETS = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.uint8)
LOGITS = 4 * torch.randn(3, 4, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("targets", [SETS.float(), 0.7 * SETS + 0.3 * SETS.flip(0)], ids=["label sets", "mixed"])
def test_the_loss_is_the_mean_binary_cross_entropy_over_the_classes(targets):
    found = objective_from(SETTINGS).loss(LOGITS, targets)
    by_hand = []
    for logits, row in zip(LOGITS.tolist(), targets.tolist(), strict=True):
        scores = [1 / (1 + math.exp(-logit)) for logit in logits]
        each = [t * math.log(p) + (1 - t) * math.log(1 - p) for p, t in zip(scores, row, strict=True)]
        by_hand.append(-sum(each) / 4)
    torch.testing.assert_close(found, torch.tensor(by_hand))
    torch.testing.assert_close(found.mean(), F.multilabel_soft_margin_loss(LOGITS, targets))


def test_label_sets_are_mixed_as_their_clips_are():
    clips = torch.rand(3, 3, 2, 8, 8)
    mixer = Mixer(4, mixup=0.8)
    _, targets = mixer(clips, SETS, mix_generator(0, 3))
    share = mixer.draw(mix_generator(0, 3), 8, 8).share
    torch.testing.assert_close(targets, share * SETS.float() + (1 - share) * SETS.flip(0).float())
    half_box = MixParameters(0.75, (0, 0, 4, 4))
    assert apply_mix(clips, SETS.float(), half_box)[1][0].tolist() == [0.75, 0, 0.75, 0]


def test_smoothing_takes_its_share_of_each_label():
    assert smooth_targets(SETS, 4, 0.2)[0].tolist() == pytest.approx([0.85, 0.05, 0.85, 0.05])


def test_names_and_counts_are_of_all_labels():
    assert label_text(SETS[0], "abcd") == "a, c" and label_text(torch.tensor(1), "abcd") == "b"
    records = (VideoRecord("1.mp4", 0, 1, (2,)), VideoRecord("2.mp4", 2, 2))
    assert class_counts(VideoList(records, ("a", "b", "c"), "list")) == "a 1, b 0, c 2"


def test_a_card_says_that_there_are_several_labels_and_old_cards_are_of_one():
    card = nano_card()
    assert "multi_label" not in card.model_dump_json() and not card.multi_label
    several = card.model_copy(update={"multi_label": True})
    assert ModelCard.model_validate_json(several.model_dump_json()) == several


def test_scores_are_the_sigmoids_of_the_logits():
    model = nano_model()
    predictor = Predictor(model, nano_card().model_copy(update={"multi_label": True}), CPU)
    clips = torch.randn(2, 3, 8, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = predictor.model(clips).double().numpy()
    np.testing.assert_allclose(predictor.scores(clips), 1 / (1 + np.exp(-logits)), atol=1e-6)
    np.testing.assert_allclose(nano_predictor().scores(clips).sum(1), 1, atol=1e-6)


def several_labels(videos, folder):
    """The videos with other lists: every second one has the next class, too."""
    (folder / "data").mkdir()
    for name in ("train", "val"):
        (folder / "data" / name).symlink_to(videos / name)
        rows = [line.split() for line in (videos / f"{name}.csv").read_text().splitlines()]
        more = [
            f"{path} {label};{(int(label) + 1) % 8}" if n % 2 else f"{path} {label}"
            for n, (path, label) in enumerate(rows)
        ]
        (folder / "data" / f"{name}.csv").write_text("\n".join(more) + "\n")
    return folder / "data"


def config_for(root, *words):
    small = ["data.crop_size=24", "data.short_side=24", "model.arguments={depths: [1, 1], drop_path_rate: 0.2}"]
    steps = ["train.epochs=2", "train.clips_per_step=8", "train.checkpoint_every_steps=3", "data.workers=0"]
    loss = ["train.loss=binary_cross_entropy", "train.mixup=0.8", "train.validate_every_epochs=1"]
    views = ["evaluation.protocol=1x1"]
    return load_config(
        REPOSITORY / "configs/demo/motion.yaml", [f"data.root={root}", *small, *steps, *loss, *views, *words]
    )


def train(config, run, say=silent, **how):
    train_run(resolve(config, run, CPU, say, **how), lambda videos: validator(videos, config, CPU), say)


def test_a_run_with_several_labels_trains_resumes_to_the_bit_and_is_measured_by_mean_average_precision(
    few_videos, tmp_path
):
    config, said = config_for(several_labels(few_videos, tmp_path)), []
    train(config, tmp_path / "whole", said.append)
    validations = read_metrics(tmp_path / "whole/validation.jsonl")
    assert len(validations) == 2 and all("mean_average_precision" in record for record in validations)
    assert all("top1" not in record for record in read_metrics(tmp_path / "whole/metrics.jsonl"))
    assert any("final mean average precision" in text for text in said)
    assert read_best(tmp_path / "whole")["metric"] == "mean_average_precision"

    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step_00000004")
    train(config, tmp_path / "run", resume=True)
    weights = "model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    assert numbers_of_steps(tmp_path / "run/metrics.jsonl") == numbers_of_steps(tmp_path / "whole/metrics.jsonl")

    file = str(tmp_path / "whole" / weights)
    assert read_weights(file).card.multi_label
    found = evaluation_task(config, file, CPU).run()
    assert found.accuracies["mean_average_precision"] == pytest.approx(validations[-1]["mean_average_precision"])
    assert "sigmoid" in found.content["protocol_in_words"]
    names = [axes.get_ylabel() for axes in curves(read_metrics(tmp_path / "whole/metrics.jsonl"), validations).axes]
    assert names == ["loss", "mean average precision in %"]


def test_several_labels_and_a_loss_for_one_are_refused_with_the_cure(few_videos, tmp_path):
    root = several_labels(few_videos, tmp_path)
    with pytest.raises(AnnotationError, match=r"8 of 16 videos have several labels.*train.loss=binary_cross_entropy"):
        resolve(config_for(root, "train.loss=cross_entropy"), tmp_path / "run", CPU, silent)


@pytest.mark.parametrize(
    "word", ["data.sampling_balance=class", "train.class_weights=balanced", "train.teacher=other.safetensors"]
)
def test_settings_for_one_label_are_refused_in_one_sentence(few_videos, tmp_path, word):
    name, _, value = word.partition("=")
    config = config_for(few_videos, word)
    for start in (lambda: resolve(config, tmp_path / "run", CPU, silent), lambda: dry_run(config, CPU)):
        with pytest.raises(ConfigError, match=rf"{name} = {value} needs one label per video.*set {name}="):
            start()


def test_a_teacher_for_several_labels_is_refused():
    several = nano_card().model_copy(update={"multi_label": True})
    with pytest.raises(
        ConfigError, match=r"train.teacher t.safetensors: was trained for several labels.*train.teacher=null"
    ):
        Teacher(nano_model(), several, nano_card(), "t.safetensors")


def test_thresholds_have_the_best_f1_of_all():
    rng = np.random.default_rng(4)
    scores = rng.random((40, 3)).round(1).astype(np.float32)
    truth, decoded = rng.random((40, 3)) < [0.3, 0.6, 0.0], np.arange(40) != 7
    found = best_thresholds(scores, truth, decoded)

    def f1(column, threshold):
        said, is_so = scores[decoded, column] >= threshold, truth[decoded, column]
        return 2 * (said & is_so).sum() / (said.sum() + is_so.sum())

    for column in (0, 1):
        assert f1(column, found[column]) == max(f1(column, threshold) for threshold in np.arange(0, 1.05, 0.05))
    assert found[2] == 0.5


def test_thresholds_of_other_classes_are_refused_in_one_sentence():
    card = json.loads(nano_card().model_copy(update={"multi_label": True}).model_dump_json())
    for thresholds, what in (
        ({"moving lft": 0.5}, "'moving lft' is none of its classes"),
        ({"moving left": 0.5}, "every class"),
    ):
        with pytest.raises(
            CheckpointError, match=f"m.safetensors: its card cannot be read.*{what}.*or none, which means 0.5"
        ):
            read_card({CARD_KEY: json.dumps(card | {"thresholds": thresholds})}, "m.safetensors")


def test_a_prediction_names_every_class_that_reaches_its_threshold():
    thresholds = dict.fromkeys(CLASSES, 0.5) | {CLASSES[2]: 0.9, CLASSES[5]: 0.2}
    card = nano_card().model_copy(update={"multi_label": True, "thresholds": thresholds})
    found = Predictor(nano_model(), card, CPU).prediction("a.mp4", np.array([0.1, 0.6, 0.8, 0, 0, 0.3, 0.7, 0]), top=2)
    assert [label for label, _ in found.predictions] == [CLASSES[2], CLASSES[6]]
    assert found.as_dict()["labels"] == [CLASSES[6], CLASSES[1], CLASSES[5]]
    assert "labels" not in nano_predictor().prediction("a.mp4", np.ones(8) / 8).as_dict()


def test_segments_of_several_labels_overlap_and_leave_gaps():
    times = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    scores = np.array([[0.9, 0.1], [0.7, 0.6], [0.2, 0.8], [0.1, 0.1], [0.6, 0.1]])
    segments = reached_segments(times, scores, np.array([0.5, 0.5]), ("a", "b"), 6.0, shortest=1.6)
    assert [(one.label, one.start, one.end, round(one.score, 6)) for one in segments] == [
        ("a", 0, 2.5, 0.8),
        ("b", 1.5, 3.5, 0.7),
    ]
    timeline = Timeline(times, scores, segments, 6.0, 2.0, multi_label=True)
    assert [[one.label for one in timeline.segments_at(at)] for at in (0, 2, 3, 5)] == [["a"], ["a", "b"], ["b"], []]
    lanes = [text.get_text() for text in timeline_figure(timeline, ("a", "b")).axes[1].get_yticklabels()]
    assert lanes == ["a", "b"]
    timeline_figure(Timeline(times, scores, (), 6.0, 2.0, multi_label=True), ("a", "b"))


def test_every_verb_writes_the_labels_of_a_video(few_videos, tmp_path):
    card = nano_card().model_copy(update={"multi_label": True})
    predictor = Predictor(nano_model(), card, CPU)
    video = str(few_videos / "val/00000.mp4")
    [found] = predictor(video)
    assert set(found.labels) == {label for label, score in predictor(video, top=8)[0].predictions if score >= 0.5}
    timeline_outputs(predictor, video, tmp_path / "out", None, silent)
    content = json.loads((tmp_path / "out/timeline.json").read_text())
    assert {segment["label"] for segment in content["segments"]} <= set(CLASSES)
    assert (tmp_path / "out/annotated.mp4").is_file()


@pytest.mark.integration
def test_the_evaluation_after_training_puts_thresholds_on_the_card(few_videos, tmp_path):
    config = config_for(several_labels(few_videos, tmp_path), "evaluation.after_training=true", "train.epochs=1")
    found = api.train(config, tmp_path / "run", device="cpu", say=silent)
    scores, card = found.evaluation.scores, read_weights(str(found.weights)).card
    best = best_thresholds(scores.scores, scores.labels, scores.decoded)
    assert card.thresholds == dict(zip(card.classes, best.tolist(), strict=True))
    assert Predictor.from_checkpoint(found.weights, "cpu").thresholds.tolist() == best.tolist()
    for form, seen in (("csv", "reached"), ("jsonl", '"labels"'), ("table", "reached")):
        words = ["predict", str(few_videos / "val/00000.mp4"), "--checkpoint", str(found.weights), "--format", form]
        done = subprocess.run([sys.executable, "-m", "mvit_video", *words], capture_output=True, text=True, check=True)
        assert seen in done.stdout


def test_the_largest_score_of_the_views_is_the_videos_in_evaluations_and_predictions(few_videos, tmp_path):
    words = [
        "evaluation.fusion=max",
        "evaluation.protocol=2x3",
        "data.crop_size=48",
        "data.short_side=48",
        "model.arguments={}",
    ]
    config = config_for(several_labels(few_videos, tmp_path), *words, "evaluation.views_per_batch=5")
    card = model_card(config, CLASSES)
    assert card.fusion == "max" and ModelCard.model_validate_json(card.model_dump_json()) == card
    save_checkpoint(tmp_path / "m.safetensors", nano_model(), card)
    found = evaluation_task(config, str(tmp_path / "m.safetensors"), CPU).run()
    assert "the largest sigmoid of its 6 views" in found.content["protocol_in_words"]
    predictor = Predictor.from_checkpoint(tmp_path / "m.safetensors", "cpu")
    reader = VideoReader("val/00000.mp4", few_videos)
    each = 1 / (1 + np.exp(-predictor.model(read_views(reader, card.preprocessing, 2, 3)).detach().double().numpy()))
    np.testing.assert_allclose(found.scores.scores[0], each.max(0), atol=1e-5)
    [prediction] = predictor(few_videos / "val/00000.mp4", top=8)
    predicted = dict(prediction.predictions)
    np.testing.assert_allclose([predicted[name] for name in CLASSES], each.max(0), atol=1e-5)
