"""Videos as samples: augmented clips for training, all views of a video for evaluation.

A sample is a dictionary with pytorchvideo's keys (`video`, `label`, `video_name`, `video_index`, `clip_index`,
`aug_index`), so its transforms and models plug in, and `repeated_frames`: how many frames of a clip show one of the
others again, because the video is too short. For masked pre-training it has a `mask` (t, h, w) too. Where `video` is
asked for as pixels (see `pixels`), which training and evaluation make clips of on the device, a training sample has an
`erasing` too, an `Erasing` or None. A video that cannot be decoded is a `BadVideo`. Another one takes its place only in
training, only where the settings say so, and never without the `BadVideo` beside it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from mvit_video.config.schema import DataSettings, InputSettings
from mvit_video.data.draws import generator
from mvit_video.data.frame_cache import training_source
from mvit_video.data.lists.records import VideoList, VideoRecord
from mvit_video.data.masking import DrawMask, mask_random
from mvit_video.data.pixels import Erasing, Normalise
from mvit_video.data.sampling import (
    clip_window,
    dense_indices,
    random_start,
    repeated_frames,
    segment_indices,
    stride_indices,
    view_start,
)
from mvit_video.data.strength import with_augmentation
from mvit_video.data.transforms import ViewTransform, train_transform_from
from mvit_video.data.video.reader import FrameReader, size_changed
from mvit_video.data.video.source import VideoSource
from mvit_video.errors import DecodeError

SUBSTITUTES = 10  # videos tried in place of a bad one
PART_BYTES = 1 << 29  # of decoded frames at once, where a video gives several clips

Transform = Callable[[np.ndarray, np.random.Generator], Tensor | tuple[Tensor, Erasing | None]]
"""(frames uint8 (T, H, W, 3), generator) -> clip (C, T, H, W), or what `TrainTransform.pixels` gives."""


class SampleKey(NamedTuple):
    """Which sample: the epoch it is drawn in, the video's place in the list, and how often the epoch has shown it before."""

    epoch: int
    video: int
    turn: int = 0


@dataclass(frozen=True)
class BadVideo:
    """A video without a clip, and why; `where` is its row in the list, `substitute` the video that replaced it, if any."""

    index: int
    path: str
    where: str
    reason: str
    substitute: str | None = None


def sample_generator(seed: int, epoch: int, video_id: str, repeat: int = 0) -> np.random.Generator:
    """Random generator of one sample, independent of machine, order and number of workers."""
    return generator("clip", seed, epoch, video_id, repeat)


def training_indices(video_frames: int, fps: float, input: InputSettings, rng: np.random.Generator) -> np.ndarray:
    """Frame indices of a random clip: (T,)."""
    if input.sampling == "segment":
        return segment_indices(video_frames, input.num_frames, rng)
    window = clip_window(input.num_frames, input.sampling_rate, fps, input.target_fps)
    return _dense(video_frames, random_start(video_frames, window, rng), window, input)


def view_indices(video_frames: int, fps: float, input: InputSettings, num_clips: int) -> np.ndarray:
    """Frame indices of the test clips: (num_clips, T). Segment sampling has one clip, repeated."""
    if input.sampling == "segment":
        return np.tile(segment_indices(video_frames, input.num_frames), (num_clips, 1))
    window = clip_window(input.num_frames, input.sampling_rate, fps, input.target_fps)
    starts = [view_start(video_frames, window, clip, num_clips) for clip in range(num_clips)]
    return np.stack([_dense(video_frames, start, window, input) for start in starts])


def _dense(video_frames: int, start: float, window: float, input: InputSettings) -> np.ndarray:
    num_frames = input.num_frames
    if input.dense_step == "stride":
        return stride_indices(video_frames, start, window / num_frames, num_frames)
    return dense_indices(video_frames, start, window, num_frames)


def read_clips(reader: FrameReader, indices: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The frames of several clips with one decode: uint8 (T, H, W, C) each."""
    distinct, places = np.unique(np.stack(indices), return_inverse=True)
    frames = reader.frames(distinct)
    return [frames[row] for row in places.reshape(len(indices), -1)]


def read_views(reader: FrameReader, input: InputSettings, num_clips: int, num_crops: int) -> Tensor:
    """All views of an open video with one decode: (num_clips · num_crops, C, T, H, W), clip after clip."""
    return Normalise(input.mean, input.std)(read_pixels(reader, input, num_clips, num_crops))


def read_pixels(reader: FrameReader, input: InputSettings, num_clips: int, num_crops: int) -> Tensor:
    """The pixels that `read_views` makes views of. Frames of several clips are in memory in parts of about PART_BYTES."""
    transform = ViewTransform(input.crop_hw, input.mean, input.std, input.short_side, num_crops)
    indices = view_indices(len(reader), reader.fps, input, num_clips)
    distinct, places = np.unique(indices, return_inverse=True)
    views: Tensor | None = None
    part = max(PART_BYTES // (3 * reader.num_pixels), 1) if num_clips > 1 else len(distinct)
    shape = None
    for first in range(0, len(distinct), part):
        frames = reader.frames(distinct[first : first + part])
        if frames.shape[1:] != (shape := shape or frames.shape[1:]):
            raise size_changed(reader.path, shape, frames.shape[1:])
        with _named(reader.path):
            views = transform.pixels(frames, places.reshape(indices.shape) - first, views)
        del frames  # before the next part is decoded
    assert views is not None
    return views


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Prefix errors of transforms with the video's name."""
    try:
        yield
    except DecodeError as reason:
        raise DecodeError(f"{path}: {reason}") from None


class ClipDataset(Dataset[Any]):
    """Random, augmented clips of videos: `video` (C, T, H, W) float32, `label` int, and the names of the module's docstring.

    What is drawn follows from (seed, epoch, video). Works with a plain DataLoader, whose shuffled numbers are drawn in the
    epoch that `set_epoch` has set last:

    >>> dataset = ClipDataset(videos, VideoFiles("videos"), input, transform)  # doctest: +SKIP
    >>> for epoch in range(10):  # doctest: +SKIP
    ...     dataset.set_epoch(epoch)
    ...     for batch in DataLoader(dataset, batch_size=8, shuffle=True, num_workers=2):
    ...         batch["video"], batch["label"]  # (8, C, T, H, W), (8,)

    Args:
        source: where the videos are opened.
        input: which frames make a clip.
        transform: (frames uint8 (T, H, W, 3), generator) -> clip (C, T, H, W); or pixels and an Erasing or None.
        repeated_aug: clips of each video, numbered by `aug_index`. With more than one, a sample is a list: see `loader.collate`.
        on_bad: what becomes of a video that cannot be decoded: raise DecodeError, or return a BadVideo in its place, or
            substitute the clips of another video with each BadVideo in front of them (a list too).
        mask: draws what is hidden of each clip, for masked pre-training.
        multi_label: `label` is (K,) uint8, 1 for each of the video's labels.
    """

    def __init__(
        self,
        videos: VideoList,
        source: VideoSource,
        input: InputSettings,
        transform: Transform,
        *,
        repeated_aug: int = 1,
        seed: int = 0,
        on_bad: Literal["raise", "return", "substitute"] = "raise",
        mask: DrawMask | None = None,
        multi_label: bool = False,
    ) -> None:
        self.multi_label = multi_label
        self.videos, self.source, self.input, self.transform = videos, source, input, transform
        self.repeated_aug, self.seed, self.on_bad, self.mask = repeated_aug, seed, on_bad, mask
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch for plain indices; loader workers see it when they are next started."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: SampleKey | int) -> dict[str, Any] | BadVideo | list[dict[str, Any] | BadVideo]:
        epoch, index, turn = SampleKey(*key) if isinstance(key, tuple) else (self._epoch, int(key), 0)
        path = self.videos.records[index].path
        try:
            samples = self._samples(index, epoch, path, turn)
        except DecodeError as reason:
            bad = _bad(self.videos, index, reason)
            if self.on_bad == "raise":
                raise DecodeError(f"{bad.reason} ({bad.where})") from None
            samples = self._substituted(epoch, bad, turn) if self.on_bad == "substitute" else [bad]
        return samples[0] if len(samples) == 1 else samples

    def _samples(self, index: int, epoch: int, drawn_by: str, turn: int) -> list[dict[str, Any] | BadVideo]:
        """Clips of a video with one decode, drawn with the generators of the video `drawn_by`."""
        record, first = self.videos.records[index], turn * self.repeated_aug
        rngs = [sample_generator(self.seed, epoch, drawn_by, first + repeat) for repeat in range(self.repeated_aug)]
        with self.source.open(record.path) as reader:
            indices = [training_indices(len(reader), reader.fps, self.input, rng) for rng in rngs]
            clips = read_clips(reader, indices)
        with _named(record.path):
            return [
                _sample(self.transform(frames, rng), record, index, repeat, chosen)
                | self._mask(epoch, drawn_by, repeat)
                | self._label_set(record)
                for repeat, (frames, rng, chosen) in enumerate(zip(clips, rngs, indices, strict=True), first)
            ]

    def _mask(self, epoch: int, drawn_by: str, repeat: int) -> dict[str, Any]:
        return {"mask": self.mask(mask_random("mask", self.seed, epoch, drawn_by, repeat))} if self.mask else {}

    def _label_set(self, record: VideoRecord) -> dict[str, Any]:
        return {"label": label_set(record, len(self.videos.classes))} if self.multi_label else {}

    def _substituted(self, epoch: int, bad: BadVideo, turn: int) -> list[dict[str, Any] | BadVideo]:
        """Clips of a substitute, drawn with the lost video's generator, after all BadVideos on the way."""
        lost: list[dict[str, Any] | BadVideo] = []
        drawn_by = bad.path
        rng = generator("substitutes", self.seed, epoch, drawn_by)
        others = np.delete(np.arange(len(self.videos)), bad.index)
        for index in rng.permutation(others)[:SUBSTITUTES]:
            lost.append(replace(bad, substitute=self.videos.records[index].path))
            try:
                return lost + self._samples(int(index), epoch, drawn_by, turn)
            except DecodeError as reason:
                bad = _bad(self.videos, int(index), reason)
        return [*lost, bad]


def clip_dataset_from(
    data: DataSettings,
    videos: VideoList,
    seed: int,
    source: VideoSource | None = None,
    pixels: bool = False,
    mask: DrawMask | None = None,
    multi_label: bool = False,
) -> ClipDataset:
    """Build the training dataset of a list; bad videos stay in the batches, where a hook handles them.

    Augmentation that is `auto` is what fits so many videos. With `pixels`, `Normalise` and each sample's `erasing` are
    still to make clips of them.
    """
    data = with_augmentation(data, len(videos))
    transform = train_transform_from(data, data)
    return ClipDataset(
        videos,
        source or training_source(data.root, data.decoding),
        data.input,
        transform.pixels if pixels else transform,
        repeated_aug=data.repeated_aug,
        seed=seed,
        on_bad="substitute" if data.on_error == "substitute" else "return",
        mask=mask,
        multi_label=multi_label,
    )


class ViewDataset(Dataset[Any]):
    """All views of one video per number: `video` (clips·crops, C, T, H, W) float32, `label` int; one decode.

    Args:
        source: where the videos are opened.
        input: how clips are sampled, scaled and cropped.
        on_bad: what becomes of a video that cannot be decoded: raise DecodeError, or return a BadVideo in its place.
        pixels: give pixels, of which `Normalise` is still to make clips.
    """

    def __init__(
        self,
        videos: VideoList,
        source: VideoSource,
        input: InputSettings,
        num_clips: int = 1,
        num_crops: int = 1,
        on_bad: Literal["raise", "return"] = "raise",
        pixels: bool = False,
    ) -> None:
        self.videos, self.source, self.input = videos, source, input
        self.num_clips, self.num_crops, self.on_bad = num_clips, num_crops, on_bad
        self.read = read_pixels if pixels else read_views

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> dict[str, Any] | BadVideo:
        record = self.videos.records[index]
        try:
            with self.source.open(record.path) as reader:
                views = self.read(reader, self.input, self.num_clips, self.num_crops)
                first_clip = view_indices(len(reader), reader.fps, self.input, self.num_clips)[0]
        except DecodeError as reason:
            bad = _bad(self.videos, index, reason)
            if self.on_bad == "raise":
                raise DecodeError(f"{bad.reason} ({bad.where})") from None
            return bad
        return _sample(views, record, index, 0, first_clip)


def _sample(
    video: Tensor | tuple[Tensor, Erasing | None],
    record: VideoRecord,
    index: int,
    repeat: int,
    frame_indices: np.ndarray,
) -> dict[str, Any]:
    shown = dict(video=video) if isinstance(video, Tensor) else dict(zip(("video", "erasing"), video, strict=True))
    return dict(
        **shown,
        label=record.label,
        video_name=record.path,
        video_index=index,
        clip_index=0,
        aug_index=repeat,
        repeated_frames=repeated_frames(frame_indices),
    )


def label_set(record: VideoRecord, num_classes: int) -> np.ndarray:
    """1 for each label of a video: (K,) uint8."""
    hot = np.zeros(num_classes, np.uint8)
    hot[list(record.labels)] = 1
    return hot


def _bad(videos: VideoList, index: int, reason: DecodeError) -> BadVideo:
    record = videos.records[index]
    return BadVideo(index, record.path, videos.where(record), str(reason))
