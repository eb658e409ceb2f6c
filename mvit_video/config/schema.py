"""Every setting there is: its name, type, default, and one sentence on what it does.

The sentences are the documentation (`mvit-video settings` prints them). A number that comes from a publication
is not here but in the YAML file of its recipe, with its source.
"""

import os
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from mvit_video.errors import clipped

MAX_ASPECT_CHANGE = 0.1  # of train.resolutions: sizes are rounded to what the network divides
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
MAX_CLIP_PIXELS = 1 << 28  # of a clip before cropping: 64 frames of 2048×2048
VIEWS = "[1-9][0-9]{0,2}x[123]"  # clips × crops
Operations = Annotated[str, Field(pattern=r"^rand-m(\d|10)-n\d+-mstd\d+(\.\d+)?-inc1$")]

# Settings that may be auto. `engine/automatic.py` puts numbers in its place before anything reads them, so the type
# checker sees plain numbers.
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
    """(height, width) of a size; a single number is a square."""
    return (size, size) if isinstance(size, int) else size


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads `yes` and `no` as booleans, which pydantic would accept as 1 and 0."""
        if not _accepts_bool(cls.model_fields[info.field_name or ""].annotation) and (truth := _bools_in(value)):
            text, inside = str(truth[0]).lower(), "" if isinstance(value, bool) else f" in {clipped(repr(value))}"
            raise ValueError(f"{text}{inside} is not allowed here: write a number, or quote the text")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _expand_home(cls, value: Any) -> Any:
        """Expand ~, which shells leave alone in data.root=~/videos."""
        return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def _accepts_bool(annotation: Any) -> bool:
    """Whether a type, or a type nested in it, accepts booleans; nested settings check themselves."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return annotation in (bool, Any) or any(map(_accepts_bool, get_args(annotation)))


def _bools_in(value: Any) -> list[bool]:
    """Collect all booleans in nested lists and mappings."""
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
    """Network: a name from `mvit_video.list_models()`, or auto: the network of `weights`, with its input unless `data` overrides it."""
    arguments: dict[str, Any] = {}
    """Constructor arguments that override those of `name`, such as {drop_path_rate: 0.4}; frames, crop and classes come from `data`."""
    weights: str | None = None
    """Checkpoint to start from: a file or URL (ours, PySlowFast's, torchvision's, timm's), or a name from `mvit-video models`."""

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
    """How a video becomes the network's input: the only part of `data` that is saved with the weights (`ModelCard.preprocessing`)."""

    num_frames: Annotated[int, Field(ge=1, le=4096)] = 16
    """Frames in a clip."""
    sampling: Literal["dense", "segment"] = "dense"
    """dense: a window of num_frames × sampling_rate frames; segment: one frame from each of num_frames equal parts of the video."""
    sampling_rate: Annotated[int, Field(ge=1, le=10_000)] = 4
    """Distance between the frames of a dense clip, in frames at target_fps; ignored by segment sampling."""
    dense_step: Literal["linspace", "stride"] = "linspace"
    """linspace: a dense clip spans its window from end to end, as published; stride: its frames are exactly sampling_rate apart."""
    target_fps: Annotated[float, Field(ge=1e-3, le=1000)] = 30.0
    """Frame rate that sampling_rate refers to; a video of another rate is sampled over the same duration."""
    short_side: Pixels = 256
    """Evaluation scales the shorter side to this many pixels before cropping, or to more if a wide or tall crop needs it."""
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
        """Scale crop and short side so that the crop's shorter side has `pixels` pixels."""
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
        if pixels > MAX_CLIP_PIXELS:
            raise ValueError(
                f"num_frames {self.num_frames} of short_side {self.short_side} and crop_size {self.crop_size} make clips of "
                f"{pixels:,} pixels, above the limit of {MAX_CLIP_PIXELS:,}: lower one of them"
            )
        return self


class ListSettings(Settings):
    """Which videos are used for training, validation and evaluation."""

    root: str = "."
    """Folder that the lists below, and the paths in them, are relative to."""
    train: str | None = None
    """Training videos: `path label` rows, a folder of class folders, or an official list (datasets/README.md); auto: found in root."""
    val: str | None = None
    """Videos for validation during training, in the same formats."""
    test: str | None = None
    """Videos for `mvit-video evaluate`, in the same formats; data.val if unset."""
    classes: str | None = None
    """Text file of class names, one per line in label order; if unset, classes.txt next to the list, else the list's own names."""
    val_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Fraction of each class's videos held out for validation if train is auto and there is no val; chosen by a hash of their paths."""
    planned_videos: Positive | None = None
    """Number of training videos that --dry-run assumes if data.train is missing: that of the published list."""
    planned_classes: Positive | None = None
    """Number of classes that --dry-run assumes if data.train is missing."""
    sampling_balance: Literal["none", "sqrt", "class"] = "none"
    """none: each video once in an epoch; class: as many videos of each class; sqrt: in proportion to the root of a class's number."""
    split_group: str | None = None
    """Regular expression for file names: videos for which it (or its first group) matches the same text are not split up."""
    follow_links: bool = True
    """Follow symbolic links to videos outside root, as on many clusters; false refuses them."""
    allow_missing: bool = False
    """Continue if listed files are missing: left out of training, counted as wrong in evaluation, written to missing.txt."""

    @field_validator("split_group")
    @classmethod
    def _is_a_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as reason:
            raise ValueError(f"'{pattern}' is not a regular expression ({reason})") from None
        return pattern


class DecodingSettings(Settings):
    """How frames are decoded, and what happens to videos that cannot be."""

    decoder: Literal["pyav", "decord", "frames"] = "pyav"
    """pyav; decord (its FFmpeg is old: use it only on files you trust); or frames, folders of numbered images, which pyav also reads."""
    decode_timeout: Annotated[float, Field(ge=0)] = 60.0
    """Seconds allowed for decoding a clip, in a separate process that may hang or crash; 0 decodes in the loader worker itself."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Worker processes that decode and augment; affects speed only, never the samples."""
    decoded_side: Pixels | None = None
    """Training and its validations scale the shorter side of frames to this many pixels as they are decoded, before crops; null: not."""
    cache: str | None = None
    """Folder in which training and its validations keep decoded frames, for later epochs and runs; null: decode in every epoch."""
    cache_gib: Annotated[float, Field(gt=0, le=1e6)] = 8.0
    """Size of data.cache in GiB, about; a video that does not fit, or takes more than a 64th of it, is decoded in every epoch."""
    on_error: Literal["stop", "skip", "substitute"] = "stop"
    """If a training video cannot be decoded: stop, skip it, or substitute another one; each is recorded in events.jsonl."""


class AugmentationSettings(Settings):
    """Augmentation of training clips."""

    repeated_aug: Positive = 1
    """Clips drawn from each decoded training video, sampled and augmented independently; clips_per_step counts all of them."""
    crop: Literal["resized", "jitter"] = "resized"
    """Training crop: resized scales a box of random area and aspect ratio; jitter scales the shorter side at random, then crops."""
    crop_area: AutoRange = (0.08, 1.0)
    """Resized crop: range of the fraction of the frame's area; auto: the minimum is 0.25 for few videos down to 0.08 for many."""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    """Resized crop: range of the aspect ratio relative to crop_size's, log-uniform."""
    jitter_scales: tuple[Positive, Positive] = (256, 320)
    """Jitter crop: range of the shorter side in pixels; its inverse is uniform."""
    flip: bool = False
    """Mirror half of the training clips left to right, unless some classes differ only in direction (left/right)."""
    randaugment: AutoOperations | None = None
    """RandAugment, the same in all frames: rand-m7-n4-mstd0.5-inc1 draws 4 at magnitude 7 of 10, deviation 0.5; auto: m3-n2 or more."""
    color_jitter: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Brightness, contrast and saturation of a training clip are scaled by 1 − color_jitter to 1 + color_jitter."""
    erasing: AutoShare = 0.0
    """Probability that a box of a training clip is replaced by noise, the same in all frames; auto: 0 for few videos to 0.25 for many."""
    transforms: tuple[str, ...] = ()
    """Augmentations registered by plugins, applied in this order to the cropped clip before normalisation (docs/extending.md)."""

    @model_validator(mode="after")
    def _ranges_rise(self) -> "AugmentationSettings":
        given = [name for name in ("crop_area", "crop_ratio", "jitter_scales") if getattr(self, name) != AUTO]
        for name in given:
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} [{low:g}, {high:g}] must be two numbers above 0, the smaller one first")
        if "crop_area" in given and self.crop_area[1] > 1:
            raise ValueError(
                f"crop_area [{self.crop_area[0]:g}, {self.crop_area[1]:g}] must not exceed 1, the whole frame"
            )
        return self


Part = TypeVar("Part", bound=Settings)


def part(settings: Settings, kind: type[Part]) -> Part:
    """The settings of one part, such as `InputSettings` of the section `data`."""
    return kind(**{name: getattr(settings, name) for name in kind.model_fields})


class DataSettings(AugmentationSettings, DecodingSettings, ListSettings, InputSettings):
    """The section `data` of a config file. Code takes one of its four parts; pydantic lists fields from the last base to the first."""

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

    @model_validator(mode="after")
    def _decoded_frames_are_large_enough(self) -> "DataSettings":
        needed, name = self.short_side, "short_side"
        if self.crop == "jitter" and self.jitter_scales[1] > needed:
            needed, name = self.jitter_scales[1], "the largest of jitter_scales"
        if self.decoded_side is not None and self.decoded_side < needed:
            raise ValueError(
                f"decoded_side {self.decoded_side} is smaller than {name}, {needed}, which frames are scaled to later: make it "
                f"{needed} or more, or null"
            )
        return self


class TrainSettings(Settings):
    epochs: AutoPositive = 200
    """Passes over the training videos; auto: 30, or more if these are fewer than 2,000 steps."""
    clips_per_step: AutoPositive = 64
    """Clips per optimiser step, over all processes; auto: 32, or as few as 8 if an epoch would have fewer than 20 steps."""
    clips_per_pass: Positive | None = None
    """Micro-batch: at most this many clips per forward pass in each process; larger steps accumulate gradients; null: no limit."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw, or sgd with Nesterov momentum."""
    base_lr: AutoAbove0 = 1.6e-3
    """Peak learning rate for 512 clips per step, scaled by clips_per_step / 512; auto: from step size, network width and model.weights."""
    warmup_epochs: AutoFrom0 = 30.0
    """Epochs over which the learning rate rises linearly from warmup_lr to its peak; auto: a fifth of all."""
    warmup_lr: AutoFrom0 = 1e-6
    """Learning rate of the first step, for 512 clips per step; auto: a hundredth of base_lr."""
    end_lr: AutoFrom0 = 1e-6
    """Learning rate that the half cosine ends at (the last step is just above it), for 512 clips per step; auto: a hundredth of base_lr."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Weight decay of parameters with more than one dimension: decoupled in AdamW, added to the gradient in SGD."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor between the learning rates of a block and the next one towards the head, which has the full rate; 1 is off."""
    betas: tuple[Factor, Factor] = (0.9, 0.999)
    """Betas of AdamW."""
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Momentum of SGD."""
    clip_gradient: Annotated[float, Field(gt=0)] | None = 1.0
    """Maximum L2 norm of a step's gradient; null does not clip."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """After reporting a step whose loss or gradient is NaN or Inf: stop, or skip it and leave the weights unchanged."""
    trainable: Literal["all", "head"] = "all"
    """all, or head: only the last linear layer (a linear probe); the rest is frozen and in evaluation mode."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, validated and saved too; smaller in the first steps; null: none."""
    objective: Literal["labels", "masked"] = "labels"
    """labels: train a classifier; masked: predict what is hidden, without labels, as `mvit-video pretrain` sets it."""
    loss: str = "cross_entropy"
    """Loss: cross_entropy, focal, logit_adjusted (uneven classes), binary_cross_entropy (several labels), or a plugin's."""
    class_weights: dict[str, Above0] | Literal["balanced"] | None = None
    """Factor of a clip's loss by its class: names with factors, such as {fall: 5}, others 1; or balanced: the rarer the larger, mean 1."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Fraction of the target that is spread evenly over all classes."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of mixup's beta distribution: each clip is blended with another of its batch; 0 is off."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of CutMix's beta distribution: a box of each clip is replaced by that of another of its batch; 0 is off."""
    mix_switch: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability of CutMix in a mixed step, if both alphas are above 0."""
    mix_probability: AutoShare = 1.0
    """Probability that a step is mixed at all; auto: 0 for few videos to 1 for many."""
    resolutions: tuple[Size, ...] = ()
    """Smaller sizes at which each clip is trained too, in falling order, such as [160, 128] below a data.crop_size of 224."""
    teacher: str | None = None
    """Trained network to distil from: anything model.weights accepts, with the same classes and frames."""
    distillation: Literal["soft", "hard"] = "soft"
    """soft: learn the teacher's distribution over the classes; hard: only its top class."""
    distillation_weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Weight of the teacher's loss; the labels' loss has the rest."""
    distillation_temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of soft distillation, which divides the logits of both networks: above 1 unlikely classes count more."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast precision of the network (fp16 with loss scaling); parameters stay fp32; auto: bf16 on GPUs that have it, else fp32."""
    activation_checkpointing: bool = False
    """Keep only the input of each block for the backward pass and recompute the rest: less memory, more time, same result."""
    compile: bool = False
    """Compile the network with torch.compile: minutes at the start, then faster steps on a GPU."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: ddp replicates the network in each process; fsdp shards weights, gradients and optimiser, for L and H."""
    deterministic: bool = False
    """Use only deterministic algorithms; an error where there is none."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of initial weights, order, augmentation and dropout; nothing else is random."""
    checkpoint_every_steps: Positive = 500
    """Steps between saved training states; one is also saved at each validation and at the end."""
    keep_checkpoints: Positive = 2
    """Number of newest training states to keep; the best validated one is kept as well."""
    validate_every_epochs: AutoPositive = 10
    """Epochs between validations on data.val, one centre view per video; one also runs at the end; auto: a fifteenth of all."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Live metrics: tensorboard, wandb (also enabled by wandb_project alone), or trackers registered by plugins."""
    wandb_project: str | None = None
    """Weights & Biases project that metrics are sent to; needs the package wandb."""


class PretrainSettings(Settings):
    """Masked pre-training, `mvit-video pretrain` (docs/pretraining.md)."""

    target: Literal["hog", "pixels"] = "hog"
    """What is predicted of hidden cells: hog, histograms of oriented gradients (MaskFeat); pixels, normalised by patch."""
    predict_from: tuple[Annotated[int, Field(ge=0, le=999)], ...] = ()
    """Blocks that are predicted from, counted from 0, in rising order up to the last one; empty: the last one alone."""
    mask: Literal["cube", "tube", "frames"] = "cube"
    """What is hidden: cube, cuboids of random size and length; tube, rectangles in all frames alike; frames, whole frames."""
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.4
    """Fraction of the cells that is hidden, at most."""
    mask_cell: Annotated[int, Field(ge=4, le=1024)] = 32
    """Side of a hidden cell in pixels: divides data.crop_size, and is a multiple of the distance of tokens; lasts one step of patches."""
    gaussian_window: Annotated[int, Field(ge=0, le=1024)] = 0
    """Weigh gradients of the histograms by a tiled Gaussian of this many pixels: 16 in MMSelfSup, 0, none, in PySlowFast."""


class EvaluationSettings(Settings):
    protocol: Annotated[str, Field(pattern=rf"^({VIEWS}|kinetics-5x1|kinetics-5x3|ssv2-1x3)$")] = "5x1"
    """Views per video: clips × crops, such as 5x1 or 1x3; kinetics-5x1, kinetics-5x3 and ssv2-1x3 also require the published input."""
    fusion: Literal["mean", "max"] = "mean"
    """A video's score of a class: the mean over its views, or the largest (max, as published for Charades); goes with the weights."""
    views_per_batch: Positive = 16
    """Views per forward pass; affects speed and memory only."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the network in evaluations and validations, as train.precision has it."""
    after_training: bool = False
    """Evaluate data.test, or else data.val, when training ends; the accuracies are saved with the weights."""


class Config(Settings):
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    train: TrainSettings = TrainSettings()
    pretrain: PretrainSettings = PretrainSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    plugins: tuple[str, ...] = ()
    """Plugins that these settings need, written by train; they are never loaded from here: install them, or pass --plugin."""

    @model_validator(mode="after")
    def _resolutions_fall(self) -> "Config":
        larger = self.data.crop_size
        for size in self.train.resolutions:
            if any(one >= other for one, other in zip(height_width(size), height_width(larger), strict=True)):
                raise ValueError(
                    f"train.resolutions {size} is not smaller than {larger}: name sizes below data.crop_size "
                    f"{self.data.crop_size}, largest first"
                )
            (height, width), (tall, wide) = height_width(size), self.data.crop_hw
            if abs(width * tall / (height * wide) - 1) > MAX_ASPECT_CHANGE:
                raise ValueError(
                    f"train.resolutions {size} has another aspect ratio than data.crop_size {self.data.crop_size} and would "
                    f"stretch clips: write [{height}, {round(height * wide / tall)}]"
                )
            larger = size
        return self
