"""What a run tries before it starts: everything that would otherwise fail after minutes or hours. Takes seconds."""

import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mvit_video.config.schema import Config
from mvit_video.data.dataset import BadVideo, ClipDataset, SampleKey
from mvit_video.data.loader import clips_ahead
from mvit_video.engine.checkpoint import FOLDER, Learner
from mvit_video.engine.distributed import processes_here, world_size
from mvit_video.engine.hooks.bad_videos import stop_at
from mvit_video.engine.trackers import check_trackers
from mvit_video.engine.trainer import Trainer, batch_statistics, put_back
from mvit_video.errors import ConfigError, DecodeError

VIDEOS_TRIED = 3
SHARED_MEMORY = Path("/dev/shm")  # where loader workers leave their batches


def check_output(run: Path) -> None:
    """ConfigError where nothing can be written in the folder `run`, or where it would be made; nothing is left there."""
    place = _existing(run)
    if not place.is_dir():
        raise ConfigError(f"{place}: is a file, expected a folder for the output")
    try:
        os.rmdir(tempfile.mkdtemp(dir=place))
    except OSError as reason:
        raise ConfigError(f"{run}: cannot be written to ({reason.strerror}): choose another --output") from None


def preflight(trainer: Trainer, dataset: ClipDataset, config: Config, run: Path, validated: bool) -> str:
    """Try the packages, the disk, some videos and one pass of the network; the outcome in words.

    Raises ConfigError or DecodeError. The network is left as it was.
    """
    check_trackers(config)
    room = [check_disk(run, trainer.learner, config, validated), *check_shared_memory(config)]
    tried = check_videos(dataset, config.data.on_error == "stop")
    rehearse(trainer, config, len(dataset.videos.classes))
    return f"checked: {tried} videos decoded, one pass forward and back, {', '.join(room)}"


def check_videos(dataset: ClipDataset, stop: bool) -> int:
    """Decode some videos from all over the list, and return how many; DecodeError where the run would stop at one of
    them, or where none of them can be decoded."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, VIDEOS_TRIED).round().astype(int))
    found = [dataset[SampleKey(0, int(index))] for index in chosen]
    items = [item for sample in found for item in (sample if isinstance(sample, list) else [sample])]
    bad = [item for item in items if isinstance(item, BadVideo)]
    if bad and stop:
        raise stop_at(bad[0])
    undecoded = [sample for sample in found if isinstance(sample, BadVideo)]
    if len(undecoded) == len(found):
        raise DecodeError(
            f"none of {len(found)} videos tried of {dataset.videos.source} can be decoded, the first: {bad[0].reason} "
            f"({bad[0].where}): check data.root, data.decoder and the files"
        )
    return len(found) - len(undecoded)


def check_disk(run: Path, learner: Learner, config: Config, validated: bool) -> str:
    """ConfigError where the run's saved states and weights do not fit on the disk; else how much they need of what is free."""
    sets = 1 + (learner.average is not None)
    weights = sum(tensor.nbytes for tensor in learner.model.state_dict().values())
    moments = {"adamw": 2, "sgd": 1}[config.train.optimizer] * sum(
        parameter.nbytes for parameter in learner.model.parameters() if parameter.requires_grad
    )
    state, states = sets * weights + moments, config.train.keep_checkpoints + 1 + validated
    there = sum(file.stat().st_size for file in (run / FOLDER).glob("step_*/*"))
    needed, free = states * state + sets * weights - there, shutil.disk_usage(_existing(run)).free
    if needed > free:
        raise ConfigError(
            f"{run}: has {_size(free)} free, but {states} saved states of {_size(state)} (one while the oldest is still "
            f"there{', one the best' if validated else ''}) and the weights take {_size(needed)}: free some, lower "
            "train.keep_checkpoints, or choose another --output"
        )
    return f"{_size(max(needed, 0))} needed of {_size(free)} free on the disk"


def check_shared_memory(config: Config) -> list[str]:
    """ConfigError where the batches that workers make ahead do not fit into shared memory, where writing kills them without
    a word; else how much they take of it, if it is more than nothing."""
    if not SHARED_MEMORY.is_dir() or not config.data.workers:
        return []
    clip = 4 * 3 * config.data.num_frames * math.prod(config.data.crop_hw)
    clips = config.train.clips_per_step // world_size()
    needed = clip * clips_ahead(clips, config.train.clips_per_pass, config.data.workers) * processes_here()
    free = shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        raise ConfigError(
            f"data.workers = {config.data.workers}: clips that are made ahead may take {_size(needed)} of shared memory, and "
            f"{SHARED_MEMORY} has {_size(free)} free: lower data.workers, set train.clips_per_pass, or give a container more "
            "by --shm-size"
        )
    return [f"up to {_size(needed)} of clips made ahead, of {_size(free)} free in shared memory"]


def rehearse(trainer: Trainer, config: Config, num_classes: int) -> None:
    """One pass of zeros forward and back, on a GPU as large as those to come, beside what the optimiser will hold.

    ConfigError where the network does not take such clips or they do not fit into memory. On a CPU two clips tell as much.
    """
    settings = config.train
    together = settings.clips_per_step // world_size()
    whole = trainer.device.type == "cuda" or settings.compile
    count = min(settings.clips_per_pass or together, together) if whole else min(2, together)
    statistics = batch_statistics(trainer.learner.model)
    held: list[Tensor] = []
    try:
        if trainer.device.type == "cuda":
            held = _what_a_step_holds(trainer, config, together)
        clips = torch.zeros(count, 3, config.data.num_frames, *config.data.crop_hw, device=trainer.device)
        trainer.rehearse(clips, torch.full((count, num_classes), 1 / num_classes, device=trainer.device))
    except torch.OutOfMemoryError as reason:
        raise ConfigError(_out_of_memory(config, count, str(reason))) from None
    except (RuntimeError, ValueError, IndexError) as reason:
        size = "×".join(map(str, (config.data.num_frames, *config.data.crop_hw)))
        raise ConfigError(
            f"{config.model.name} cannot be trained on clips of {size} (frames×height×width): {' '.join(str(reason).split())}"
        ) from reason
    finally:
        del held
        trainer.learner.model.zero_grad(set_to_none=True)
        put_back(statistics)


def _what_a_step_holds(trainer: Trainer, config: Config, together: int) -> list[Tensor]:
    """Memory that later steps have beside a pass: all clips of the step, the optimiser's moments."""
    clips = torch.empty(together, 3, config.data.num_frames, *config.data.crop_hw, device=trainer.device)
    moments = {"adamw": 2, "sgd": 1}[config.train.optimizer]
    return [clips, *(torch.empty_like(parameter) for parameter in trainer.trained for _ in range(moments))]


def _out_of_memory(config: Config, count: int, reason: str) -> str:
    cures: Sequence[str] = [f"train.clips_per_pass={math.ceil(count / 2)}"] if count > 1 else []
    if not config.train.activation_checkpointing:
        cures = [*cures, "train.activation_checkpointing=true"]
    first = reason.split(". ")[0]
    return f"a pass of {count} clips does not fit into the device's memory ({first}): set {' or '.join(cures) or 'fewer frames'}"


def _existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    path = Path(os.path.abspath(path))
    return next(place for place in (path, *path.parents) if place.exists())


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
