"""Select and read the lists for training, validation and evaluation."""

from dataclasses import replace
from pathlib import Path

from mvit_video.config.schema import AUTO, DataSettings
from mvit_video.data.lists.checks import note_overlap, refuse_several_labels
from mvit_video.data.lists.class_names import read_classes
from mvit_video.data.lists.read import checked_list, unlabelled_list
from mvit_video.data.lists.records import VideoList
from mvit_video.data.lists.split import resolve_auto_lists, split_videos
from mvit_video.errors import ConfigError


def training_lists(data: DataSettings, multi_label: bool = False) -> tuple[VideoList, VideoList | None]:
    """Read and check the training list, and the validation list with the same classes if there is one.

    Missing files are an error; with data.allow_missing they leave the training list and count as wrong in validation. With
    data.train=auto the lists are found under data.root, or its class folders are split in two (see split.py). Videos
    with several labels are an error unless `multi_label`.
    """
    found = resolve_auto_lists(data)
    if found.train is None:
        raise ConfigError("data.train is not set: name a list of `path label` rows or a folder of class folders")
    classes = read_classes(str(Path(found.root) / found.classes)) if found.classes else None
    train = checked_list(found.train, found, classes, keep_missing=False)
    if not multi_label:
        refuse_several_labels(train, "set train.loss=binary_cross_entropy, or leave one in each row")
    if found.val is None:
        return split_videos(train, found) if data.train == AUTO else (train, None)
    val = checked_list(found.val, found, train.classes, keep_missing=True)
    shared = note_overlap(train, val)
    return train, replace(val, notes=(*val.notes, shared)) if shared else val


def unlabelled_lists(data: DataSettings) -> tuple[VideoList, VideoList | None]:
    """The same for pre-training, without labels; all videos under data.root if data.train=auto finds no list there."""
    if data.train is None:
        raise ConfigError("data.train is not set: name a list of videos or a folder, or set data.train=auto")
    data = resolve_auto_lists(data)
    train = unlabelled_list(str(data.train), data)
    if data.val is None:
        return train, None
    val = unlabelled_list(data.val, data, keep_missing=True)
    shared = note_overlap(train, val)
    return train, replace(val, notes=(*val.notes, shared)) if shared else val


def held_out_list(data: DataSettings, classes: tuple[str, ...]) -> VideoList:
    """Read the videos to evaluate on: data.test, else data.val, else the part that data.train=auto holds out."""
    found = resolve_auto_lists(data)
    source = found.test or found.val
    if source is not None:
        return checked_list(source, found, classes, keep_missing=True)
    val = training_lists(data, multi_label=True)[1] if data.train == AUTO else None
    if val is None:
        raise ConfigError("neither data.test nor data.val is set: name the list of videos to evaluate on")
    return val


def has_held_out_list(data: DataSettings) -> bool:
    """Whether the settings name a list for `held_out_list`; nothing is read."""
    return data.train == AUTO or data.test is not None or data.val is not None
