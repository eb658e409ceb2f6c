"""How strong augmentation is where its settings are `auto`: in proportion to the number of training videos.

Few videos are seen hundreds of times, by a network that has few steps to learn them in: what the published recipes do
to a clip keeps it from that (docs/results.md). Many videos bear all of it.
"""

from math import log
from typing import Any

from mvit_video.config.schema import AUTO, DataSettings

MILD, FULL = 500, 10_000  # training videos up to which it is mildest, and from which on as published
MILDEST_AREA, PUBLISHED_AREA = 0.4, 0.08  # smallest share of the picture in a crop
MAGNITUDE, OPERATIONS, ERASING = 7, 4, 0.25  # as published


def strength(num_videos: int) -> float:
    """From 0 for up to 500 videos to 1 for 10,000, by the logarithm."""
    return min(max(log(max(num_videos, 1) / MILD) / log(FULL / MILD), 0.0), 1.0)


def fitting_augmentation(num_videos: int) -> dict[str, Any]:
    """Setting of `data` -> value, of all that may be auto."""
    share = strength(num_videos)
    magnitude, operations = round(MAGNITUDE * share), round(OPERATIONS * share)
    return {
        "crop_area": (round(MILDEST_AREA + (PUBLISHED_AREA - MILDEST_AREA) * share, 2), 1.0),
        "randaugment": f"rand-m{magnitude}-n{operations}-mstd0.5-inc1" if magnitude and operations else None,
        "erasing": round(ERASING * share, 2),
    }


def with_augmentation(data: DataSettings, num_videos: int) -> DataSettings:
    """The settings without `auto` in what is done to a clip."""
    fitting = fitting_augmentation(num_videos)
    auto = {name: value for name, value in fitting.items() if getattr(data, name) == AUTO}
    return data.model_copy(update=auto) if auto else data
