"""A DataLoader for a program's own training or evaluation loop, in one call."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Sampler

from mvit_video.config.load import config_from_dict
from mvit_video.config.schema import AugmentationSettings, InputSettings, part
from mvit_video.data.dataset import SampleKey, ViewDataset, clip_dataset_from
from mvit_video.data.draws import generator
from mvit_video.data.lists.read import read_videos
from mvit_video.data.lists.records import VideoList
from mvit_video.data.loader import batch_loader
from mvit_video.data.video.source import VideoFiles
from mvit_video.errors import ConfigError


def make_loader(
    videos: VideoList | str | Path,
    input: InputSettings,
    *,
    root: str | Path = ".",
    augmentation: AugmentationSettings | None = None,
    batch_size: int = 8,
    workers: int = 2,
    seed: int = 0,
    skip_bad: bool = False,
) -> "DataLoader[dict[str, Any]]":
    """Make a DataLoader of clips: `video` (B, C, T, H, W) float32, `label` (B,), and per clip `video_name` and more.

    >>> loader = make_loader("train.csv", card.preprocessing, root="videos", augmentation=AugmentationSettings(flip=True))
    >>> for batch in loader:  # doctest: +SKIP
    ...     loss = cross_entropy(model(batch["video"]), batch["label"])

    Without `augmentation`, for evaluation: the middle clip of every video, centre-cropped, in list order. With it, for
    training: random clips in a new order at each iteration; an incomplete last batch is dropped. The same seed draws the
    same clips, whatever the number of workers.

    Args:
        videos: a list that was read, or a file or folder as for `data.train`, relative to `root`.
        input: which frames make a clip, and how they are scaled and cropped, such as a checkpoint's `card.preprocessing`.
        root: folder that the paths in the list are relative to.
        augmentation: of training clips; `repeated_aug` clips of a video follow each other in a batch.
        batch_size: clips in a batch; a multiple of `repeated_aug`.
        workers: processes that decode; 0 decodes in this one.
        skip_bad: skip videos that cannot be decoded, listing them in `batch["bad"]`, instead of raising DecodeError.

    Raises ConfigError or AnnotationError for what does not fit.
    """
    chosen = videos if isinstance(videos, VideoList) else read_videos(str(videos), str(root))
    if augmentation is not None:
        return _training_loader(chosen, input, root, augmentation, batch_size, workers, seed, skip_bad)
    dataset = CentreViews(chosen, VideoFiles(str(root)), input, on_bad="return" if skip_bad else "raise")
    return batch_loader(dataset, workers, batch_size=batch_size)


def _training_loader(
    videos: VideoList,
    input: InputSettings,
    root: str | Path,
    augmentation: AugmentationSettings,
    batch_size: int,
    workers: int,
    seed: int,
    skip_bad: bool,
) -> "DataLoader[dict[str, Any]]":
    if batch_size % augmentation.repeated_aug or batch_size > len(videos) * augmentation.repeated_aug:
        raise ConfigError(
            f"batch_size = {batch_size} does not fit {len(videos)} videos with repeated_aug = {augmentation.repeated_aug}: use a "
            "multiple of repeated_aug that is at most the number of clips"
        )
    parts = part(input, InputSettings).model_dump() | part(augmentation, AugmentationSettings).model_dump()
    tree = {"root": str(root), **parts}
    clips = clip_dataset_from(config_from_dict({"data": tree}, "make_loader").data, videos, seed)
    clips.on_bad = "return" if skip_bad else "raise"
    order = ShuffledEpochs(len(videos), batch_size // augmentation.repeated_aug, seed)
    return batch_loader(clips, workers, batch_sampler=order)


class CentreViews(ViewDataset):
    """The one centre view of each video, as a clip (C, T, H, W)."""

    def __getitem__(self, index: int) -> Any:
        sample = super().__getitem__(index)
        return sample | {"video": sample["video"][0]} if isinstance(sample, dict) else sample


class ShuffledEpochs(Sampler[list[SampleKey]]):
    """Keys of full batches of all videos, in an order of its own each time; these are the epochs 0, 1, 2 …"""

    def __init__(self, num_videos: int, batch_size: int, seed: int) -> None:
        self.num_videos, self.batch_size, self.seed, self.epoch = num_videos, batch_size, seed, 0

    def __len__(self) -> int:
        return self.num_videos // self.batch_size

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = generator("order", self.seed, self.epoch).permutation(self.num_videos)
        epoch, self.epoch = self.epoch, self.epoch + 1
        for batch in range(len(self)):
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [SampleKey(epoch, int(index)) for index in chosen]
