"""The moving average of the weights."""

from torch import nn

from mvit_video.engine.ema import WeightAverage
from mvit_video.engine.loop import Hook, Loop


class AverageWeights(Hook):
    """Takes the weights after each step into their average; a skipped step has changed none."""

    def __init__(self, average: WeightAverage, model: nn.Module) -> None:
        self.average, self.model = average, model

    def after_step(self, loop: Loop) -> None:
        if "skipped" not in loop.record:
            self.average.update(self.model, loop.done - 1)
