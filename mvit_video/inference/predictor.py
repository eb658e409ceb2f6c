"""Labels for a video: a checkpoint is all it takes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mvit_video.data.annotations import VIDEO_SUFFIXES
from mvit_video.data.dataset import read_views, view_indices
from mvit_video.data.decode import VideoReader
from mvit_video.data.transforms import ViewTransform
from mvit_video.errors import ConfigError, InputError
from mvit_video.evaluation.evaluate import Protocol
from mvit_video.model.checkpoints import ModelCard, load_checkpoint


@dataclass(frozen=True)
class Prediction:
    """The best classes of one video with their scores (0 to 1), best first."""

    path: str
    predictions: tuple[tuple[str, float], ...]

    def as_dict(self) -> dict:
        return {
            "path": self.path,
            "predictions": [{"label": label, "score": score} for label, score in self.predictions],
        }


class Predictor:
    """A network with the names of its classes and everything needed to feed it.

    `predictor(video)` takes a path or an array of frames, uint8 (T, H, W, 3) RGB, and returns a Prediction.
    Raises DecodeError for a video that cannot be decoded.
    """

    def __init__(
        self, model: nn.Module, card: ModelCard, device: torch.device, protocol: Protocol | None = None
    ) -> None:
        self.model, self.card, self.device = model.to(device).eval(), card, device
        self.protocol = protocol or Protocol.parse(card.protocol)

    @classmethod
    def from_checkpoint(cls, path: str | Path, device: str = "auto", protocol: str | None = None) -> "Predictor":
        """From a checkpoint of ours; `protocol` (clips × crops, such as 5x1) is the checkpoint's own by default."""
        model, card = load_checkpoint(path)
        return cls(model, card, choose_device(device), Protocol.parse(protocol) if protocol else None)

    def __call__(self, video: str | Path | np.ndarray, top: int = 5, fps: float = 30.0) -> Prediction:
        """The `top` best classes. `fps` is the rate of an array of frames; a file knows its own."""
        if isinstance(video, np.ndarray):
            return self._prediction("array", self._views_of_array(video, fps), top)
        with VideoReader(video) as reader:
            views = read_views(reader, self.card.preprocessing, self.protocol.clips, self.protocol.crops)
        return self._prediction(str(video), views, top)

    def scores(self, views: Tensor) -> np.ndarray:
        """Softmax scores of each view (V, C, T, H, W): (V, K) float32."""
        with torch.inference_mode():
            logits = torch.cat([self.model(part.to(self.device)) for part in views.split(16)])
        return logits.float().softmax(1).cpu().numpy()

    def _views_of_array(self, frames: np.ndarray, fps: float) -> Tensor:
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
            raise InputError(
                f"frames are {frames.dtype} of shape {frames.shape}, wanted uint8 (frames, height, width, 3), RGB"
            )
        settings = self.card.preprocessing
        transform = ViewTransform(
            settings.crop_hw, settings.mean, settings.std, settings.short_side, self.protocol.crops
        )
        indices = view_indices(len(frames), fps, settings, self.protocol.clips)
        return torch.cat([transform(frames[row]) for row in indices])

    def _prediction(self, path: str, views: Tensor, top: int) -> Prediction:
        mean = self.scores(views).mean(0)
        best = np.argsort(-mean, kind="stable")[:top]
        return Prediction(path, tuple((self.card.classes[place], float(mean[place])) for place in best))


def choose_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one; ConfigError for a device that this machine does not have."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as reason:
        raise ConfigError(
            f"device '{name}' cannot be used here ({str(reason).splitlines()[0]}): try auto or cpu"
        ) from None
    return device


def find_videos(paths: Sequence[str]) -> Iterator[str]:
    """Files as they are given, and the videos of folders, in order of name; ConfigError for a folder without any."""
    for path in paths:
        if not Path(path).is_dir():
            yield path
            continue
        inside = sorted(str(file) for file in Path(path).rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES)
        if not inside:
            raise ConfigError(f"{path}: no videos in this folder, wanted files such as .mp4, .mkv, .webm or .avi")
        yield from inside
