"""What is known before a run about whether it can work: how many videos each class has, and where that is too few."""

from collections import Counter
from collections.abc import Iterator

from mvit_video.config.schema import Config
from mvit_video.data.lists.records import VideoList

NAMED_CLASSES = 12  # as many are counted one by one
FEW_VIDEOS = 5  # of a class to learn from
FEW_STEPS = 200
FEW_FROM_SCRATCH = 200  # training videos
UNEVEN = 20
COARSE_VALIDATION = 20  # videos


def about_lists(config: Config, train: VideoList, val: VideoList | None, last_step: int) -> list[str]:
    """How many videos each class has, and what is likely to fail."""
    warnings = (f"warning: {sentence}" for sentence in cautions(config, train, val, last_step))
    return [f"training videos: {class_counts(train)}", *warnings]


def class_counts(videos: VideoList) -> str:
    """How many videos each class has, in words: `walk 8, run 7`; of many classes the fewest, the most and the median."""
    counts = _counts(videos)
    if len({*counts.values()}) == 1:
        return f"{counts[0]} of each of the {len(counts)} classes"
    ranked = sorted(counts, key=lambda label: counts[label])
    if len(ranked) <= NAMED_CLASSES:
        return ", ".join(f"{videos.classes[label]} {counts[label]}" for label in sorted(counts))
    fewest, middle, most = (ranked[place] for place in (0, (len(ranked) - 1) // 2, -1))
    return (
        f"{counts[fewest]} ({videos.classes[fewest]}) to {counts[most]} ({videos.classes[most]}) in each of {len(ranked)} "
        f"classes, the median is {counts[middle]}"
    )


def cautions(config: Config, train: VideoList, val: VideoList | None, last_step: int) -> Iterator[str]:
    """Sentences on what is likely to fail, and what to do about it."""
    counts = _counts(train)
    few = [label for label in sorted(counts, key=lambda label: counts[label]) if counts[label] < FEW_VIDEOS]
    if few:
        yield (
            f"{_number(len(few), 'class', 'classes')} with fewer than {FEW_VIDEOS} training videos, such as "
            f"'{train.classes[few[0]]}' with {counts[few[0]]}: hardly learnt from so few, add videos or leave the class out"
        )
    most = max(counts, key=lambda label: counts[label])
    least = min((label for label in counts if counts[label]), key=lambda label: counts[label])
    if counts[most] >= UNEVEN * counts[least]:
        yield (
            f"'{train.classes[most]}' has {counts[most]} training videos and '{train.classes[least]}' {counts[least]}: the network "
            "will prefer the former; judge it by mean class accuracy, not by top-1"
        )
    if config.model.weights is None and len(train) < FEW_FROM_SCRATCH:
        yield (
            f"{len(train)} training videos are few to learn from random weights: start from a trained network, such as "
            "model.weights=mvitv2_s_16x4_k400"
        )
    if last_step < FEW_STEPS:
        yield f"only {_number(last_step, 'step')} in all, too few to learn new classes in: raise train.epochs"
    if val is not None and 0 < len(val) < COARSE_VALIDATION:
        yield (
            f"validation has {_number(len(val), 'video')}, each of them {100 / len(val):.3g} points of its accuracy: differences of a few "
            "points say nothing"
        )


def _counts(videos: VideoList) -> dict[int, int]:
    """Videos of every class, of those without any too."""
    counts = Counter(record.label for record in videos.records)
    return {label: counts[label] for label in range(len(videos.classes))}


def _number(count: int, one: str, more: str = "") -> str:
    return f"{count} {one if count == 1 else more or one + 's'}"
