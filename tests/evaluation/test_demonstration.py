"""What the demonstration's network has learnt: the order of frames, and nothing that a single frame shows."""

import numpy as np
import pytest
import torch

from mvit_video.data.lists.read import VideoList, VideoRecord, read_videos
from mvit_video.data.video.reader import VideoReader
from mvit_video.evaluation.evaluate import evaluator_from
from mvit_video.evaluation.frame_only import frame_only_accuracy
from mvit_video.evaluation.protocols import Protocol
from mvit_video.evaluation.results import accuracies
from mvit_video.evaluation.views import reversed_frames, shuffled_frames
from mvit_video.model.precision import Precision
from mvit_video.model.weights.load import load_checkpoint

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def model(trained):
    return load_checkpoint(trained.weights)[0]


@pytest.fixture
def judge(trained, validation_list):
    precision = Precision("fp32", torch.device("cpu"))
    return evaluator_from(trained.config, validation_list, trained.config.data.input, Protocol(2, 3), precision)


def test_the_trained_model_knows_the_motions(model, judge):
    assert accuracies(judge.scores(model))["top1"] >= 80


def test_without_the_order_of_the_frames_accuracy_falls_far(model, judge):
    ordered = accuracies(judge.scores(model))["top1"]
    shuffled = [accuracies(judge.scores(model, shuffled_frames(seed)))["top1"] for seed in range(4)]
    assert len(set(shuffled)) > 1, "every order gave the same result"
    assert np.mean(shuffled) < 50 and np.mean(shuffled) < ordered - 35
    assert accuracies(judge.scores(model, reversed_frames))["top1"] < 12.5


def test_a_single_frame_is_useless_on_the_motion_dataset(trained, validation_list):
    train = read_videos("train.csv", trained.config.data.root)
    assert frame_only_accuracy(train, validation_list, trained.config.data, seed=0) <= 25


def test_the_single_frame_network_does_learn_where_frames_tell_the_class(trained, motion_data):
    """The same network and budget, on the same videos labelled by the brightness of their images."""
    lists = []
    for name in ("train.csv", "val.csv"):
        records = read_videos(name, str(motion_data)).records
        means = [VideoReader(record.path, motion_data).frames(range(0, 36, 5)).mean() for record in records]
        middle = np.median(means)
        labelled = tuple(VideoRecord(r.path, int(mean > middle)) for r, mean in zip(records, means, strict=True))
        lists.append(VideoList(labelled, ("dark", "bright"), name))
    assert frame_only_accuracy(*lists, trained.config.data, seed=0, epochs=4) > 70
