"""`train --dry-run`: print the plan of a run without writing, training or downloading anything."""

from pathlib import Path

import torch
from torch import nn

from mvit_video.config.schema import Config
from mvit_video.data.lists.records import VideoList
from mvit_video.data.lists.selection import training_lists, unlabelled_lists
from mvit_video.engine.automatic import auto_settings, describe_auto, labelled_auto, resolve_auto
from mvit_video.engine.data_warnings import describe_lists
from mvit_video.engine.losses import check_one_label, is_multi_label
from mvit_video.engine.masked import check_pretraining
from mvit_video.engine.plan import RunPlan, giga_multiply_adds, meta_model
from mvit_video.errors import ConfigError, MvitVideoError
from mvit_video.model.registry import model_entry
from mvit_video.model.weights.load import fit_masked, fit_model, read_weights


def dry_run(config: Config, device: torch.device, num_videos: int | None = None, num_classes: int | None = None) -> str:
    """Describe what `train_run` would do; nothing is written, trained or downloaded.

    Videos and classes are counted in data.train unless given. If it cannot be read, data.planned_videos and
    data.planned_classes are assumed; without these the plan says so, and the network has its default head.
    """
    notes: list[str] = []
    lists, unread, masked = None, "", config.train.objective == "masked"
    if masked:
        check_pretraining(config, labelled_auto(config))
        num_classes = 0
    check_one_label(config)
    if num_videos is None or num_classes is None:
        try:
            lists = unlabelled_lists(config.data) if masked else _labelled_lists(config)
            num_videos, num_classes = num_videos or len(lists[0]), num_classes or len(lists[0].classes)
        except MvitVideoError as reason:
            num_videos, num_classes = (
                num_videos or config.data.planned_videos,
                num_classes or config.data.planned_classes,
            )
            unread = f"data.train cannot be read ({reason})"
            notes.append(f"{unread}: {_assumed(num_videos, num_classes, masked)}")
    auto = auto_settings(config)
    if auto and num_videos is None:
        raise ConfigError(f"{auto[0]} = auto follows from the number of training videos: {unread}: set --num-videos N")
    if auto and num_videos is not None:
        config = resolve_auto(config, num_videos, num_classes)
        notes.append(describe_auto(config, auto, num_videos))
    model = meta_model(config, num_classes)
    if num_classes is None:
        num_classes = model_entry(config.model.name).defaults["num_classes"]
    plan = RunPlan(config, device, model, num_classes, num_videos)
    notes += _weights_notes(config, model, None if lists is None else lists[0].classes)
    if lists is not None:
        notes += describe_lists(config, *lists, (plan.per_epoch or 0) * config.train.epochs)
    return "\n  ".join([plan.text(0, giga_multiply_adds(config)), *notes])


def _weights_notes(config: Config, model: nn.Module, classes: tuple[str, ...] | None) -> list[str]:
    """What would become of weights whose file is here. Raises CheckpointError where they do not fit the network."""
    file = config.model.weights
    if file is None or not Path(file).is_file():
        return []
    weights = read_weights(file)
    if config.train.objective == "masked":
        return [fit_masked(model, weights)[1].summary()]
    return [fit_model(model, weights, reset_head=classes is None or weights.classes != classes)[1].summary()]


def _labelled_lists(config: Config) -> tuple[VideoList, VideoList | None]:
    return training_lists(config.data, is_multi_label(config.train))


def _assumed(num_videos: int | None, num_classes: int | None, masked: bool) -> str:
    """Describe the assumptions made without a list, and the options that replace them."""
    videos = f"{num_videos:,} videos" if num_videos else "an unknown number of videos"
    if masked:
        return f"assuming {videos}" + ("" if num_videos else "; set --num-videos N")
    classes = f"{num_classes} classes" if num_classes else "the network's default classes"
    lacking = [
        option for option, count in (("--num-videos N", num_videos), ("--num-classes N", num_classes)) if not count
    ]
    return f"assuming {videos} and {classes}" + (f"; set {' and '.join(lacking)}" if lacking else "")
