"""Moving average of the weights."""

from torch import nn

from mvit_video.engine.ema import WeightAverage
from mvit_video.engine.loop import Hook, Loop


class AverageWeights(Hook):
    """Updates the average after each step that was not skipped."""

    def __init__(self, average: WeightAverage, model: nn.Module) -> None:
        self.average, self.model = average, model

    def after_step(self, loop: Loop) -> None:
        if "skipped" not in loop.record:
            self.average.update(self.model, loop.done - 1)
