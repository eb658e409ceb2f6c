"""Several labels per video: the loss, mixed label sets, a whole run, and scores that are sigmoids."""

import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CPU, REPOSITORY, silent
from run_records import numbers_of_steps
from tiny_predictor import nano_card, nano_model, nano_predictor

from mvit_video.config.load import load_config
from mvit_video.config.schema import TrainSettings
from mvit_video.data.lists.records import VideoList, VideoRecord
from mvit_video.data.mixing import Mixer, MixParameters, apply_mix, mix_generator, smooth_targets
from mvit_video.engine.checkpoint import read_best
from mvit_video.engine.data_warnings import class_counts
from mvit_video.engine.dry_run import dry_run
from mvit_video.engine.hooks.first_batch import label_text
from mvit_video.engine.losses import objective_from
from mvit_video.engine.metrics_log import read_metrics
from mvit_video.engine.resolve import resolve
from mvit_video.engine.run import train_run
from mvit_video.engine.teacher import Teacher
from mvit_video.errors import AnnotationError, ConfigError
from mvit_video.evaluation.evaluate import evaluation_task, validator
from mvit_video.figures import curves
from mvit_video.inference.predictor import Predictor
from mvit_video.model.weights.card import ModelCard
from mvit_video.model.weights.load import read_weights

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
