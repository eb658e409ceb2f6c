"""Who takes part in `mvit-video benchmark-data`: ways from a file to the same centre view of the same frames."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mvit_video.compat import import_pytorchvideo
from mvit_video.config.schema import DataSettings, InputSettings
from mvit_video.data.lists.read import VideoList
from mvit_video.data.sampling import clip_window, dense_indices
from mvit_video.data.transforms import ViewTransform, crop_at
from mvit_video.data.video.reader import VideoReader
from mvit_video.errors import ConfigError, DecodeError


@dataclass(frozen=True)
class ClipReader:
    """`read` takes the number of a clip, `finish` what it gave: the view (C, T, H, W)."""

    read: Callable[[int], Any]
    finish: Callable[[Any], Tensor]


@dataclass(frozen=True)
class Clip:
    """Frames `first` to `first + length − 1` of a file that shows `fps` a second."""

    file: str
    first: int
    length: int
    num_frames: int
    fps: float


def draw_clips(videos: VideoList, data: DataSettings, count: int) -> list[Clip]:
    """Random clips of random videos, at whole frames so that all readers can read the same ones."""
    rng, clips = np.random.default_rng(1), []
    for index in rng.integers(len(videos), size=count):
        file = str(Path(data.root) / videos.records[index].path)
        try:
            with VideoReader(file) as reader:
                length = min(
                    round(clip_window(data.num_frames, data.sampling_rate, reader.fps, data.target_fps)), len(reader)
                )
                first = int(rng.integers(len(reader) - length + 1))
                clips.append(Clip(file, first, length, len(reader), reader.fps))
        except DecodeError:
            continue
    if not clips:
        raise ConfigError(f"{videos.source}: none of its videos can be opened: run `mvit-video verify`")
    return clips


def readers_to_compare(
    clips: Sequence[Clip], data: DataSettings, against: str | None, originals: str | None
) -> dict[str, ClipReader]:
    """By name: our reader on the clips' files, then the others that were asked for."""
    found = {"ours": _ours(clips, data)}
    sources = _originals(clips, data.root, originals) if originals else None
    if sources:
        found["ours on the originals"] = _ours(sources, data)
    if against == "pytorchvideo":
        found["pytorchvideo"] = _pytorchvideo(clips, data)
        if sources:
            found["pytorchvideo on the originals"] = _pytorchvideo(sources, data)
    return found


def _originals(clips: Sequence[Clip], root: str, originals: str) -> list[Clip]:
    """The same clips in the files that they were prepared from, by the manifest."""
    manifest = Path(root) / "manifest.jsonl"
    if not manifest.is_file():
        raise ConfigError(f"{root}: contains no manifest.jsonl: --originals is for folders that `prepare` wrote")
    records = map(json.loads, manifest.read_text(encoding="utf-8").split("\n")[:-1])
    sources = {str(Path(root) / record["path"]): str(Path(originals) / record["source"]) for record in records}
    unknown = next((clip.file for clip in clips if clip.file not in sources), None)
    if unknown is not None:
        raise ConfigError(f"{unknown}: is not in {manifest}, so it has no original: drop --originals")
    return [replace(clip, file=sources[clip.file]) for clip in clips]


def _ours(clips: Sequence[Clip], data: InputSettings) -> ClipReader:
    transform = ViewTransform(data.crop_hw, data.mean, data.std, data.short_side, 1)

    def read(number: int) -> np.ndarray:
        clip = clips[number]
        with VideoReader(clip.file) as reader:
            return reader.frames(dense_indices(clip.num_frames, clip.first, clip.length, data.num_frames))

    return ClipReader(read, lambda frames: transform(frames)[0])


def _pytorchvideo(clips: Sequence[Clip], data: InputSettings) -> ClipReader:
    """Its LabeledVideoDataset with PyAV, without sound, and its transforms in the order of its tutorials."""
    import_pytorchvideo()
    from pytorchvideo.data import LabeledVideoDataset
    from pytorchvideo.data.clip_sampling import ClipInfo, ClipSampler
    from pytorchvideo.transforms import Div255, Normalize, ShortSideScale, UniformTemporalSubsample
    from torch.utils.data import SequentialSampler

    class GivenClip(ClipSampler):
        def __init__(self) -> None:
            super().__init__(0)

        def __call__(self, last_clip_time, video_duration, annotation):
            return ClipInfo(annotation["start"], annotation["end"], 0, 0, True)

    steps = (
        UniformTemporalSubsample(data.num_frames),
        Div255(),
        Normalize(data.mean, data.std),
        ShortSideScale(data.short_side),
    )

    def finish(sample: dict) -> Tensor:
        video = sample["video"]
        for step in steps:
            video = step(video)
        return crop_at(video, data.crop_hw, 1)

    def place(clip: Clip) -> tuple[str, dict]:
        fps = Fraction(clip.fps).limit_denominator(1001)
        return clip.file, {"start": clip.first / fps, "end": (clip.first + clip.length) / fps}

    def read(number: int) -> dict:
        dataset = LabeledVideoDataset(
            [place(clips[number])], GivenClip(), SequentialSampler, decode_audio=False, decoder="pyav"
        )
        try:
            return next(dataset)
        except (StopIteration, RuntimeError) as reason:
            text = f"its PyAV decoder gave nothing for {clips[number].file} ({reason})"
            raise ConfigError(f"pytorchvideo cannot be compared: {text}: drop --against") from None

    return ClipReader(read, finish)
