"""Predictions and evaluations through captured passes are those without; nobody else comes across a graph."""

import numpy as np
import torch
from tiny_predictor import nano_model, nano_predictor

from mvit_video.data.pixels import Normalise
from mvit_video.evaluation.views import ViewScorer
from mvit_video.inference.explain import explain_video
from mvit_video.model.graphs import GraphedNetwork
from mvit_video.model.precision import Precision

CPU = torch.device("cpu")


class Counting:
    """Calls the network again in place of a graph, and counts."""

    def __init__(self):
        self.captured = self.replayed = 0

    def capture(self, run):
        self.captured += 1
        output = run().clone()

        def replay():
            self.replayed += 1
            output.copy_(run())

        return output, replay


def graphed_predictor(**words):
    predictor, counting = nano_predictor(**words), Counting()
    predictor.forward = GraphedNetwork(predictor.model, predictor.precision, counting)
    return predictor, counting


def test_predictions_are_the_same(few_videos):
    videos = sorted((few_videos / "val").glob("*.mp4"))
    predictor, counting = graphed_predictor(protocol="2x3")
    expected = nano_predictor(protocol="2x3")(videos)
    for actual, same in zip(predictor(videos), expected, strict=True):
        assert [label for label, _ in actual.predictions] == [label for label, _ in same.predictions]
        assert np.allclose(
            [score for _, score in actual.predictions], [score for _, score in same.predictions], atol=1e-6
        )
    predictor(videos)
    assert counting.captured and counting.replayed


def test_explanations_see_the_network_itself(few_videos):
    video = few_videos / "val/00000.mp4"
    predictor, counting = graphed_predictor()
    for _ in range(3):
        predictor(video)
    before = counting.replayed
    assert before
    actual, expected = explain_video(predictor, video), explain_video(nano_predictor(), video)
    assert np.allclose(actual.clips[0].heat, expected.clips[0].heat, atol=1e-5)
    assert counting.replayed == before + 1  # of the prediction that is explained


def test_a_scorer_gives_the_same_sums_with_a_last_batch_that_is_smaller():
    model, counting = nano_model(), Counting()
    forward = GraphedNetwork(model.eval(), Precision("fp32", CPU), counting)
    views = torch.randn(1, 3, 8, 48, 48, generator=torch.Generator().manual_seed(0))
    scorers = [
        ViewScorer(model, 11, 8, 4, CPU, Normalise((0.5,) * 3, (0.2,) * 3), forward=each) for each in (None, forward)
    ]
    for scorer in scorers:
        for row in range(11):
            scorer.process(row, views * (1 - row / 20))
        scorer.finish()
    assert torch.allclose(*(scorer.sums for scorer in scorers), atol=1e-6)
    assert (counting.captured, counting.replayed) == (1, 3)  # one to compare, the second batch, and the last of 3
