"""Final accuracy of a run in a sentence: on its own training videos, next to the validation videos."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from mvit_video.data.lists.records import VideoList
from mvit_video.engine.hooks.progress import MEASURES
from mvit_video.engine.hooks.validation import Measure

MAX_VIDEOS = 500  # measured of the training list


def describe_final_accuracy(
    network: nn.Module,
    train: VideoList,
    make_measure: Callable[[VideoList], Measure],
    validations: Sequence[Mapping[str, float]],
    epochs: int,
) -> str:
    """Measure the accuracy on training videos, as validation does, and compare it with the last validation; every process must call this.

    It is top-1, with several labels mean average precision. A long list is sampled evenly. Below halfway from chance to 100 %
    the network is called underfitted; below four fifths of it, longer training is said to help (docs/results.md).
    """
    some = evenly_spaced(train, MAX_VIDEOS)
    numbers = make_measure(some)(network)
    measure = next(name for name in MEASURES if name in numbers)
    own = numbers[measure]
    whose = "its own training videos" if len(some) == len(train) else f"{len(some)} of its own training videos"
    other = f", {validations[-1][measure]:.1f} % on validation" if validations and measure in validations[-1] else ""
    chance = 100 * sum(len(record.labels) for record in train.records) / len(train) / len(train.classes)
    cure = ""
    if own < chance + 0.5 * (100 - chance):
        cure = f": the network is underfitted, train for more than train.epochs={epochs}"
    elif own < chance + 0.8 * (100 - chance):
        cure = f": it has not learnt all of them, try more than train.epochs={epochs}"
    return f"final {MEASURES[measure]}: {own:.1f} % on {whose}{other}{cure}"


def evenly_spaced(videos: VideoList, most: int) -> VideoList:
    """At most `most` videos, evenly spaced over the list, which is often sorted by class."""
    count = min(len(videos), most)
    places = (place * len(videos) // count for place in range(count))
    return replace(videos, records=videos.records.take(places), notes=())
