"""Uneven classes: losses against torch and plain float64, weights, and what is said before a run."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY

from mvit_video.config.load import config_from_dict, load_config
from mvit_video.config.schema import TrainSettings
from mvit_video.data.lists.read import read_videos
from mvit_video.data.lists.records import VideoList, VideoRecord
from mvit_video.engine import build
from mvit_video.engine.data_warnings import describe_lists
from mvit_video.engine.losses import ShownClasses, class_weights, objective_from
from mvit_video.errors import ConfigError

COUNTS = [100, 2, 0, 30]
SHOWN = ShownClasses(("walk", "fall", "fly", "run"), torch.tensor([float(count) for count in COUNTS]))
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 3 * torch.randn(6, 4, generator=GENERATOR)
LABELS = torch.tensor([0, 1, 3, 1, 0, 3])
HARD = F.one_hot(LABELS, 4).float()
MIXED = 0.7 * HARD + 0.3 * HARD.flip(0)


def losses(targets, **settings):
    return objective_from(TrainSettings(**settings), None, SHOWN).loss(LOGITS, targets)


def by_hand(targets, term):
    """The sum of term(class, log p) · target in float64, without torch's softmax."""
    rows = []
    for logits, target in zip(LOGITS.tolist(), targets.tolist(), strict=True):
        total = math.log(sum(math.exp(value) for value in logits))
        rows.append(sum(share * term(k, logits[k] - total) for k, share in enumerate(target)))
    return torch.tensor(rows)


@pytest.mark.parametrize("targets", [HARD, MIXED], ids=["one label", "mixed"])
def test_the_focal_loss_is_the_papers_in_float64(targets):
    expected = by_hand(targets, lambda k, log: -((1 - math.exp(log)) ** 2) * log)
    torch.testing.assert_close(losses(targets, loss="focal"), expected)


@pytest.mark.parametrize("targets", [HARD, MIXED], ids=["one label", "mixed"])
def test_logit_adjustment_is_the_papers_in_float64(targets):
    """log [1 + Σ_{k≠y} π_k / π_y · exp(z_k − z_y)], arXiv 2007.07314, eq. 10; a class without videos has the smallest share."""
    shares = np.array([100, 2, 2, 30]) / 132
    expected = []
    for logits, target in zip(LOGITS.double().numpy(), targets.double().numpy(), strict=True):
        each = [np.log((shares / shares[y] * np.exp(logits - logits[y])).sum()) for y in range(4)]
        expected.append(float(target @ each))
    torch.testing.assert_close(losses(targets, loss="logit_adjusted"), torch.tensor(expected))


def test_class_weights_are_torchs_and_of_a_mixed_clip_the_mean_of_its_labels():
    settings = {"class_weights": {"fall": 5.0, "run": 0.5}}
    weight = torch.tensor([1.0, 5.0, 1.0, 0.5])
    torch.testing.assert_close(losses(HARD, **settings), F.cross_entropy(LOGITS, LABELS, weight, reduction="none"))
    mean = 0.7 * weight[LABELS] + 0.3 * weight[LABELS.flip(0)]
    torch.testing.assert_close(losses(MIXED, **settings), mean * by_hand(MIXED, lambda k, log: -log))
    focal = losses(HARD, loss="focal", **settings)
    torch.testing.assert_close(focal, weight[LABELS] * losses(HARD, loss="focal"))


def test_balanced_weights_are_inverse_to_the_counts_and_one_in_the_mean_over_videos():
    """As in scikit-learn: n / (K · n_k), of the classes that there are."""
    found = class_weights("balanced", SHOWN)
    assert found.tolist() == pytest.approx([132 / 300, 132 / 6, 0, 132 / 90])
    assert float(found @ SHOWN.shares) == pytest.approx(1)


def test_weights_of_a_class_that_there_is_not_are_refused():
    with pytest.raises(ConfigError, match=r"train.class_weights names 'fal', which is no class of data.train.*'fall'"):
        losses(HARD, class_weights={"fal": 2.0})
    with pytest.raises(ConfigError, match="class_weights"):
        config_from_dict({"train": {"class_weights": {"fall": 0}}}, "here")


def said(words, **counts):
    settings = {"model": {"weights": "some.safetensors"}, "train": {"clips_per_step": 8, "epochs": 100}}
    names = tuple(counts)
    records = [VideoRecord(f"{name}/{n}.mp4", label) for label, name in enumerate(names) for n in range(counts[name])]
    train = VideoList(tuple(records), names, "list")
    return describe_lists(config_from_dict(settings, "here", words), train, None, len(train) // 8 * 100)


def test_the_plan_prints_what_each_class_counts_and_warns():
    first, warning = said([], walk=100, fall=5)
    assert first == "training videos: walk 100, fall 5" and "try data.sampling_balance=sqrt" in warning
    _, shown, weights, _ = said(["data.sampling_balance=sqrt", "train.class_weights={fall: 3}"], walk=100, fall=5)
    assert shown == "shown in an epoch (data.sampling_balance sqrt): walk 85, fall 19"
    assert weights == "weights in the loss: walk 1, fall 3"
    _, shown, weights, uneven, often = said(
        ["data.sampling_balance=class", "train.class_weights=balanced"], walk=100, fall=5
    )
    assert shown == "shown in an epoch (data.sampling_balance class): 52 in each of 2 classes"
    assert weights == "weights in the loss: 1 in each of 2 classes", "what an epoch shows is even already"
    assert "try data.sampling_balance" not in uneven and "mean class accuracy" in uneven
    assert "each of the 5 videos of 'fall' is shown about 10 times in an epoch" in often
    assert said(["train.class_weights=balanced"], walk=100, fall=5)[1] == "weights in the loss: walk 0.525, fall 10.5"


def test_a_run_is_built_with_the_balance_of_its_settings(few_videos):
    config = load_config(
        REPOSITORY / "configs/demo/motion.yaml", ["data.sampling_balance=class", "train.clips_per_step=8"]
    )
    labels = read_videos("train.csv", str(few_videos)).records.labels
    sampler = build.step_sampler(config, 16, labels)
    assert sampler.balance == "class" and [len(step) for step in sampler][:2] == [8, 8]
    shown = [int(labels[key.video]) for step in list(sampler)[:2] for key in step]
    assert np.bincount(shown).tolist() == [2] * 8
