"""Which views of a video are scored: published protocols by their names, or clips × crops."""

import re
from dataclasses import dataclass

from mvit_video.config.schema import VIEWS, InputSettings
from mvit_video.errors import ConfigError


@dataclass(frozen=True)
class Protocol:
    """Views per video: clips × crops. One with a name also fixes how frames are sampled, scaled and cropped."""

    clips: int
    crops: int
    name: str = ""
    sampling: str = ""
    """dense or segment, of a named protocol."""
    short_side: int | None = None
    crop_size: int | None = None
    """Pixels of a named protocol; where both are None, the short side is the crop's, whatever that is."""

    @classmethod
    def parse(cls, text: str) -> "Protocol":
        """`5x1` -> 5 clips, 1 crop. Crops are 1 (centre), 2 (the ends) or 3. Or a name of NAMED."""
        if text in NAMED:
            return NAMED[text]
        if not re.fullmatch(VIEWS, text):
            raise ConfigError(
                f"protocol '{text[:40]}' is not CLIPSxCROPS with 1, 2 or 3 crops: write 5x1, 5x3 or 1x3, "
                f"for example, or {_names()}; up to 999 clips"
            )
        clips, _, crops = text.partition("x")
        return cls(int(clips), int(crops))

    def __str__(self) -> str:
        return self.name or f"{self.clips}x{self.crops}"

    @property
    def views(self) -> int:
        return self.clips * self.crops

    def check(self, preprocessing: InputSettings) -> None:
        """Raise ConfigError where a checkpoint with this preprocessing cannot be evaluated so, naming both sides."""
        if self.name and not self._fits(preprocessing):
            raise ConfigError(
                f"protocol {self.name} needs {self.sampling} sampling and {self._sizes()}, the checkpoint was trained with "
                f"{preprocessing.sampling} sampling and {_sizes(preprocessing.short_side, preprocessing.crop_hw)}: "
                f"write {self.clips}x{self.crops} for as many views of the checkpoint's own kind"
            )
        if preprocessing.sampling == "segment" and self.clips > 1:
            raise ConfigError(
                f"protocol {self} has {self.clips} clips, but data.sampling is segment, a checkpoint's as it was trained, "
                f"which has only one: write 1x{self.crops}"
            )

    def _fits(self, preprocessing: InputSettings) -> bool:
        crop = self.crop_size or preprocessing.short_side
        return (
            preprocessing.sampling == self.sampling
            and preprocessing.short_side == (self.short_side or preprocessing.short_side)
            and preprocessing.crop_hw == (crop, crop)
        )

    def _sizes(self) -> str:
        if self.short_side is None or self.crop_size is None:
            return "a short side that is the crop's"
        return _sizes(self.short_side, (self.crop_size, self.crop_size))

    def in_words(
        self, preprocessing: InputSettings, multi_label: bool = False, frames: str = "in-order", fusion: str = "mean"
    ) -> str:
        """The protocol as a reader needs it to repeat the evaluation."""
        order = "" if frames == "in-order" else f" The frames of each clip are {frames}."
        return (
            f"{_clips(self, preprocessing)}{order} {_crops(self, preprocessing)} {_scores(self, multi_label, fusion)}"
        )


NAMED = {
    protocol.name: protocol
    for protocol in (
        Protocol(5, 1, "kinetics-5x1", "dense", 256, 224),
        Protocol(5, 3, "kinetics-5x3", "dense", 312, 312),
        Protocol(1, 3, "ssv2-1x3", "segment"),
    )
}


def _names() -> str:
    *first, last = NAMED
    return f"{', '.join(first)} or {last}"


def _sizes(short_side: int, crop: tuple[int, int]) -> str:
    return f"short side {short_side} → crop {crop[0]}×{crop[1]}"


def _clips(protocol: Protocol, preprocessing: InputSettings) -> str:
    frames, fps = preprocessing.num_frames, f"{preprocessing.target_fps:g}"
    if preprocessing.sampling == "segment":
        return f"One clip of {frames} frames: the middle one of each of {frames} equal parts of the video."
    length = frames * preprocessing.sampling_rate
    seconds = length / preprocessing.target_fps
    clip = f"{frames} frames, evenly spaced over {length} frames at {fps} fps ({seconds:.2f} s)"
    if protocol.clips == 1:
        return f"One clip of {clip}, from the middle of the video."
    return (
        f"{protocol.clips} clips of {clip}; clip k of n starts at frame k · floor((N − window) / (n − 1)), k from 0, "
        "of the video's N frames."
    )


def _crops(protocol: Protocol, preprocessing: InputSettings) -> str:
    size = "×".join(str(length) for length in preprocessing.crop_hw)
    where = {
        1: f"the centre of {size} pixels is cropped",
        2: f"{size} pixels are cropped at both ends of the longer side",
        3: f"{size} pixels are cropped at left, centre and right (top, centre and bottom of an upright video)",
    }
    more = "" if preprocessing.crop_hw[0] == preprocessing.crop_hw[1] else " (or more, until the crop fits)"
    return f"The short side is scaled to {preprocessing.short_side} pixels{more}, and {where[protocol.crops]}."


def _scores(protocol: Protocol, multi_label: bool, fusion: str) -> str:
    kind = "sigmoid" if multi_label else "softmax"
    how = "largest" if fusion == "max" else "mean"
    mean = f"the {how} {kind} of its {protocol.views} views" if protocol.views > 1 else f"the {kind} of its one view"
    return f"A video's score is {mean}. Every video counts once; one that cannot be decoded counts as wrong."
