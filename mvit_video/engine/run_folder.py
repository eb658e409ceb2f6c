"""The output folder of a run: which files are its own, whether this run may use it, and what is written at the start."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from mvit_video.config.load import dump_config, load_config
from mvit_video.config.schema import AUTO, Config
from mvit_video.data.lists.checks import MISSING, missing_text
from mvit_video.data.lists.records import VideoList
from mvit_video.data.lists.split import list_text, resolve_auto_lists
from mvit_video.engine.checkpoint import BEST, FOLDER, VALIDATION, TrainingState, read_best
from mvit_video.engine.hooks.bad_videos import EVENTS
from mvit_video.engine.hooks.curves import CURVES
from mvit_video.engine.hooks.first_batch import FIRST_BATCH
from mvit_video.engine.hooks.masked import MASKED
from mvit_video.engine.hooks.records import METRICS
from mvit_video.engine.trackers import tracker_files
from mvit_video.errors import ConfigError
from mvit_video.paths import check_fresh, fresh_folder, write_whole

SETTINGS = "config.yaml"
WEIGHTS = "model.safetensors"
AVERAGED_WEIGHTS = "model_ema.safetensors"
OWN_LISTS = ("train.csv", "val.csv", "classes.txt")  # if data.train is auto
EVALUATION = "evaluation"  # and evaluation_ema, written by evaluation.after_training
OWNED = (
    *(SETTINGS, VALIDATION, EVENTS, BEST, WEIGHTS, AVERAGED_WEIGHTS, FOLDER, MISSING),
    *(FIRST_BATCH, MASKED, CURVES, EVALUATION, f"{EVALUATION}_ema"),
)
MAY_CHANGE_ON_RESUME = (
    "data.root",
    "data.planned_",
    "data.workers",
    "data.cache",
    "data.on_error",
    "data.decode_timeout",
    "train.trackers",
    "train.wandb_project",
    "train.teacher",  # its file may move; states record its digest
    "train.activation_checkpointing",
    "train.clips_per_pass",  # to save memory; a note is printed, since rounding differs
    "train.on_nonfinite",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "train.parallel",
    "evaluation.",
    "plugins",  # required ones must be present, others may be
)

NEW_RUN_SETTINGS = ("train.", "data.")  # may differ in a new run that starts from the weights of this one


def run_files(run: Path, config: Config) -> tuple[str, ...]:
    """Names of the files that a run writes and --overwrite deletes."""
    reports = [report.name for report in run.glob("nonfinite_step_*.json")]
    lists = OWN_LISTS if config.data.train == AUTO else ()
    return (*OWNED, *tracker_files(), *lists, *reports, METRICS)  # last: see never_started


def check_folder(run: Path, config: Config, resume: bool, overwrite: bool) -> None:
    """Raise ConfigError if the folder contains another run, or lists or weights that this one reads. Changes nothing."""
    if will_resume(run, resume):
        _check_same_settings(load_config(run / SETTINGS), config, run)
        return
    own = [(run / name).resolve() for name in run_files(run, config)]
    for setting, path in _input_files(config).items():
        hit = next((place for place in (path.resolve(), *path.resolve().parents) if place in own), None)
        if hit is not None and path.exists():
            raise ConfigError(
                f"{run}: contains {hit.name}, which {setting} reads and this run would overwrite: choose another --output"
            )
    check_fresh(run, run_files(run, config), overwrite or never_started(run))


def never_started(run: Path) -> bool:
    """Whether the folder contains only a run that ended before its first step."""
    if not (run / METRICS).is_file() or (run / METRICS).stat().st_size:
        return False
    kept = (WEIGHTS, AVERAGED_WEIGHTS, BEST, EVALUATION, f"{EVALUATION}_ema")
    return not any((run / name).exists() for name in kept) and not any((run / FOLDER).glob("*"))


def will_resume(run: Path, resume: bool) -> bool:
    """Whether a call with this `resume` continues the run in the folder."""
    return resume and (run / SETTINGS).exists() and not never_started(run)


def check_no_videos_deleted(run: Path, config: Config, lists: list[VideoList]) -> None:
    """Raise ConfigError if --overwrite would delete listed videos, such as those of a class called evaluation."""
    folders = [path.resolve() for path in check_fresh(run, run_files(run, config), overwrite=True) if path.is_dir()]
    for folder in folders:
        inside = os.path.relpath(folder, Path(config.data.root).resolve()) + "/"
        if any(record.path.startswith(inside) for videos in lists for record in videos.records):
            raise ConfigError(f"{run}: contains {folder.name} with videos of the lists: choose another --output")


def prepare_folder(run: Path, config: Config, resume: bool, overwrite: bool, lists: list[VideoList]) -> None:
    """Create the folder with the effective config.yaml and information about its lists."""
    if not will_resume(run, resume):
        fresh_folder(run, run_files(run, config), overwrite or never_started(run))
        (run / METRICS).touch()  # first, since `never_started` depends on it
    if missing := missing_text(lists):
        write_whole(run / MISSING, missing)
    if config.data.train == AUTO:
        for name, videos in zip(OWN_LISTS, lists, strict=False):
            write_whole(run / name, list_text(videos))
        write_whole(run / OWN_LISTS[2], "".join(f"{name}\n" for name in lists[0].classes))
        config = config if missing else with_saved_lists(run, config)
    write_whole(run / SETTINGS, dump_config(config))


def with_saved_lists(run: Path, config: Config) -> Config:
    """Use the run's saved lists if data.train=auto split the folder data.root.

    Videos added later would change the split and move training videos to validation.
    """
    found = resolve_auto_lists(config.data)
    if config.data.train != AUTO or found.val is not None or not all((run / name).is_file() for name in OWN_LISTS):
        return config
    train, val, classes = (str((run / name).resolve()) for name in OWN_LISTS)
    data = found.model_copy(update={"train": train, "val": val, "classes": classes})
    return config.model_copy(update={"data": data})


def list_digest(videos: VideoList) -> dict[str, Any]:
    """Number of videos of a list, and sha256 of its paths, labels, missing videos and classes.

    Paths are relative to data.root, which may change.
    """
    rows = [[record.path, *record.labels] for record in videos.records]
    text = json.dumps([rows, [record.path for record in videos.missing], videos.classes])
    return {"videos": len(videos), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def check_same_lists(state: TrainingState, lists: list[VideoList]) -> None:
    """Raise ConfigError if a state was trained on other lists: all samples depend on the list."""
    for videos, before in zip(lists, state.lists, strict=False):
        if list_digest(videos) != before:
            raise ConfigError(
                f"{state.folder}: was trained on another version of {videos.source} ({before['videos']} videos then, {len(videos)} now, "
                f"{len(videos.missing)} missing; paths, labels and classes count too): resume with the original list and "
                f"files, or start over in another --output{weights_hint(state.folder.parents[1])}"
            )


def weights_hint(run: Path) -> str:
    """Hint on how to start another run from this one's weights; empty if there are none yet."""
    best = read_best(run)
    states = sorted((run / FOLDER).glob(f"step_*/{WEIGHTS}"))
    places = [run / WEIGHTS, *([run / best["state"] / WEIGHTS] if best else []), *reversed(states)]
    weights = next((place for place in places if place.is_file()), None)
    return f" (from its weights: model.weights={weights})" if weights else ""


def _input_files(config: Config) -> dict[str, Path]:
    """Files and folders named by settings, by setting."""
    data = resolve_auto_lists(config.data)
    named = {name: getattr(data, name) for name in ("train", "val", "test", "classes")}
    if config.data.train == AUTO and data.classes is None:
        named["classes"] = OWN_LISTS[2]
    read = {f"data.{name}": Path(data.root) / place for name, place in named.items() if place}
    others = {"data.root": data.root, "model.weights": config.model.weights, "train.teacher": config.train.teacher}
    return read | {setting: Path(place) for setting, place in others.items() if place}


def _check_same_settings(before: Config, now: Config, run: Path) -> None:
    old, new = _flat(before.model_dump(mode="json")), _flat(now.model_dump(mode="json"))
    own = [str((run / name).resolve()) for name in OWN_LISTS]  # states record their digests, wherever the run has moved
    for key in old.keys() | new.keys():
        if old.get(key) != new.get(key) and new.get(key) not in own and not key.startswith(MAY_CHANGE_ON_RESUME):
            raise ConfigError(
                f"{run}: was trained with {key} = {old.get(key)}, but is now resumed with {new.get(key)}: "
                f"use the same settings, or another --output{weights_hint(run) if key.startswith(NEW_RUN_SETTINGS) else ''}"
            )


def _flat(tree: dict, prefix: str = "") -> dict:
    flat: dict = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat
