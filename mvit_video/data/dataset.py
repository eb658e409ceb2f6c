"""Videos as samples: augmented clips for training, all views of a video for evaluation.

A sample is a dictionary with pytorchvideo's keys (`video`, `label`, `video_name`, `video_index`, `clip_index`,
`aug_index`), so its transforms and models plug in, and `repeated_frames`: how many frames of a clip show one of the
others again, because the video is too short. A video that cannot be decoded is a `BadVideo`. Another one takes its
place only in training, only where the settings say so, and never without the `BadVideo` beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from mvit_video.config.schema import DataSettings, InputSettings
from mvit_video.data.draws import generator
from mvit_video.data.lists.read import VideoList, VideoRecord
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
from mvit_video.data.transforms import TrainTransform, ViewTransform
from mvit_video.data.video.guard import Reader, open_reader
from mvit_video.errors import DecodeError

SUBSTITUTES = 10  # videos that are tried in the place of a bad one


class SampleKey(NamedTuple):
    """Which sample: the epoch it is drawn in and the video's place in the list."""

    epoch: int
    video: int


@dataclass(frozen=True)
class BadVideo:
    """A video that gave no clip, and why; `where` is its row in the list, `substitute` the video in its place, if any."""

    index: int
    path: str
    where: str
    reason: str
    substitute: str | None = None


def sample_generator(seed: int, epoch: int, video_id: str, repeat: int = 0) -> np.random.Generator:
    """The generator of every draw for one sample: the same on any machine, in any order, with any worker count."""
    return generator("clip", seed, epoch, video_id, repeat)


def training_indices(
    video_frames: int, fps: float, preprocessing: InputSettings, rng: np.random.Generator
) -> np.ndarray:
    """Frames of a random clip: (T,)."""
    if preprocessing.sampling == "segment":
        return segment_indices(video_frames, preprocessing.num_frames, rng)
    window = clip_window(preprocessing.num_frames, preprocessing.sampling_rate, fps, preprocessing.target_fps)
    return _dense(video_frames, random_start(video_frames, window, rng), window, preprocessing)


def view_indices(video_frames: int, fps: float, preprocessing: InputSettings, num_clips: int) -> np.ndarray:
    """Frames of the test clips: (num_clips, T). Segment sampling has one clip, repeated."""
    if preprocessing.sampling == "segment":
        return np.tile(segment_indices(video_frames, preprocessing.num_frames), (num_clips, 1))
    window = clip_window(preprocessing.num_frames, preprocessing.sampling_rate, fps, preprocessing.target_fps)
    starts = [view_start(video_frames, window, clip, num_clips) for clip in range(num_clips)]
    return np.stack([_dense(video_frames, start, window, preprocessing) for start in starts])


def _dense(video_frames: int, start: float, window: float, preprocessing: InputSettings) -> np.ndarray:
    num_frames = preprocessing.num_frames
    if preprocessing.dense_step == "stride":
        return stride_indices(video_frames, start, window / num_frames, num_frames)
    return dense_indices(video_frames, start, window, num_frames)


def read_clips(reader: Reader, indices: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The frames of several clips with one decode: uint8 (T, H, W, C) each."""
    distinct, places = np.unique(np.stack(indices), return_inverse=True)
    frames = reader.frames(distinct)
    return [frames[row] for row in places.reshape(len(indices), -1)]


def read_views(reader: Reader, preprocessing: InputSettings, num_clips: int, num_crops: int) -> torch.Tensor:
    """All views of an open video with one decode: (num_clips · num_crops, C, T, H, W), clip after clip."""
    transform = ViewTransform(
        preprocessing.crop_hw, preprocessing.mean, preprocessing.std, preprocessing.short_side, num_crops
    )
    indices = view_indices(len(reader), reader.fps, preprocessing, num_clips)
    distinct, places = np.unique(indices, return_inverse=True)
    return transform(reader.frames(distinct), places.reshape(indices.shape))


class ClipDataset(Dataset):
    """Random, augmented clips per key (epoch, index): `video` (C, T, H, W) float32, `label` int.

    A key gives one sample, or a list of them: `repeated_aug` clips of a video, numbered by `aug_index`, and with
    on_error = "substitute" each `BadVideo` in front of the clips that stand for it.
    """

    def __init__(self, videos: VideoList, data: DataSettings, seed: int) -> None:
        self.videos, self.data, self.seed = videos, with_augmentation(data, len(videos)), seed
        self.transform = TrainTransform.from_settings(self.data)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: SampleKey) -> dict | BadVideo | list[dict | BadVideo]:
        epoch, index = key
        path = self.videos.records[index].path
        try:
            samples = self._samples(index, epoch, path)
        except DecodeError as reason:
            bad = _bad(self.videos, index, reason)
            samples = self._substituted(epoch, bad) if self.data.on_error == "substitute" else [bad]
        return samples[0] if len(samples) == 1 else samples

    def _samples(self, index: int, epoch: int, drawn_by: str) -> list[dict | BadVideo]:
        """The clips of a video, with one decode and the draws that belong to the video `drawn_by`."""
        record, data = self.videos.records[index], self.data
        rngs = [sample_generator(self.seed, epoch, drawn_by, repeat) for repeat in range(data.repeated_aug)]
        with open_reader(record.path, data.root, data.decoder, data.decode_timeout) as reader:
            indices = [training_indices(len(reader), reader.fps, data, rng) for rng in rngs]
            clips = read_clips(reader, indices)
        return [
            _sample(self.transform(frames, rng), record, index, repeat, chosen)
            for repeat, (frames, rng, chosen) in enumerate(zip(clips, rngs, indices, strict=True))
        ]

    def _substituted(self, epoch: int, bad: BadVideo) -> list[dict | BadVideo]:
        """The clips of another video, which the lost one's own generator draws, behind all that were lost on the way."""
        lost: list[dict | BadVideo] = []
        drawn_by = bad.path
        rng = generator("substitutes", self.seed, epoch, drawn_by)
        others = np.delete(np.arange(len(self.videos)), bad.index)
        for index in rng.permutation(others)[:SUBSTITUTES]:
            lost.append(replace(bad, substitute=self.videos.records[index].path))
            try:
                return lost + self._samples(int(index), epoch, drawn_by)
            except DecodeError as reason:
                bad = _bad(self.videos, int(index), reason)
        return [*lost, bad]


class ViewDataset(Dataset):
    """All views of one video per index: `video` (clips·crops, C, T, H, W) float32, `label` int; one decode."""

    def __init__(
        self,
        videos: VideoList,
        root: str,
        preprocessing: InputSettings,
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
                first_clip = view_indices(len(reader), reader.fps, self.preprocessing, self.num_clips)[0]
        except DecodeError as reason:
            return _bad(self.videos, index, reason)
        return _sample(views, record, index, 0, first_clip)


def _sample(video: torch.Tensor, record: VideoRecord, index: int, repeat: int, frame_indices: np.ndarray) -> dict:
    return dict(
        video=video,
        label=record.label,
        video_name=record.path,
        video_index=index,
        clip_index=0,
        aug_index=repeat,
        repeated_frames=repeated_frames(frame_indices),
    )


def _bad(videos: VideoList, index: int, reason: DecodeError) -> BadVideo:
    record = videos.records[index]
    return BadVideo(index, record.path, videos.where(record), str(reason))
