"""Batches in an order that follows from the seed alone, starting at any step."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import islice
from multiprocessing import active_children
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mvit_video.data.balance import balanced_order, check_labels
from mvit_video.data.dataset import BadVideo, ClipDataset, SampleKey, ViewDataset
from mvit_video.data.draws import generator
from mvit_video.data.pixels import Normalise, stacked
from mvit_video.data.video.guard import STOP_SIGNALS
from mvit_video.data.video.guard_start import CAN_GUARD, launcher
from mvit_video.errors import ConfigError, DecodeError
from mvit_video.plugins import load_plugins, named_plugins


class StepSampler(Sampler[list[SampleKey]]):
    """Keys of each training step's videos, from `first_step` to `last_step` (not included), across epochs.

    Each epoch is a permutation of all videos drawn from (seed, epoch). What does not fill a step is left out that
    epoch; another permutation leaves out others. With a `balance` of classes and the videos' `labels`, an epoch is as
    long, and shows of each class exactly as many videos as `balance.shown_counts` says. Each video gives
    `repeated_aug` of the step's clips. A rank gets its part of every step: all ranks' parts together are the step of a
    single process. A part holds, with each video, the one in the step's mirrored place, in the step's order (four
    videos over two ranks: 0 1 1 0), since mixing pairs these: reversing a part is then reversing the step. Parts of an
    odd length cannot be `mirrored`.
    """

    def __init__(
        self,
        num_videos: int,
        clips_per_step: int,
        seed: int,
        first_step: int,
        last_step: int,
        repeated_aug: int = 1,
        rank: int = 0,
        world_size: int = 1,
        labels: np.ndarray | None = None,
        balance: str = "none",
    ) -> None:
        self.num_videos, self.seed, self.labels, self.balance = num_videos, seed, labels, balance
        if labels is not None:
            check_labels(labels, balance)
        self.first_step, self.last_step = first_step, last_step
        self.steps_per_epoch = steps_per_epoch(num_videos, clips_per_step, repeated_aug)
        self.videos_per_step = clips_per_step // repeated_aug
        if self.videos_per_step % world_size:
            raise ConfigError(
                f"train.clips_per_step = {clips_per_step} is {self.videos_per_step} videos per step, which {world_size} "
                f"processes cannot share evenly: make it a multiple of {world_size * repeated_aug}"
            )
        share = self.videos_per_step // world_size
        self.mirrored = share % 2 == 0 or world_size == 1
        self.places = np.arange(rank * share, (rank + 1) * share)
        if self.mirrored and world_size > 1:
            half = np.arange(rank * share // 2, (rank + 1) * share // 2)
            self.places = np.concatenate([half, self.videos_per_step - 1 - half[::-1]])

    def __len__(self) -> int:
        return self.last_step - self.first_step

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for step in range(self.first_step, self.last_step):
            epoch, place = divmod(step, self.steps_per_epoch)
            if step == self.first_step or place == 0:
                videos, turns = self._epoch(epoch)
            chosen = place * self.videos_per_step + self.places
            yield [SampleKey(epoch, *one) for one in zip(videos[chosen].tolist(), turns[chosen].tolist(), strict=True)]

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Videos in the order of an epoch, and how often each has been in it before."""
        if self.labels is None or self.balance == "none":
            order = generator("order", self.seed, epoch).permutation(self.num_videos)
            return order, np.zeros_like(order)
        shown = self.steps_per_epoch * self.videos_per_step
        return balanced_order(self.labels, shown, self.balance, self.seed, epoch)


def steps_per_epoch(num_videos: int, clips_per_step: int, repeated_aug: int = 1) -> int:
    """Full steps in one pass over the videos; ConfigError where there is not even one."""
    videos_per_step, rest = divmod(clips_per_step, repeated_aug)
    if rest:
        raise ConfigError(
            f"train.clips_per_step = {clips_per_step} is not a multiple of data.repeated_aug = {repeated_aug}: "
            "each video contributes that many clips to a step"
        )
    if num_videos < videos_per_step:
        clips = f" with data.repeated_aug = {repeated_aug}" if repeated_aug > 1 else ""
        raise ConfigError(
            f"train.clips_per_step = {clips_per_step} is more than the {num_videos} training videos{clips}: lower it, "
            "or set train.clips_per_step=auto"
        )
    return num_videos // videos_per_step


def training_loader(
    dataset: ClipDataset,
    sampler: StepSampler | Sequence[Sequence[SampleKey]],
    workers: int,
    clips_per_part: int | None = None,
    device: torch.device | None = None,
    normalise: Normalise | None = None,
) -> "StepLoader":
    """Batches of the sampler's steps; see `collate`.

    Workers make a step in parts of about `clips_per_part` clips, in turn: so its first clips are there sooner, and what is made
    ahead is two steps or two parts a worker, whichever is more. With None, a step is one worker's. A step's parts are
    joined on `device`. With `normalise`, which a dataset of pixels needs, they are made clips of there; without, a step of
    one part stays where it is.
    """
    return StepLoader(dataset, sampler, workers, clips_per_part, device, normalise)


class StepLoader:
    """What `training_loader` gives. Iterating makes the batches, `len` is their number."""

    def __init__(
        self,
        dataset: ClipDataset,
        sampler: StepSampler | Sequence[Sequence[SampleKey]],
        workers: int,
        clips_per_part: int | None,
        device: torch.device | None,
        normalise: Normalise | None,
    ) -> None:
        self.sampler, self.device, self.normalise = sampler, device, normalise
        self.videos_per_part = max(clips_per_part // dataset.repeated_aug, 1) if clips_per_part else None
        most = max((len(self._parts(keys)) for keys in islice(sampler, 1)), default=1)
        self.parts = batch_loader(dataset, workers, prefetched(most, workers), batch_sampler=_Flat(self))

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        parts = iter(self.parts)
        for keys in self.sampler:
            yield joined([next(parts) for _ in self._parts(keys)], self.device, self.normalise)

    def _parts(self, keys: Sequence[SampleKey]) -> list[Sequence[SampleKey]]:
        size = self.videos_per_part or len(keys)
        return [keys[first : first + size] for first in range(0, len(keys), size)]


class _Flat(Sampler[Sequence[SampleKey]]):
    """The parts of all steps, one after the other."""

    def __init__(self, steps: StepLoader) -> None:
        self.steps = steps

    def __iter__(self) -> Iterator[Sequence[SampleKey]]:
        return (part for keys in self.steps.sampler for part in self.steps._parts(keys))


def prefetched(parts: int, workers: int) -> int:
    """Parts that each worker makes ahead, where a step has so many."""
    return max(2, -(-2 * parts // max(workers, 1)))


def clips_ahead(clips: int, clips_per_part: int | None, workers: int) -> int:
    """Clips in memory at most, of steps of so many: all that workers have made ahead, and a step in hand."""
    size = min(clips_per_part or clips, clips)
    return prefetched(-(-clips // size), workers) * workers * size + clips


def joined(
    parts: Sequence[dict[str, Any]], device: torch.device | None, normalise: Normalise | None = None
) -> dict[str, Any]:
    """One batch of several, in their order; tensors on `device`. With `normalise`, of pixels, which become clips there."""
    if len(parts) == 1 and normalise is None:
        return parts[0]
    good = [part for part in parts if "video" in part]
    batch: dict[str, Any] = {"bad": [bad for part in parts for bad in part["bad"]]}
    for key in good[0] if good else ():
        values = [part[key] for part in good]
        if key == "video" and normalise is not None:
            batch[key] = normalise.joined(values, device)
        elif isinstance(values[0], torch.Tensor):
            batch[key] = _in_one(values, device)
        elif key != "bad":
            batch[key] = [item for value in values for item in value]
    if normalise is not None:
        for clip, erasing in zip(batch.get("video", ()), batch.pop("erasing", ()), strict=False):
            if erasing is not None:
                erasing.fill(clip)
    return batch


def _in_one(tensors: Sequence[torch.Tensor], device: torch.device | None) -> torch.Tensor:
    """Copied one by one to where they belong, so that the device never holds them twice."""
    lengths = [len(tensor) for tensor in tensors]
    whole = torch.empty(sum(lengths), *tensors[0].shape[1:], dtype=tensors[0].dtype, device=device)
    for place, tensor in zip(whole.split(lengths), tensors, strict=True):
        place.copy_(tensor, non_blocking=True)
    return whole


def view_loader(dataset: ViewDataset, workers: int, rank: int = 0, world_size: int = 1) -> DataLoader[Any]:
    """Videos one by one in list order, each with all of its views; samples as they are.

    A rank gets every `world_size`-th video: each video belongs to one rank, and some ranks may have one fewer.
    """
    return batch_loader(dataset, workers, batch_size=None, sampler=range(rank, len(dataset), world_size))


def collate(items: Sequence[dict[str, Any] | BadVideo | Sequence[dict[str, Any] | BadVideo]]) -> dict[str, Any]:
    """Samples to a batch: `video` (B, C, T, H, W), `label` (B,), (B, K), `mask` (B, t, h, w), names and indices as lists, `bad` as a list.

    An item may be a list of samples. A batch without any clip has `bad` alone. Takes pytorchvideo's samples too.
    """
    samples = [sample for item in items for sample in (item if isinstance(item, Sequence) else (item,))]
    good = [sample for sample in samples if not isinstance(sample, BadVideo)]
    batch: dict[str, Any] = {key: [sample[key] for sample in good] for key in (good[0] if good else ())}
    if good:
        batch["video"] = stacked(batch["video"])
        sets = isinstance(batch["label"][0], np.ndarray)
        batch["label"] = torch.from_numpy(np.stack(batch["label"])) if sets else torch.tensor(batch["label"])
    if "mask" in batch:
        batch["mask"] = torch.from_numpy(np.stack(batch["mask"]))
    return batch | {"bad": [sample for sample in samples if isinstance(sample, BadVideo)]}


@contextmanager
def report_lost_workers() -> Iterator[None]:
    """Inside, a worker that dies, most often since memory has run out, is a DecodeError: PyTorch raises it anywhere."""
    try:
        yield
    except RuntimeError as reason:
        if not str(reason).startswith("DataLoader worker"):
            raise
        raise DecodeError(
            f"a loader worker died ({str(reason).strip()}): if memory ran out, lower data.workers or the clips of a "
            "step; a run goes on with --resume auto"
        ) from reason


def batch_loader(dataset: Dataset[Any], workers: int, ahead: int = 2, **arguments: Any) -> DataLoader[Any]:
    """A DataLoader with our `collate` (samples as they are for batch_size=None), whose processes end with the program.

    Each of them makes `ahead` batches ahead. `arguments` are DataLoader's: which samples, in which batches.
    """
    whole = arguments.get("batch_size", 1) is None
    _kill_workers_at_exit()
    if workers and CAN_GUARD:
        launcher.start()  # once, and not in every worker
    return DataLoader(
        dataset,
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
        collate_fn=_as_is if whole else collate,
        worker_init_fn=partial(_be_a_worker, plugins=named_plugins()),
        pin_memory=torch.cuda.is_available(),
        **arguments,
    )


def _as_is(sample: Any) -> Any:
    return sample


def _be_a_worker(_worker: int, plugins: Sequence[str]) -> None:
    """One thread, and the main process's plugins, which one that is no fork of it lacks.

    What asks the program to stop is the main process's to handle, which still needs its batches.
    """
    load_plugins(plugins)
    torch.set_num_threads(1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@cache
def _kill_workers_at_exit() -> None:
    """Of a program that an error ends in the middle of its batches: Python asks them to stop, and would wait for ever."""
    Finalize(None, _kill_workers, exitpriority=10)


def _kill_workers() -> None:
    for child in active_children():
        if child.daemon:
            child.kill()
