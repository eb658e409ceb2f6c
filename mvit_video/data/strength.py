"""How strong augmentation is where its settings are `auto`: in proportion to the number of training videos.

Few videos are learnt in few steps, within which a network does not learn through all that the published recipes do to
a clip (docs/results.md); many videos bear it.
"""

from math import log
from typing import Any

from mvit_video.config.schema import AUTO, DataSettings

MILD, FULL = 500, 10_000  # training videos up to which it is mildest, and from which on as published
AREA, MAGNITUDE, OPERATIONS, ERASING = (0.25, 0.08), (3, 7), (2, 4), (0.0, 0.25)  # the mildest, and as published


def strength(num_videos: int) -> float:
    """From 0 for up to 500 videos to 1 for 10,000, by the logarithm."""
    return min(max(log(max(num_videos, 1) / MILD) / log(FULL / MILD), 0.0), 1.0)


def fitting_augmentation(num_videos: int) -> dict[str, Any]:
    """Setting of `data` -> value, of all that may be auto."""
    share = strength(num_videos)
    area, magnitude, operations, erasing = (
        mildest + (published - mildest) * share for mildest, published in (AREA, MAGNITUDE, OPERATIONS, ERASING)
    )
    return {
        "crop_area": (round(area, 2), 1.0),
        "randaugment": f"rand-m{round(magnitude)}-n{round(operations)}-mstd0.5-inc1",
        "erasing": round(erasing, 2),
    }


def with_augmentation(data: DataSettings, num_videos: int) -> DataSettings:
    """The settings without `auto` in what is done to a clip."""
    fitting = fitting_augmentation(num_videos)
    auto = {name: value for name, value in fitting.items() if getattr(data, name) == AUTO}
    return data.model_copy(update=auto) if auto else data
