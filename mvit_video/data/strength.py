"""Augmentation strength if its settings are `auto`: it grows with the number of training videos.

Few videos mean few steps, too few to learn from clips augmented as strongly as in the published recipes
(docs/results.md).
"""

from math import log
from typing import Any

from mvit_video.config.schema import AUTO, DataSettings

MILD, FULL = 500, 10_000  # training videos up to which it is mildest, and from which on as published
AREA, MAGNITUDE, OPERATIONS, ERASING = (0.25, 0.08), (3, 7), (2, 4), (0.0, 0.25)  # the mildest, and as published


def strength(num_videos: int) -> float:
    """Strength from 0 (up to 500 videos) to 1 (10,000), logarithmic in the number of videos."""
    return min(max(log(max(num_videos, 1) / MILD) / log(FULL / MILD), 0.0), 1.0)


def fitting_augmentation(num_videos: int) -> dict[str, Any]:
    """Values of all augmentation settings that may be `auto`."""
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
    """Replace `auto` in the augmentation settings."""
    fitting = fitting_augmentation(num_videos)
    auto = {name: value for name, value in fitting.items() if getattr(data, name) == AUTO}
    return data.model_copy(update=auto) if auto else data
