"""Every setting there is: its name, type, default, and one sentence on what it does.

The sentences are the documentation (`mvit-video settings` prints them). A number that comes from a publication
is not here but in the YAML file of its recipe, with its source.
"""

import os
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from mvit_video.errors import clipped

MOST_STRETCH = 0.1  # of a clip that is trained at a smaller size as well: sizes are rounded to what the network divides
AUTO = "auto"  # of model.name, data.train, and what follows from the number of training videos
Positive = Annotated[int, Field(ge=1)]
Above0 = Annotated[float, Field(gt=0)]
From0 = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=0, lt=1)]
Range = tuple[float, float]
Pixels = Annotated[int, Field(ge=1, le=8192)]
Colour = Annotated[float, Field(ge=-1e4, le=1e4)]
Rgb = tuple[Colour, Colour, Colour]
Size = Pixels | tuple[Pixels, Pixels]
MOST_PIXELS = 1 << 28  # of a clip before it is cropped: 64 frames of 2048×2048
VIEWS = "[1-9][0-9]{0,2}x[123]"  # clips × crops
Operations = Annotated[str, Field(pattern=r"^rand-m(\d|10)-n\d+-mstd\d+(\.\d+)?-inc1$")]

# Settings that may be auto. `engine/automatic.py` puts numbers in its place before anything reads them, so that the type
# checker is told of numbers alone.
if TYPE_CHECKING:
    AutoPositive = int
    AutoAbove0 = float
    AutoFrom0 = float
    AutoShare = float
    AutoRange = Range
    AutoOperations = str
else:
    AutoPositive, AutoAbove0, AutoFrom0, AutoShare, AutoRange, AutoOperations = (
        kind | Literal[AUTO] for kind in (Positive, Above0, From0, Share, Range, Operations)
    )


def height_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """One number stands for a square."""
    return (size, size) if isinstance(size, int) else size


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads `yes` and `no` as true and false too, which pydantic would take for 1 and 0."""
        if not _takes_truth(cls.model_fields[info.field_name or ""].annotation) and (truth := _truths(value)):
            text, inside = str(truth[0]).lower(), "" if isinstance(value, bool) else f" in {clipped(repr(value))}"
            raise ValueError(f"{text}{inside} is not allowed here: write a number, or a text in quotes")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _home_is_a_folder(cls, value: Any) -> Any:
        """A shell leaves the ~ of data.root=~/videos as it is."""
        return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def _takes_truth(annotation: Any) -> bool:
    """Whether true and false are values of a type, or of what is in it; settings within settings look after themselves."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return annotation in (bool, Any) or any(map(_takes_truth, get_args(annotation)))


def _truths(value: Any) -> list[bool]:
    """All true and false in nested lists and mappings."""
    found, waiting = [], [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, (list, tuple)):
            waiting += one
        elif isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, bool):
            found.append(one)
    return found


class ModelSettings(Settings):
    name: str = "mvitv2_s_16x4"
    """The network: a name that `mvit_video.list_models()` lists, or auto: that of `weights`, with its input where `data` sets none."""
    arguments: dict[str, Any] = {}
    """Constructor arguments that win over the named ones, such as {drop_path_rate: 0.4}; frames, crop and classes come from `data`."""
    weights: str | None = None
    """A checkpoint to start from: file or address (ours, PySlowFast's, torchvision's, timm's), or name that `mvit-video models` lists."""

    @model_validator(mode="after")
    def _input_size_has_one_home(self) -> "ModelSettings":
        homes = {
            "num_frames": "data.num_frames",
            "crop_size": "data.crop_size",
            "num_classes": "the classes of data.train",
        }
        for argument, home in homes.items():
            if argument in self.arguments:
                raise ValueError(f"{argument} is set by {home}: remove it from model.arguments")
        return self


class InputSettings(Settings):
    """From a video to the network's input: the only part of `data` that travels with the weights (`ModelCard.preprocessing`)."""

    num_frames: Annotated[int, Field(ge=1, le=4096)] = 16
    """Frames in a clip."""
    sampling: Literal["dense", "segment"] = "dense"
    """dense: a window of num_frames × sampling_rate frames; segment: one frame from each of num_frames equal parts of the video."""
    sampling_rate: Annotated[int, Field(ge=1, le=10_000)] = 4
    """Distance between a dense clip's frames, in frames at target_fps; segment sampling has no use for it."""
    dense_step: Literal["linspace", "stride"] = "linspace"
    """linspace: a dense clip spans its window from end to end, as published; stride: its frames are exactly sampling_rate apart."""
    target_fps: Annotated[float, Field(ge=1e-3, le=1000)] = 30.0
    """Frame rate that sampling_rate is stated for; a video of another rate is sampled over the same seconds."""
    short_side: Pixels = 256
    """Evaluation scales the shorter side to this many pixels before it crops, or to more where a wide or tall crop needs it."""
    crop_size: Size = 224
    """Height and width of the network's input in pixels: one number, or [height, width]."""
    mean: Rgb = (0.45, 0.45, 0.45)
    """Subtracted per channel (RGB, values from 0 to 1)."""
    std: Rgb = (0.225, 0.225, 0.225)
    """Divided by per channel, after the mean."""

    @property
    def crop_hw(self) -> tuple[int, int]:
        return height_width(self.crop_size)

    def at_resolution(self, pixels: int) -> "InputSettings":
        """The same with a crop whose shorter side has so many pixels, and all lengths in proportion."""
        height, width = self.crop_hw
        short_side, *crop = (round(length * pixels / min(height, width)) for length in (self.short_side, height, width))
        return self.model_copy(
            update={"short_side": short_side, "crop_size": pixels if height == width else tuple(crop)}
        )

    @model_validator(mode="after")
    def _crop_fits(self) -> "InputSettings":
        if min(self.crop_hw) > self.short_side:
            raise ValueError(
                f"crop_size {self.crop_size} is larger than short_side {self.short_side}: the crop must fit"
            )
        if min(self.std) < 1e-4:
            raise ValueError(f"std {list(self.std)} must be above 0 in every channel, at least 0.0001")
        pixels = self.num_frames * max(self.short_side, *self.crop_hw) ** 2
        if pixels > MOST_PIXELS:
            raise ValueError(
                f"num_frames {self.num_frames} of short_side {self.short_side} and crop_size {self.crop_size} make clips of "
                f"{pixels:,} pixels, and at most {MOST_PIXELS:,} are read: lower one of them"
            )
        return self


class ListSettings(Settings):
    """Which videos there are, and which of them are for what."""

    root: str = "."
    """Folder that the lists below and the paths in them are relative to."""
    train: str | None = None
    """Training videos: rows of `path label`, a folder of class folders, or an official list (datasets/README.md); auto: those in root."""
    val: str | None = None
    """Videos for validation during training; the same forms."""
    test: str | None = None
    """Videos for `mvit-video evaluate`; the same forms; data.val where it is not given."""
    classes: str | None = None
    """Text file of class names, one a line, in the order of the labels; without it classes.txt beside the list, else its own names."""
    val_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of each class's videos for validation where train is auto and there is no val: chosen by hashes of their paths."""
    planned_videos: Positive | None = None
    """Training videos that --dry-run counts with where data.train is not there: those of the published list."""
    planned_classes: Positive | None = None
    """The same for the classes."""
    split_group: str | None = None
    """Regular expression for file names: videos in which it (or its first group) finds the same text stay on one side of that split."""
    follow_links: bool = True
    """Read videos behind symbolic links that lead out of root, as on many clusters; false refuses them."""
    allow_missing: bool = False
    """Go on where files of a list are missing: left out of training, counted as wrong in evaluation, written to missing.txt."""

    @field_validator("split_group")
    @classmethod
    def _is_a_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as reason:
            raise ValueError(f"'{pattern}' is not a regular expression ({reason})") from None
        return pattern


class DecodingSettings(Settings):
    """How frames are read, and what becomes of videos that cannot be."""

    decoder: Literal["pyav", "decord", "frames"] = "pyav"
    """Who decodes; decord's FFmpeg is old: for files of your own only; frames: folders of numbered pictures, which pyav takes too."""
    decode_timeout: Annotated[float, Field(ge=0)] = 60.0
    """Seconds that decoding a clip may take, in a process apart that may hang or crash; 0 decodes in the loader's own process."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Processes that decode and augment; changes speed only, never a sample."""
    on_error: Literal["stop", "skip", "substitute"] = "stop"
    """For a training video that cannot be decoded: stop, leave it out, or take another one; events.jsonl records each."""


class AugmentationSettings(Settings):
    """What training does to clips and evaluation does not."""

    repeated_aug: Positive = 1
    """Clips from each decoded training video, each from its own time and augmented in its own way; clips_per_step counts all of them."""
    crop: Literal["resized", "jitter"] = "resized"
    """Training crop: resized scales a box of random area and shape; jitter scales the shorter side at random, then cuts crop_size out."""
    crop_area: AutoRange = (0.08, 1.0)
    """Resized crop: share of the picture's area, drawn between these; auto: from 0.25 for few videos to 0.08 for many."""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    """Resized crop: width over height, as a share of crop_size's own, drawn between these, uniform in the logarithm."""
    jitter_scales: tuple[Positive, Positive] = (256, 320)
    """Jitter crop: the shorter side in pixels, drawn between these, its inverse uniform."""
    flip: bool = False
    """Mirror half of the training clips left to right; only where no class knows left from right."""
    randaugment: AutoOperations | None = None
    """Picture operations, alike in all frames: rand-m7-n4-mstd0.5-inc1 draws four at magnitude 7 of 10, spread 0.5; auto: m3-n2 or more."""
    color_jitter: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Brightness, contrast and saturation of a training clip change by factors of 1 − this to 1 + this."""
    erasing: AutoShare = 0.0
    """Share of the training clips that get a box of noise, the same box in all frames; auto: from 0 for few videos to 0.25 for many."""
    transforms: tuple[str, ...] = ()
    """Augmentations that plugins register, applied in this order to the cropped clip before it is normalised (docs/extending.md)."""

    @model_validator(mode="after")
    def _ranges_rise(self) -> "AugmentationSettings":
        given = [name for name in ("crop_area", "crop_ratio", "jitter_scales") if getattr(self, name) != AUTO]
        for name in given:
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} [{low:g}, {high:g}] must be two numbers above 0, the smaller one first")
        if "crop_area" in given and self.crop_area[1] > 1:
            raise ValueError(
                f"crop_area [{self.crop_area[0]:g}, {self.crop_area[1]:g}] must not exceed 1, the whole picture"
            )
        return self


Part = TypeVar("Part", bound=Settings)


def part(settings: Settings, kind: type[Part]) -> Part:
    """Those of the settings that are of one kind."""
    return kind(**{name: getattr(settings, name) for name in kind.model_fields})


class DataSettings(AugmentationSettings, DecodingSettings, ListSettings, InputSettings):
    """The section `data` of a config file. Code takes one of its four parts, which stand here in the file's order from right to left."""

    @property
    def input(self) -> InputSettings:
        return part(self, InputSettings)

    @property
    def lists(self) -> ListSettings:
        return part(self, ListSettings)

    @property
    def decoding(self) -> DecodingSettings:
        return part(self, DecodingSettings)

    @property
    def augmentation(self) -> AugmentationSettings:
        return part(self, AugmentationSettings)

    @model_validator(mode="after")
    def _jitter_covers_the_crop(self) -> "DataSettings":
        if self.crop == "jitter" and self.jitter_scales[0] < min(self.crop_hw):
            raise ValueError(
                f"crop_size {self.crop_size} is larger than the smallest of jitter_scales {list(self.jitter_scales)}: "
                "the crop must fit"
            )
        return self


class TrainSettings(Settings):
    epochs: AutoPositive = 200
    """Times that every training video is seen; auto: 30, and more where these are fewer than 2,000 steps."""
    clips_per_step: AutoPositive = 64
    """Clips in one optimiser step, of all processes together; auto: 32, or as few as 8 where an epoch has fewer than 20 steps."""
    clips_per_pass: Positive | None = None
    """Most clips that go through the network at once, in each process; a larger step takes several passes; null for no limit."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw, or sgd with Nesterov momentum."""
    base_lr: AutoAbove0 = 1.6e-3
    """Peak learning rate for 512 clips per step; the one in effect is scaled by clips_per_step / 512; auto: what fits step and network."""
    warmup_epochs: AutoFrom0 = 30.0
    """Epochs over which the rate rises linearly from warmup_lr to its peak; auto: a fifth of all."""
    warmup_lr: AutoFrom0 = 1e-6
    """Learning rate of the first step, for 512 clips per step; auto: a hundredth of base_lr."""
    end_lr: AutoFrom0 = 1e-6
    """Learning rate that half a cosine falls to after the peak, for 512 clips per step; the last step's is just above it; auto as above."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Decay of every parameter with more than one dimension: decoupled in AdamW, added to the gradient in SGD."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each block's learning rate is this share of the next one's, counted from the head, which learns at the full rate; 1 is off."""
    betas: tuple[Factor, Factor] = (0.9, 0.999)
    """AdamW's averaging factors."""
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """SGD's averaging factor."""
    clip_gradient: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest L2 norm of the whole step's gradient; null leaves it alone."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """After a step whose loss or gradient is NaN or Inf has been reported: stop, or skip it and go on with the weights as they were."""
    trainable: Literal["all", "head"] = "all"
    """head trains the last linear layer alone (a linear probe): the rest is frozen and runs as in evaluation."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Factor of a moving average of the weights, validated and saved beside them; smaller in the first steps; null for none."""
    loss: str = "cross_entropy"
    """What is minimised: cross_entropy, or a loss that a plugin registers (docs/extending.md)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the target that is spread evenly over all classes."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of mixup's beta distribution: each clip is averaged with another one of its batch; 0 is off."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of CutMix's beta distribution: each clip gets a box of another one of its batch; 0 is off."""
    mix_switch: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the mixed steps that take CutMix where both alphas are above 0."""
    mix_probability: AutoShare = 1.0
    """Share of the steps that are mixed at all; auto: from 0 for few videos to 1 for many."""
    resolutions: tuple[Size, ...] = ()
    """Smaller sizes that each clip is trained at as well, falling from data.crop_size, such as [160, 128] below 224."""
    teacher: str | None = None
    """A trained network to learn from beside the labels: whatever model.weights takes, with the same classes and frames."""
    distillation: Literal["soft", "hard"] = "soft"
    """Learn the teacher's whole distribution over the classes, or only its best class."""
    distillation_weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the loss that is the teacher's; the labels have the rest."""
    distillation_temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides the logits of both networks in soft distillation: above 1 the classes that the teacher finds unlikely count more."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the network, by autocast, fp16 with loss scaling; all else stays fp32; auto is bf16 on GPUs that have it, else fp32."""
    activation_checkpointing: bool = False
    """Keep only each block's input for the backward pass and compute the rest again: less memory, more time, the same result."""
    compile: bool = False
    """Run the network through torch.compile: minutes at the start, then faster steps on a GPU."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: ddp keeps the whole network in each process; fsdp shares out weights, gradients and optimiser, for L and H."""
    deterministic: bool = False
    """Only algorithms that give the same bits each time; an error where there is none."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides initial weights, order, crops and dropout; nothing else is random."""
    checkpoint_every_steps: Positive = 500
    """Steps between saved training states; one is saved at each validation and at the end too."""
    keep_checkpoints: Positive = 2
    """Newest saved training states that are kept; the best validated one is kept besides."""
    validate_every_epochs: AutoPositive = 10
    """Epochs between validations on data.val, one centre view a video; one is made at the end too; auto: a fifteenth of all."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Who shows the numbers live: tensorboard, wandb (of wandb_project, which alone names it too), or one that a plugin registers."""
    wandb_project: str | None = None
    """Project on Weights & Biases that the numbers are sent to; wants the package wandb."""


class EvaluationSettings(Settings):
    protocol: Annotated[str, Field(pattern=rf"^({VIEWS}|kinetics-5x1|kinetics-5x3|ssv2-1x3)$")] = "5x1"
    """Views per video: clips × crops, such as 5x1 or 1x3; kinetics-5x1, kinetics-5x3 and ssv2-1x3 also insist on the published input."""
    views_per_batch: Positive = 16
    """Views that go through the network at once; changes speed and memory only."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the network in evaluations and validations, as train.precision has it."""
    after_training: bool = False
    """Evaluate data.test, or else data.val, when training ends; the weights then carry the numbers."""


class Config(Settings):
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    train: TrainSettings = TrainSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    plugins: tuple[str, ...] = ()
    """Plugins that these settings need, written by train; each must be installed or named by --plugin: none is loaded from here."""

    @model_validator(mode="after")
    def _resolutions_fall(self) -> "Config":
        larger = self.data.crop_size
        for size in self.train.resolutions:
            if any(one >= other for one, other in zip(height_width(size), height_width(larger), strict=True)):
                raise ValueError(
                    f"train.resolutions {size} is not smaller than {larger} before it: name sizes below data.crop_size "
                    f"{self.data.crop_size}, the larger ones first"
                )
            (height, width), (tall, wide) = height_width(size), self.data.crop_hw
            if abs(width * tall / (height * wide) - 1) > MOST_STRETCH:
                raise ValueError(
                    f"train.resolutions {size} has another shape than data.crop_size {self.data.crop_size}, so clips would be "
                    f"stretched: write [{height}, {round(height * wide / tall)}]"
                )
            larger = size
        return self
