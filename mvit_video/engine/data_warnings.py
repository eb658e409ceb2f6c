"""Warnings about the training data before a run: how many videos each class has, and where that is too few."""

from collections import Counter
from collections.abc import Iterator

from mvit_video.config.schema import Config
from mvit_video.data.lists.records import VideoList

NAMED_CLASSES = 12  # with up to this many classes, each is listed
FEW_VIDEOS = 5  # per class
FEW_STEPS = 200
FEW_FROM_SCRATCH = 200  # training videos
UNEVEN = 20
COARSE_VALIDATION = 20  # videos


def describe_lists(config: Config, train: VideoList, val: VideoList | None, last_step: int) -> list[str]:
    """Describe the lists: videos per class, and warnings; without labels only how many there are."""
    if config.train.objective == "masked":
        return [f"training videos: {len(train)}, without labels"]
    warnings = (f"warning: {sentence}" for sentence in data_warnings(config, train, val, last_step))
    return [f"training videos: {class_counts(train)}", *warnings]


def class_counts(videos: VideoList) -> str:
    """Videos per class as text: `walk 8, run 7`; for many classes the fewest, the most and the median."""
    counts = _counts(videos)
    if len({*counts.values()}) == 1:
        return f"{counts[0]} in each of {len(counts)} classes"
    ranked = sorted(counts, key=lambda label: counts[label])
    if len(ranked) <= NAMED_CLASSES:
        return ", ".join(f"{videos.classes[label]} {counts[label]}" for label in sorted(counts))
    fewest, middle, most = (ranked[place] for place in (0, (len(ranked) - 1) // 2, -1))
    return (
        f"{counts[fewest]} ({videos.classes[fewest]}) to {counts[most]} ({videos.classes[most]}) in each of {len(ranked)} "
        f"classes, median {counts[middle]}"
    )


def data_warnings(config: Config, train: VideoList, val: VideoList | None, last_step: int) -> Iterator[str]:
    """Yield sentences about likely failures, and what to do about them."""
    counts = _counts(train)
    few = [label for label in sorted(counts, key=lambda label: counts[label]) if counts[label] < FEW_VIDEOS]
    if few:
        yield (
            f"{_number(len(few), 'class', 'classes')} with fewer than {FEW_VIDEOS} training videos, such as "
            f"'{train.classes[few[0]]}' with {counts[few[0]]}: too few to learn from, add videos or remove the class"
        )
    most = max(counts, key=lambda label: counts[label])
    least = min((label for label in counts if counts[label]), key=lambda label: counts[label])
    if counts[most] >= UNEVEN * counts[least]:
        yield (
            f"'{train.classes[most]}' has {counts[most]} training videos, '{train.classes[least]}' only {counts[least]}: the network "
            "will favour the larger class; judge it by mean class accuracy, not by top-1"
        )
    if config.model.weights is None and len(train) < FEW_FROM_SCRATCH:
        yield (
            f"{len(train)} training videos are too few to train from random weights: start from a trained network, such as "
            "model.weights=mvitv2_s_16x4_k400"
        )
    if last_step < FEW_STEPS:
        yield f"only {_number(last_step, 'step')} in all, too few to learn new classes: raise train.epochs"
    if val is not None and 0 < len(val) < COARSE_VALIDATION:
        yield (
            f"validation has {_number(len(val), 'video')}, {100 / len(val):.3g} percentage points of accuracy each: small differences "
            "mean nothing"
        )


def _counts(videos: VideoList) -> dict[int, int]:
    """Videos per class, including classes without any."""
    counts = Counter(record.label for record in videos.records)
    return {label: counts[label] for label in range(len(videos.classes))}


def _number(count: int, one: str, more: str = "") -> str:
    return f"{count} {one if count == 1 else more or one + 's'}"
