"""What is said before a run about its classes, and at its end about its accuracy."""

import pytest
import torch
from conftest import REPOSITORY

from mvit_video.config.load import config_from_dict, load_config
from mvit_video.data.lists.records import VideoList, VideoRecord
from mvit_video.engine.data_warnings import class_counts, data_warnings
from mvit_video.engine.final_accuracy import describe_final_accuracy, evenly_spaced
from mvit_video.engine.resolve import resolve
from mvit_video.engine.run import train_run


def videos(**counts):
    """So many videos of each class."""
    names = tuple(counts)
    records = [VideoRecord(f"{name}/{n}.mp4", label) for label, name in enumerate(names) for n in range(counts[name])]
    return VideoList(tuple(records), names, "list")


def said(train, val=None, weights="some.safetensors", steps=1000):
    config = config_from_dict({"model": {"weights": weights}}, "here")
    return list(data_warnings(config, train, val, steps))


def test_the_videos_of_each_class_are_counted_one_by_one_or_in_sum():
    assert class_counts(videos(walk=8, run=8)) == "8 in each of 2 classes"
    assert class_counts(videos(walk=8, run=7, sit=1, none=0)) == "walk 8, run 7, sit 1, none 0"
    many = videos(**{f"class{place}": place + 1 for place in range(31)})
    assert class_counts(many) == "1 (class0) to 31 (class30) in each of 31 classes, median 16"


def test_a_list_of_a_single_class_has_nothing_to_learn():
    (sentence,) = said(videos(walk=8))
    assert "all training videos are of the class 'walk', so there is nothing to learn: add another class" in sentence


@pytest.mark.parametrize("single", [0, 1, 4])
def test_a_class_with_too_few_videos_to_learn_from_is_named(single):
    (sentence,) = said(videos(walk=8, rare=single, run=9))
    assert f"1 class with fewer than 5 training videos, such as 'rare' with {single}: too few to learn from" in sentence
    assert said(videos(walk=8, run=5)) == []


def test_uneven_classes_point_to_the_mean_over_classes():
    (sentence,) = said(videos(walk=100, run=5))
    assert sentence.startswith("'walk' has 100 training videos, 'run' only 5:") and "mean class accuracy" in sentence
    assert said(videos(walk=99, run=5)) == []


def test_few_steps_few_videos_from_nothing_and_a_coarse_validation_are_told():
    (sentence,) = said(videos(walk=8, run=8), steps=30)
    assert sentence.startswith("only 30 steps in all") and "raise train.epochs" in sentence
    (sentence,) = said(videos(walk=8, run=8), weights=None)
    assert "16 training videos are too few to train from random weights" in sentence and "model.weights=" in sentence
    assert said(videos(walk=100, run=100), weights=None) == []
    (sentence,) = said(videos(walk=8, run=8), val=videos(walk=4, run=4))
    assert sentence.startswith("validation has 8 videos, 12.5 percentage points")


UNDERFITTED = ": the network is underfitted, train for more than train.epochs=40"
NOT_ALL = ": it has not learnt all of them, try more than train.epochs=40"


@pytest.mark.parametrize(
    ("own", "cure"),
    [(30.0, UNDERFITTED), (59.0, UNDERFITTED), (61.0, NOT_ALL), (83.0, NOT_ALL), (85.0, ""), (100.0, "")],
)
def test_a_run_that_has_not_learnt_its_own_videos_is_told_to_train_longer(own, cure):
    train = videos(a=2, b=2, c=2, d=2, e=2)  # chance is 20 %, so 60 % is halfway
    text = describe_final_accuracy(
        torch.nn.Identity(), train, lambda videos: lambda network: {"top1": own}, [{"top1": 25.0}], 40
    )
    assert text == f"final top-1: {own:.1f} % on its own training videos, 25.0 % on validation{cure}"


def test_of_a_long_list_videos_all_over_it_are_measured():
    asked = []

    def validator(some):
        asked.append(some)
        return lambda network: {"top1": 100.0}

    train = videos(a=700, b=700)
    assert "on 500 of its own training videos" in describe_final_accuracy(torch.nn.Identity(), train, validator, [], 40)
    assert [record.label for record in asked[0].records] == [0] * 250 + [1] * 250
    assert len({record.path for record in asked[0].records}) == 500
    assert evenly_spaced(train, 2000).records == train.records


def test_a_run_says_its_counts_first_and_its_accuracies_last(few_videos, tmp_path):
    lines = []
    words = [
        f"data.root={few_videos}",
        "train.epochs=1",
        "train.clips_per_step=4",
        "data.workers=0",
        "data.crop_size=32",
    ]
    config = load_config(REPOSITORY / "configs/demo/motion.yaml", words)
    run = resolve(config, tmp_path / "run", torch.device("cpu"), lines.append)
    train_run(run, lambda videos: lambda model: {"top1": 50.0}, lines.append)
    assert any(line.startswith("training videos: ") and "classes" in line for line in lines[:3])
    assert any(line.startswith("warning: only 4 steps in all") for line in lines)
    assert lines[-1].startswith("final top-1: 50.0 % on its own training videos, 50.0 % on validation")
