"""Videos as samples: one augmented clip for training, all views of a video for evaluation.

A sample is a dictionary with pytorchvideo's keys (`video`, `label`, `video_name`, `video_index`, `clip_index`,
`aug_index`), so its transforms and models plug in. A video that cannot be decoded is a `BadVideo`, never another video.
"""

import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from mvit_video.config.schema import DataSettings, Preprocessing
from mvit_video.data.annotations import VideoList
from mvit_video.data.decode import VideoReader
from mvit_video.data.guard import GuardedReader, open_reader
from mvit_video.data.sampling import clip_window, dense_indices, random_start, segment_indices, view_start
from mvit_video.data.transforms import TrainTransform, ViewTransform
from mvit_video.errors import DecodeError


class SampleKey(NamedTuple):
    """Which sample: the epoch it is drawn in and the video's place in the list."""

    epoch: int
    video: int


@dataclass(frozen=True)
class BadVideo:
    """A video that gave no clip, and why; `where` is its row in the list."""

    index: int
    path: str
    where: str
    reason: str


def sample_generator(seed: int, epoch: int, video_id: str, repeat: int = 0) -> np.random.Generator:
    """The generator of every draw for one sample: the same on any machine, in any order, with any worker count."""
    return np.random.default_rng([seed, epoch, zlib.crc32(video_id.encode("utf-8")), repeat])


def training_indices(
    video_frames: int, fps: float, preprocessing: Preprocessing, rng: np.random.Generator
) -> np.ndarray:
    """Frames of a random clip: (T,)."""
    if preprocessing.sampling == "segment":
        return segment_indices(video_frames, preprocessing.num_frames, rng)
    window = clip_window(preprocessing.num_frames, preprocessing.sampling_rate, fps, preprocessing.target_fps)
    start = random_start(video_frames, window, rng)
    return dense_indices(video_frames, start, window, preprocessing.num_frames)


def view_indices(video_frames: int, fps: float, preprocessing: Preprocessing, num_clips: int) -> np.ndarray:
    """Frames of the test clips: (num_clips, T). Segment sampling has one clip, repeated."""
    if preprocessing.sampling == "segment":
        return np.tile(segment_indices(video_frames, preprocessing.num_frames), (num_clips, 1))
    window = clip_window(preprocessing.num_frames, preprocessing.sampling_rate, fps, preprocessing.target_fps)
    starts = [view_start(video_frames, window, clip, num_clips) for clip in range(num_clips)]
    return np.stack([dense_indices(video_frames, start, window, preprocessing.num_frames) for start in starts])


def read_views(
    reader: VideoReader | GuardedReader, preprocessing: Preprocessing, num_clips: int, num_crops: int
) -> torch.Tensor:
    """All views of an open video with one decode: (num_clips · num_crops, C, T, H, W), clip after clip."""
    transform = ViewTransform(
        preprocessing.crop_hw, preprocessing.mean, preprocessing.std, preprocessing.short_side, num_crops
    )
    indices = view_indices(len(reader), reader.fps, preprocessing, num_clips)
    distinct, places = np.unique(indices, return_inverse=True)
    return transform(reader.frames(distinct), places.reshape(indices.shape))


class ClipDataset(Dataset):
    """One random, augmented clip per key (epoch, index): `video` (C, T, H, W) float32, `label` int."""

    def __init__(self, videos: VideoList, data: DataSettings, seed: int) -> None:
        self.videos, self.data, self.seed = videos, data, seed
        self.transform = TrainTransform(data.crop_hw, data.mean, data.std, data.crop_area, data.crop_ratio, data.flip)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: SampleKey) -> dict | BadVideo:
        epoch, index = key
        record = self.videos.records[index]
        rng = sample_generator(self.seed, epoch, record.path)
        try:
            with open_reader(record.path, self.data.root, self.data.decoder, self.data.decode_timeout) as reader:
                frames = reader.frames(training_indices(len(reader), reader.fps, self.data, rng))
        except DecodeError as reason:
            return BadVideo(index, record.path, self.videos.where(record), str(reason))
        return _sample(self.transform(frames, rng), record.label, record.path, index)


class ViewDataset(Dataset):
    """All views of one video per index: `video` (clips·crops, C, T, H, W) float32, `label` int; one decode."""

    def __init__(
        self,
        videos: VideoList,
        root: str,
        preprocessing: Preprocessing,
        num_clips: int,
        num_crops: int,
        decoder: str,
        decode_timeout: float = 60.0,
    ) -> None:
        self.videos, self.root, self.preprocessing = videos, root, preprocessing
        self.num_clips, self.num_crops, self.decoder, self.decode_timeout = (
            num_clips,
            num_crops,
            decoder,
            decode_timeout,
        )

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> dict | BadVideo:
        record = self.videos.records[index]
        try:
            with open_reader(record.path, self.root, self.decoder, self.decode_timeout) as reader:
                views = read_views(reader, self.preprocessing, self.num_clips, self.num_crops)
        except DecodeError as reason:
            return BadVideo(index, record.path, self.videos.where(record), str(reason))
        return _sample(views, record.label, record.path, index)


def _sample(video: torch.Tensor, label: int, name: str, index: int) -> dict:
    return dict(video=video, label=label, video_name=name, video_index=index, clip_index=0, aug_index=0)
