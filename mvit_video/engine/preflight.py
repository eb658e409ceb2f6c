"""Checks before a run starts: everything that would otherwise fail after minutes or hours. Takes seconds."""

import math
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mvit_video.config.schema import Config
from mvit_video.data.dataset import BadVideo, ClipDataset, SampleKey
from mvit_video.data.loader import clips_ahead
from mvit_video.engine.checkpoint import FOLDER, Learner
from mvit_video.engine.distributed import local_world_size, world_size
from mvit_video.engine.hooks.bad_videos import decode_error
from mvit_video.engine.trackers import check_trackers
from mvit_video.engine.trainer import Trainer, copy_batch_statistics, restore_buffers
from mvit_video.errors import ConfigError, DecodeError

VIDEOS_TRIED = 3
SHARED_MEMORY = Path("/dev/shm")  # where loader workers put their batches


def check_output(run: Path) -> None:
    """Raise ConfigError if the folder `run` cannot be created or written to; leaves nothing behind."""
    place = _nearest_existing(run)
    if not place.is_dir():
        raise ConfigError(f"{place}: is a file, expected a folder for the output")
    try:
        os.rmdir(tempfile.mkdtemp(dir=place))
    except OSError as reason:
        raise ConfigError(f"{run}: cannot be written to ({reason.strerror}): choose another --output") from None


def preflight(
    trainer: Trainer, dataset: ClipDataset, config: Config, run: Path, validated: bool, target: Tensor
) -> str:
    """Check packages, disk space, some videos and one pass of the network; return a summary. `target` is some clip's.

    Raises ConfigError or DecodeError. The network is unchanged.
    """
    check_trackers(config)
    room = [check_disk(run, trainer.learner, config, validated), *check_shared_memory(config)]
    tried = check_videos(dataset, config.data.on_error == "stop")
    trial_pass(trainer, config, target)
    return f"checked: {tried} videos decoded, one forward and backward pass, {', '.join(room)}"


def check_videos(dataset: ClipDataset, stop: bool) -> int:
    """Decode some videos across the list, and return how many; DecodeError if the run would stop at one of them, or if none can
    be decoded."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, VIDEOS_TRIED).round().astype(int))
    found = [dataset[SampleKey(0, int(index))] for index in chosen]
    items = [item for sample in found for item in (sample if isinstance(sample, list) else [sample])]
    bad = [item for item in items if isinstance(item, BadVideo)]
    if bad and stop:
        raise decode_error(bad[0])
    undecoded = [sample for sample in found if isinstance(sample, BadVideo)]
    if len(undecoded) == len(found):
        raise DecodeError(
            f"none of {len(found)} sampled videos of {dataset.videos.source} can be decoded: {bad[0].reason} "
            f"({bad[0].where}): check data.root, data.decoder and the files"
        )
    return len(found) - len(undecoded)


def check_disk(run: Path, learner: Learner, config: Config, validated: bool) -> str:
    """Raise ConfigError if the saved states and weights do not fit on the disk; else describe the space needed."""
    sets = 1 + (learner.average is not None)
    weights = sum(tensor.nbytes for tensor in learner.model.state_dict().values())
    moments = {"adamw": 2, "sgd": 1}[config.train.optimizer] * sum(
        parameter.nbytes for parameter in learner.model.parameters() if parameter.requires_grad
    )
    state, states = sets * weights + moments, config.train.keep_checkpoints + 1 + validated
    there = sum(file.stat().st_size for file in (run / FOLDER).glob("step_*/*"))
    needed, free = states * state + sets * weights - there, shutil.disk_usage(_nearest_existing(run)).free
    if needed > free:
        raise ConfigError(
            f"{run}: has {_size(free)} free, but {states} saved states of {_size(state)} each (including one before the oldest is "
            f"deleted{' and the best one' if validated else ''}) and the weights take {_size(needed)}: free space, lower "
            "train.keep_checkpoints, or choose another --output"
        )
    return f"{_size(max(needed, 0))} of {_size(free)} free disk space needed"


def check_shared_memory(config: Config) -> list[str]:
    """Raise ConfigError if prefetched batches do not fit into shared memory, which would kill workers silently.

    Returns a description of their size; empty without workers.
    """
    if not SHARED_MEMORY.is_dir() or not config.data.workers:
        return []
    value = 4 if config.data.transforms else 1  # bytes: plugins' transforms compute in float32
    clip = value * 3 * config.data.num_frames * math.prod(config.data.crop_hw)
    clips = config.train.clips_per_step // world_size()
    needed = clip * clips_ahead(clips, config.train.clips_per_pass, config.data.workers) * local_world_size()
    free = shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        raise ConfigError(
            f"data.workers = {config.data.workers}: prefetched clips may take {_size(needed)} of shared memory, but "
            f"{SHARED_MEMORY} has {_size(free)} free: lower data.workers, set train.clips_per_pass, or start the container "
            "with a larger --shm-size"
        )
    return [f"up to {_size(needed)} of {_size(free)} free shared memory for prefetched clips"]


def trial_pass(trainer: Trainer, config: Config, target: Tensor) -> None:
    """Run a forward and backward pass on zeros with a clip's target; on a GPU of full size, next to the optimiser's memory.

    Raises ConfigError if the network does not accept such clips or they do not fit into memory. On a CPU two clips are enough.
    """
    settings = config.train
    together = settings.clips_per_step // world_size()
    whole = trainer.device.type == "cuda" or settings.compile
    count = min(settings.clips_per_pass or together, together) if whole else min(2, together)
    statistics = copy_batch_statistics(trainer.learner.model)
    reserved: list[Tensor] = []
    try:
        if trainer.device.type == "cuda":
            reserved = _reserve_step_memory(trainer, config, together)
        clips = torch.zeros(count, 3, config.data.num_frames, *config.data.crop_hw, device=trainer.device)
        trainer.trial_pass(clips, target.to(trainer.device).expand(count, *target.shape))
    except torch.OutOfMemoryError as reason:
        raise ConfigError(_out_of_memory(config, count, str(reason))) from None
    except (RuntimeError, ValueError, IndexError) as reason:
        if full := str(reason).partition("DefaultCPUAllocator: ")[2]:  # a CPU's error has no type of its own
            raise ConfigError(_out_of_memory(config, count, full)) from None
        size = "×".join(map(str, (config.data.num_frames, *config.data.crop_hw)))
        raise ConfigError(
            f"{config.model.name} cannot be trained on clips of {size} (frames×height×width): {' '.join(str(reason).split())}"
        ) from reason
    finally:
        del reserved
        trainer.learner.model.zero_grad(set_to_none=True)
        restore_buffers(statistics)


def _reserve_step_memory(trainer: Trainer, config: Config, together: int) -> list[Tensor]:
    """Reserve the memory that a step needs besides a pass: all its clips, and the optimiser's moments."""
    clips = torch.empty(together, 3, config.data.num_frames, *config.data.crop_hw, device=trainer.device)
    moments = {"adamw": 2, "sgd": 1}[config.train.optimizer]
    return [clips, *(torch.empty_like(parameter) for parameter in trainer.trained for _ in range(moments))]


def _out_of_memory(config: Config, count: int, reason: str) -> str:
    cures = [f"train.clips_per_pass={math.ceil(count / 2)}"] if count > 1 else []
    if not config.train.activation_checkpointing:
        cures.append("train.activation_checkpointing=true")
    first = reason.split(". ")[0]
    settings = f"set {' or '.join(cures)}, or " if cures else ""
    return (
        f"a pass of {count} clips does not fit into device memory ({first}): {settings}lower data.num_frames or "
        "data.crop_size"
    )


def _nearest_existing(path: Path) -> Path:
    """The path itself, or its nearest existing parent folder."""
    path = Path(os.path.abspath(path))
    return next(place for place in (path, *path.parents) if place.exists())


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
