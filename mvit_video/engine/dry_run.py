"""`train --dry-run`: the plan of a run in words, for which nothing is written, trained or downloaded."""

import torch

from mvit_video.config.schema import Config
from mvit_video.data.lists.selection import training_lists
from mvit_video.engine.automatic import automatic_settings, in_words, with_numbers
from mvit_video.engine.cautions import about_lists
from mvit_video.engine.plan import Plan, dry_model, giga_multiply_adds
from mvit_video.errors import ConfigError, MvitVideoError
from mvit_video.model.registry import model_entry


def dry_run(config: Config, device: torch.device, num_videos: int | None = None, num_classes: int | None = None) -> str:
    """The plan of `train_run` in words; nothing is written, trained or downloaded.

    Videos and classes are counted in data.train, where it can be read, unless they are given. Where it cannot, they are
    those of data.planned_videos and data.planned_classes; without these the plan says so, and the network has its usual head.
    """
    notes: list[str] = []
    lists = None
    if num_videos is None or num_classes is None:
        try:
            lists = training_lists(config.data)
            num_videos, num_classes = num_videos or len(lists[0]), num_classes or len(lists[0].classes)
        except MvitVideoError as reason:
            num_videos, num_classes = (
                num_videos or config.data.planned_videos,
                num_classes or config.data.planned_classes,
            )
            notes.append(f"data.train is not read ({reason}): {_assumed(num_videos, num_classes)}")
    auto = automatic_settings(config)
    if auto and num_videos is None:
        raise ConfigError(f"{auto[0]} = auto follows from the number of training videos: {notes[0]}")
    if auto and num_videos is not None:
        config = with_numbers(config, num_videos, num_classes)
        notes.append(in_words(config, auto, num_videos))
    model = dry_model(config, num_classes)
    if num_classes is None:
        num_classes = model_entry(config.model.name).defaults["num_classes"]
    plan = Plan(config, device, model, num_classes, num_videos)
    if lists is not None:
        notes += about_lists(config, *lists, (plan.per_epoch or 0) * config.train.epochs)
    return "\n  ".join([plan.text(0, giga_multiply_adds(config)), *notes])


def _assumed(num_videos: int | None, num_classes: int | None) -> str:
    """What a plan without a list counts with, and how to tell it what it lacks."""
    videos = f"{num_videos:,} videos" if num_videos else "no number of videos"
    classes = f"{num_classes} classes" if num_classes else "the network's usual classes"
    lacking = [
        option for option, count in (("--num-videos N", num_videos), ("--num-classes N", num_classes)) if not count
    ]
    return f"{videos} and {classes} are assumed" + (f"; {' and '.join(lacking)} would tell" if lacking else "")
