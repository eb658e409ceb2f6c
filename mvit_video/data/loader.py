"""Batches in an order that follows from the seed alone, starting at any step."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from mvit_video.data.dataset import BadVideo, ClipDataset, SampleKey, ViewDataset
from mvit_video.errors import ConfigError


class StepSampler(Sampler):
    """Keys of each training step's clips, from `first_step` to `last_step` (not included), across epochs.

    Each epoch is a permutation of all videos drawn from (seed, epoch). What does not fill a step is left out that
    epoch; another permutation leaves out others.
    """

    def __init__(self, num_videos: int, clips_per_step: int, seed: int, first_step: int, last_step: int) -> None:
        self.num_videos, self.clips_per_step, self.seed = num_videos, clips_per_step, seed
        self.first_step, self.last_step = first_step, last_step
        self.steps_per_epoch = steps_per_epoch(num_videos, clips_per_step)

    def __len__(self) -> int:
        return self.last_step - self.first_step

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for step in range(self.first_step, self.last_step):
            epoch, place = divmod(step, self.steps_per_epoch)
            if step == self.first_step or place == 0:
                order = np.random.default_rng([self.seed, epoch]).permutation(self.num_videos)
            chosen = order[place * self.clips_per_step : (place + 1) * self.clips_per_step]
            yield [SampleKey(epoch, int(index)) for index in chosen]


def steps_per_epoch(num_videos: int, clips_per_step: int) -> int:
    """Full steps in one pass over the videos; ConfigError where there is not even one."""
    if num_videos < clips_per_step:
        raise ConfigError(
            f"train.clips_per_step = {clips_per_step} is more than the {num_videos} training videos: lower it"
        )
    return num_videos // clips_per_step


def training_loader(dataset: ClipDataset, sampler: StepSampler, workers: int) -> DataLoader:
    """Batches of the sampler's steps; see `collate`."""
    return _loader(dataset, workers, batch_sampler=sampler)


def view_loader(dataset: ViewDataset, workers: int, rank: int = 0, world_size: int = 1) -> DataLoader:
    """Videos one by one in list order, each with all of its views; samples as they are.

    A rank gets every `world_size`-th video: each video belongs to one rank, and some ranks may have one fewer.
    """
    return _loader(dataset, workers, batch_size=None, sampler=range(rank, len(dataset), world_size))


def collate(samples: Sequence[dict | BadVideo]) -> dict:
    """Samples to a batch: `video` (B, C, T, H, W), `label` (B,), names and indices as lists, `bad` as a list."""
    good = [sample for sample in samples if not isinstance(sample, BadVideo)]
    batch: dict = {key: [sample[key] for sample in good] for key in (good[0] if good else ())}
    if good:
        batch["video"] = torch.stack(batch["video"])
        batch["label"] = torch.tensor(batch["label"])
    return batch | {"bad": [sample for sample in samples if isinstance(sample, BadVideo)]}


def _loader(dataset, workers: int, **arguments) -> DataLoader:
    collate_fn = None if "batch_size" in arguments else collate
    return DataLoader(
        dataset,
        num_workers=workers,
        collate_fn=collate_fn or _as_is,
        worker_init_fn=_one_thread,
        **arguments,
    )


def _as_is(sample):
    return sample


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)
