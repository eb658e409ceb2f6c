"""Warnings about the training data before a run: how many videos each class has, and where that is too few."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from mvit_video.config.schema import Config
from mvit_video.data.balance import shown_counts
from mvit_video.data.lists.records import VideoList
from mvit_video.engine.losses import MULTI_LABEL, ShownClasses, class_weights, is_multi_label
from mvit_video.printable import counted

NAMED_CLASSES = 12  # with up to this many classes, each is listed
FEW_VIDEOS = 5  # per class
FEW_STEPS = 200
FEW_FROM_SCRATCH = 200  # training videos
UNEVEN = 20
OFTEN = 10  # times that an epoch shows a video
FOR_UNEVEN = ("focal", "logit_adjusted")
COARSE_VALIDATION = 20  # videos


def describe_lists(config: Config, train: VideoList, val: VideoList | None, last_step: int) -> list[str]:
    """Describe the lists: videos per class, and warnings; without labels only how many there are."""
    if config.train.objective == "masked":
        return [f"training videos: {len(train)}, without labels"]
    warnings = (f"warning: {sentence}" for sentence in data_warnings(config, train, val, last_step))
    return [f"training videos: {class_counts(train)}", *_describe_balance(config, train, last_step), *warnings]


def class_counts(videos: VideoList) -> str:
    """Videos per class as text: `walk 8, run 7`; for many classes the fewest, the most and the median."""
    return _by_class(_counts(videos), videos.classes)


def shown_in_an_epoch(config: Config, train: VideoList, steps: int) -> np.ndarray:
    """How many videos of each class an epoch of so many steps shows (K,)."""
    counts, shown = (
        np.array([*_counts(train).values()]),
        steps * config.train.clips_per_step // config.data.repeated_aug,
    )
    return (
        counts if config.data.sampling_balance == "none" else shown_counts(counts, shown, config.data.sampling_balance)
    )


def _describe_balance(config: Config, train: VideoList, last_step: int) -> Iterator[str]:
    """Describe the balancing of uneven classes."""
    balance, given = config.data.sampling_balance, config.train.class_weights
    shown = shown_in_an_epoch(config, train, last_step // config.train.epochs)
    if balance != "none":
        yield f"shown in an epoch (data.sampling_balance {balance}): {_by_class(dict(enumerate(shown.tolist())), train.classes)}"
    if given is not None:
        weights = class_weights(given, ShownClasses(train.classes, torch.from_numpy(shown).float())).tolist()
        yield f"weights in the loss: {_by_class({label: round(one, 3) for label, one in enumerate(weights)}, train.classes)}"


def _by_class(numbers: Mapping[int, float], classes: Sequence[str]) -> str:
    if len({*numbers.values()}) == 1:
        return f"{numbers[0]:g} in each of {len(numbers)} classes"
    ranked = sorted(numbers, key=lambda label: numbers[label])
    if len(ranked) <= NAMED_CLASSES:
        return ", ".join(f"{classes[label]} {numbers[label]:g}" for label in sorted(numbers))
    fewest, middle, most = (ranked[place] for place in (0, (len(ranked) - 1) // 2, -1))
    return (
        f"{numbers[fewest]:g} ({classes[fewest]}) to {numbers[most]:g} ({classes[most]}) in each of {len(ranked)} "
        f"classes, median {numbers[middle]:g}"
    )


def data_warnings(config: Config, train: VideoList, val: VideoList | None, last_step: int) -> Iterator[str]:
    """Yield sentences about likely failures, and what to do about them."""
    counts = _counts(train)
    few = [label for label in sorted(counts, key=lambda label: counts[label]) if counts[label] < FEW_VIDEOS]
    if few:
        yield (
            f"{counted(len(few), 'class', 'classes')} with fewer than {FEW_VIDEOS} training videos, such as "
            f"'{train.classes[few[0]]}' with {counts[few[0]]}: too few to learn from, add videos or remove the class"
        )
    most = max(counts, key=lambda label: counts[label])
    if counts[most] == len(train) and not is_multi_label(config.train):
        yield f"all training videos are of the class '{train.classes[most]}', so there is nothing to learn: add another class"
    least = min((label for label in counts if counts[label]), key=lambda label: counts[label])
    if counts[most] >= UNEVEN * counts[least]:
        handled = (
            config.data.sampling_balance != "none"
            or config.train.class_weights
            or config.train.loss in (*FOR_UNEVEN, MULTI_LABEL)
        )
        advice = "" if handled else "the network will favour the larger class: try data.sampling_balance=sqrt; "
        several = is_multi_label(config.train)
        judge = "each class's average precision" if several else "mean class accuracy, not by top-1"
        yield (
            f"'{train.classes[most]}' has {counts[most]} training videos, '{train.classes[least]}' only {counts[least]}: {advice}"
            f"judge it by {judge}"
        )
    shown = shown_in_an_epoch(config, train, last_step // config.train.epochs)
    often = max((label for label in counts if counts[label]), key=lambda label: shown[label] / counts[label])
    if shown[often] >= OFTEN * counts[often]:
        yield (
            f"each of the {counts[often]} videos of '{train.classes[often]}' is shown about {shown[often] / counts[often]:.0f} times in an "
            "epoch, and may be learned by heart: lower train.epochs, or set data.sampling_balance=sqrt"
        )
    if config.model.weights is None and len(train) < FEW_FROM_SCRATCH:
        yield (
            f"{len(train)} training videos are too few to train from random weights: start from a trained network, such as "
            "model.weights=mvitv2_s_16x4_k400"
        )
    if last_step < FEW_STEPS:
        yield f"only {counted(last_step, 'step')} in all, too few to learn new classes: raise train.epochs"
    if val is not None and 0 < len(val) < COARSE_VALIDATION:
        yield (
            f"validation has {counted(len(val), 'video')}, {100 / len(val):.3g} percentage points of accuracy each: small differences "
            "mean nothing"
        )


def _counts(videos: VideoList) -> dict[int, int]:
    """Videos per class, including classes without any; one with several labels counts in each."""
    counts = Counter(label for record in videos.records for label in record.labels)
    return {label: counts[label] for label in range(len(videos.classes))}
