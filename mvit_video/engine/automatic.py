"""Resolve settings that are `auto` from the number of training videos. After this there is no `auto` left in `train`.

The numbers are ours: docs/results.md names the datasets they were tried on.
"""

from collections.abc import Iterable
from math import ceil, sqrt
from typing import Any

from torch import nn

from mvit_video.config.schema import AUTO, Config
from mvit_video.data.strength import fitting_augmentation, strength
from mvit_video.engine.distributed import world_size
from mvit_video.engine.plan import meta_model
from mvit_video.engine.schedule import CLIPS_OF_BASE_LR
from mvit_video.errors import ConfigError
from mvit_video.model.registry import head_of

MAX_CLIPS, MIN_CLIPS, MIN_STEPS_PER_EPOCH = 32, 8, 20
MIN_STEPS, MIN_EPOCHS = 2000, 30
WARMUP_SHARE, VALIDATIONS = 0.2, 15
RATE, RATE_CLIPS, RATE_WIDTH, MIN_WIDTH = 2.0e-4, 32, 768, 128  # of S; see `peak_rate`
LAST_SHARE = 0.01  # of the peak: learning rate at the start and at the end


AUTO_SETTINGS = (
    *(f"data.{name}" for name in fitting_augmentation(MAX_CLIPS)),
    *(
        "train.epochs",
        "train.clips_per_step",
        "train.base_lr",
        "train.warmup_epochs",
        "train.warmup_lr",
        "train.end_lr",
    ),
    *("train.mix_probability", "train.validate_every_epochs"),
)


def auto_settings(config: Config) -> list[str]:
    """Names of the settings that are `auto`."""
    return [name for name, value in _of(config, AUTO_SETTINGS).items() if value == AUTO]


def labelled_auto(config: Config) -> list[str]:
    """Those whose values were tried with labels only; the others follow from numbers of videos and steps."""
    counts = ("train.clips_per_step", "train.epochs", "train.warmup_epochs", "train.validate_every_epochs")
    return [name for name in auto_settings(config) if name not in counts]


def resolve_auto(config: Config, num_videos: int, num_classes: int | None, before: Config | None = None) -> Config:
    """Replace `auto` by values that fit the number of videos, or by those of `before`, the run that is resumed."""
    names = auto_settings(config)
    if not names:
        return config
    numbers = _of(before, names) if before is not None else _auto_values(config, num_videos, num_classes, names)
    changed = {
        section: getattr(config, section).model_copy(
            update={name.partition(".")[2]: value for name, value in numbers.items() if name.startswith(section)}
        )
        for section in ("data", "train")
    }
    return config.model_copy(update=changed)


def describe_auto(config: Config, names: list[str], num_videos: int) -> str:
    """Describe the values of settings that were `auto`."""
    values = [f"{name}={_short(value)}" for name, value in _of(config, names).items()]
    clips = config.train.clips_per_step
    lowered = f"; steps have {clips} clips instead of {MAX_CLIPS}, to get more steps per epoch"
    return (
        f"auto for {num_videos} training videos: {' '.join(values)}"
        f"{lowered if 'train.clips_per_step' in names and clips < MAX_CLIPS else ''}"
    )


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "null" if value is None else str(value).replace(" ", "").replace("(", "[").replace(")", "]")


def _of(config: Config, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(getattr(config, name.partition(".")[0]), name.partition(".")[2]) for name in names}


def _auto_values(config: Config, num_videos: int, num_classes: int | None, names: list[str]) -> dict[str, Any]:
    """Values of the settings `names`."""
    train, repeats = config.train, config.data.repeated_aug

    def value(name: str, fitting: Any) -> Any:
        given = getattr(train, name)
        return fitting if given == AUTO else given

    clips = value("clips_per_step", clips_per_step(num_videos, repeats))
    steps = max(num_videos * repeats // clips, 1)
    epochs = value("epochs", max(MIN_EPOCHS, ceil(MIN_STEPS / steps)))
    numbers = {"train.clips_per_step": clips, "train.epochs": epochs}
    numbers["train.warmup_epochs"] = round(WARMUP_SHARE * epochs, 2)
    numbers["train.validate_every_epochs"] = max(epochs // VALIDATIONS, 1)
    if {"train.base_lr", "train.warmup_lr", "train.end_lr"} & {*names}:
        width = head_width(meta_model(config, num_classes))
        peak = peak_rate(clips, width, config.model.weights is not None)
        base = value("base_lr", _rounded(peak * CLIPS_OF_BASE_LR / clips))
        numbers |= {"train.base_lr": base, "train.warmup_lr": LAST_SHARE * base, "train.end_lr": LAST_SHARE * base}
    numbers["train.mix_probability"] = round(strength(num_videos), 2)
    numbers |= {f"data.{name}": number for name, number in fitting_augmentation(num_videos).items()}
    return {name: numbers[name] for name in names}


def clips_per_step(num_videos: int, repeats: int) -> int:
    """Clips per step: at most 32, fewer for 20 steps per epoch, at least 8; a multiple of what the processes can share."""
    unit = 2 * world_size() * repeats  # mixing pairs the videos of a process
    videos = num_videos * repeats
    wanted = min(max(videos // MIN_STEPS_PER_EPOCH, MIN_CLIPS), MAX_CLIPS, videos)
    clips = max(wanted // unit * unit, unit)
    if clips > videos and world_size() > 1:
        raise ConfigError(
            f"train.clips_per_step = auto: {num_videos} training videos are too few for {world_size()} processes, each of "
            f"which needs two videos per step: start at most {max(num_videos // 2, 1)}"
        )
    return min(clips, videos)


def head_width(network: nn.Module) -> int:
    """Input width of the layer that classifies."""
    weight = next(head_of(network).parameters())
    return weight.shape[1] if weight.ndim > 1 else RATE_WIDTH


def peak_rate(clips: int, width: int, trained: bool) -> float:
    """Peak learning rate: 2.0e-4 for 32 clips and 768 features (S, B), scaled by √clips and by 1 / width, or 1 / √width.

    Both scalings are derived for Adam: Malladi et al., arXiv 2205.10287, and Yang et al., arXiv 2203.03466. The second holds for
    weights that are `trained`. From random ones it was too much for `mvitv2_nano_8x3`: seeds that began late learnt slowly to
    the end, and do not at the lower rate of 1 / √width (docs/results.md).
    """
    narrower = RATE_WIDTH / min(max(width, MIN_WIDTH), RATE_WIDTH)
    return RATE * sqrt(clips / RATE_CLIPS) * (narrower if trained else sqrt(narrower))


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")
