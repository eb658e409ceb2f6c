"""The end of a run in a sentence: what the network makes of its own training videos, beside those for validation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from mvit_video.data.lists.records import VideoList
from mvit_video.engine.hooks.validation import Measure

MOST_VIDEOS = 500  # of the training list that are measured


def ended_at(
    network: nn.Module,
    train: VideoList,
    make_measure: Callable[[VideoList], Measure],
    validations: Sequence[Mapping[str, float]],
    epochs: int,
) -> str:
    """Top-1 of the training videos, as validation measures it, beside the last one of `validations`; every process must ask.

    Of a long list videos all over it are measured. Less than halfway from chance to all right is called underfitted.
    """
    some = spread(train, MOST_VIDEOS)
    own = make_measure(some)(network)["top1"]
    whose = "its own training videos" if len(some) == len(train) else f"{len(some)} of its own training videos"
    other = f", and at {validations[-1]['top1']:.1f} % of those for validation" if validations else ""
    chance = 100 / len(train.classes)
    cure = f": it has underfitted, train longer than train.epochs={epochs}" if own < (100 + chance) / 2 else ""
    return f"ended at top-1 {own:.1f} % of {whose}{other}{cure}"


def spread(videos: VideoList, most: int) -> VideoList:
    """At most so many videos, evenly spread over the list, which is often in the order of its classes."""
    count = min(len(videos), most)
    places = (place * len(videos) // count for place in range(count))
    return replace(videos, records=videos.records.take(places), notes=())
