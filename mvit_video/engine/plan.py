"""Describe a run with its effective numbers: printed at its start, and by `train --dry-run`."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mvit_video.config.schema import AUTO, Config, DataSettings, height_width
from mvit_video.data.frame_cache import cache_room
from mvit_video.data.loader import steps_per_epoch
from mvit_video.data.transform_registry import TRANSFORMS
from mvit_video.engine.distributed import world_size
from mvit_video.engine.losses import LOSSES, check_resolutions
from mvit_video.engine.masked import mask_window
from mvit_video.engine.optimizer import freeze_all_but_head
from mvit_video.engine.schedule import CLIPS_OF_BASE_LR, learning_rate_from
from mvit_video.model.precision import resolve_precision
from mvit_video.model.registry import build_masked, build_model, model_entry
from mvit_video.plugins import Registry
from mvit_video.printable import counted


def meta_model(config: Config, num_classes: int | None) -> nn.Module:
    """Build the configured network without weights, on the meta device if it supports that.

    `num_classes=None` builds its default head. In masked pre-training it is the network's pre-training form.
    """
    data, form = config.data, config.pretrain
    arguments = dict(num_frames=data.num_frames, crop_size=data.crop_size, **config.model.arguments)
    with torch.device("meta" if model_entry(config.model.name).capabilities.meta else "cpu"):
        if config.train.objective == "masked":
            model = build_masked(config.model.name, form.predict_from, form.target, **arguments)
            mask_window(config, model)  # raises where the mask does not fit
            return model
        model = build_model(config.model.name, num_classes=num_classes, **arguments)
    check_resolutions(config.model.name, config.train)
    if config.train.trainable == "head":
        freeze_all_but_head(model)
    return model


def giga_multiply_adds(config: Config) -> float | None:
    """Multiply-adds of one clip in 10⁹, of matrix products and convolutions; takes seconds.

    None for networks that cannot be built on the meta device, which would take longer.
    """
    capabilities = model_entry(config.model.name).capabilities
    if not capabilities.meta:
        return None
    arguments = config.model.arguments | dict(capabilities.plain)
    model = meta_model(config.model_copy(update={"model": config.model.model_copy(update={"arguments": arguments})}), 1)
    clip = torch.zeros(1, 3, config.data.num_frames, *config.data.crop_hw, device="meta")
    masked = config.train.objective == "masked"
    mask = [torch.zeros(1, *mask_window(config, model), device="meta")] if masked else []
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(clip, *mask)
    return counter.get_total_flops() / 2e9


class RunPlan:
    """Description of a run. Without a number of videos, steps are given in epochs."""

    def __init__(
        self, config: Config, device: torch.device, model: nn.Module, num_classes: int, num_videos: int | None
    ) -> None:
        self.config, self.data, self.settings, self.device = config, config.data, config.train, device
        self.num_classes, self.num_videos = num_classes, num_videos
        self.window = mask_window(config, model) if self.settings.objective == "masked" else None
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        self.per_epoch = None
        if num_videos is not None:
            self.per_epoch = steps_per_epoch(num_videos, self.settings.clips_per_step, self.data.repeated_aug)

    def text(self, first_step: int = 0, multiply_adds: float | None = None) -> str:
        """One line per subject, after a summary."""
        subjects = {
            "network": self._network(multiply_adds),
            "clips": self._clips(),
            "augmentation": self._augmentation(),
            **({"mask": self._mask(*self.window)} if self.window else {"mixing": self._mixing()}),
            "loss": self._masked_loss() if self.window else self._loss(),
            "optimiser": self._optimizer(),
            "learning rate": self._rates(),
            "steps": self._steps(first_step),
            "precision": self._precision(),
            "memory": self._memory(),
            "evaluation": self._evaluation(),
        }
        lines = [f"{subject}: {', '.join(parts)}" for subject, parts in subjects.items()]
        return "\n  ".join([self._summary(), *lines])

    def _summary(self) -> str:
        settings = self.settings
        videos, steps = "unknown number of training videos", f"{counted(settings.epochs, 'epoch')} in steps"
        if self.num_videos is not None:
            videos, steps = (
                f"{self.num_videos:,} training video{'s' * (self.num_videos != 1)}",
                f"{counted(settings.epochs, 'epoch')} of {counted(self.per_epoch or 0, 'step')}",
            )
        what = "pre-training without labels" if self.window else f"{self.num_classes} classes"
        return (
            f"{self.config.model.name}: {self.parameters:,} parameters, {what}; "
            f"{videos}, {steps} of {settings.clips_per_step} clips"
        )

    def _network(self, multiply_adds: float | None) -> Iterator[str]:
        yield f"{self.trained:,} of {self.parameters:,} parameters trained"
        if multiply_adds is not None:
            yield f"{multiply_adds:,.1f} G multiply-adds per clip"
        yield f"starting from {self.config.model.weights or f'random weights of seed {self.settings.seed}'}"
        yield from (f"{name} {value}" for name, value in self.config.model.arguments.items())

    def _clips(self) -> Iterator[str]:
        data = self.data
        if data.sampling == "segment":
            yield f"{data.num_frames} frames, one from each equal part of the video"
        else:
            seconds = data.num_frames * data.sampling_rate / data.target_fps
            yield f"{data.num_frames} frames from {seconds:.1f} s ({data.sampling_rate} apart at {data.target_fps:g} fps)"
        yield f"{data.crop_hw[0]}×{data.crop_hw[1]} pixels"
        for name, values in (("mean", data.mean), ("std", data.std)):
            yield f"{name} {' '.join(f'{value:g}' for value in dict.fromkeys(values))}"
        if data.decoded_side:
            yield f"frames scaled to a short side of {data.decoded_side} as they are decoded"
        if data.cache:
            yield _kept(data)

    def _augmentation(self) -> Iterator[str]:
        data = self.data
        yield f"{data.repeated_aug} clips per video" if data.repeated_aug > 1 else "one clip per video"
        if data.crop == "resized":
            yield f"a box of {data.crop_area[0]:.0%} to {data.crop_area[1]:.0%} of the frame"
        else:
            yield f"a crop at a short side of {data.jitter_scales[0]} to {data.jitter_scales[1]}"
        yield "half of them flipped" if data.flip else "none flipped"
        if data.randaugment:
            yield f"RandAugment {data.randaugment}"
        if data.color_jitter:
            yield f"colour jitter {data.color_jitter:g}"
        if data.erasing:
            yield f"a box erased in {data.erasing:.0%}"
        yield from (f"{name} of {_source(TRANSFORMS, name)}" for name in data.transforms)

    def _mixing(self) -> Iterator[str]:
        settings = self.settings
        alphas = [
            f"{name} {value:g}" for name, value in (("mixup", settings.mixup), ("CutMix", settings.cutmix)) if value
        ]
        alphas = alphas if settings.mix_probability else []
        share = f" in {settings.mix_probability:.0%} of the steps" if alphas else ""
        choice = f", CutMix in {settings.mix_switch:.0%} of these" if len(alphas) == 2 else ""
        yield (" or ".join(alphas) or "none") + share + choice
        yield f"label smoothing {settings.label_smoothing:g}"

    def _loss(self) -> Iterator[str]:
        settings, data = self.settings, self.data
        sizes = ["×".join(map(str, height_width(size))) for size in (data.crop_size, *settings.resolutions)]
        loss = (
            "cross-entropy"
            if settings.loss == "cross_entropy"
            else f"{settings.loss} of {_source(LOSSES, settings.loss)}"
        )
        yield f"{loss} at {' and '.join(sizes)} pixels"
        if settings.resolutions:
            yield "smooth L1 between the feature of each and the next larger one's"
        if settings.teacher:
            how = (
                f"soft at temperature {settings.distillation_temperature:g}"
                if settings.distillation == "soft"
                else "hard"
            )
            yield f"{settings.distillation_weight:.0%} of it distilled from {settings.teacher} ({how})"

    def _mask(self, times: int, rows: int, columns: int) -> Iterator[str]:
        settings, cell = self.config.pretrain, self.config.pretrain.mask_cell
        what = {"cube": "cuboids", "tube": "rectangles, the same in all frames,", "frames": "whole frames"}
        yield f"{what[settings.mask]} of up to {settings.mask_ratio:.0%} of the clip hidden"
        yield f"a grid of {times}×{rows}×{columns} cells (times×rows×columns) of {cell}×{cell} pixels"

    def _masked_loss(self) -> Iterator[str]:
        settings = self.config.pretrain
        target = "pixels, normalised by patch" if settings.target == "pixels" else "histograms of oriented gradients"
        yield f"squared error of {target}, over hidden cells"
        if settings.gaussian_window:
            yield f"weighed by Gaussians of {settings.gaussian_window} pixels"
        blocks = ", ".join(map(str, settings.predict_from))
        yield (
            f"predicted from the blocks {blocks}" if len(settings.predict_from) > 1 else "predicted from the last block"
        )

    def _optimizer(self) -> Iterator[str]:
        settings = self.settings
        adamw = settings.optimizer == "adamw"
        yield (
            f"AdamW with betas {settings.betas[0]:g} {settings.betas[1]:g}"
            if adamw
            else f"SGD with Nesterov momentum {settings.momentum:g}"
        )
        yield f"weight decay {settings.weight_decay:g} (except biases and norms)"
        if settings.layer_decay < 1:
            yield f"layer decay {settings.layer_decay:g}"
        norm = settings.clip_gradient
        yield f"gradient clipped to norm {norm:g}" if norm is not None else "gradient not clipped"

    def _rates(self) -> Iterator[str]:
        """Effective learning rates at the first step, at the peak and at the last step."""
        settings = self.settings
        per_epoch = self.per_epoch or 1000
        last = settings.epochs * per_epoch
        rate = learning_rate_from(settings, last, per_epoch)
        warmup = min(settings.warmup_epochs, settings.epochs)
        count = f" ({round(warmup * per_epoch):,} steps)" if self.per_epoch else ""
        yield f"{rate(0):.3g} at the start"
        yield (
            f"{rate(round(warmup * per_epoch)):.3g} after {warmup:g} epoch{'s' * (warmup != 1)} of warm-up{count}"
            if warmup
            else "no warm-up"
        )
        yield f"{rate(last - 1):.3g} at the end"
        yield f"that is base_lr {settings.base_lr:g} × {settings.clips_per_step} / {CLIPS_OF_BASE_LR} clips"

    def _steps(self, first_step: int) -> Iterator[str]:
        settings = self.settings
        if self.per_epoch is None:
            repeats = self.data.repeated_aug
            yield f"{settings.epochs} epochs, each video {f'{repeats} times' if repeats > 1 else 'once'}"
        else:
            last = settings.epochs * self.per_epoch
            yield f"{first_step + 1:,} to {last:,}"
            yield f"{last * settings.clips_per_step:,} clips in total"
        yield f"state saved every {settings.checkpoint_every_steps}"

    def _precision(self) -> Iterator[str]:
        precision = resolve_precision(self.settings.precision, self.device, "train.precision").name
        yield f"{precision} (auto on {self.device.type})" if self.settings.precision == "auto" else precision
        if self.settings.deterministic:
            yield "deterministic algorithms"
        if self.settings.compile:
            yield "compiled"

    def _memory(self) -> Iterator[str]:
        settings = self.settings
        share = settings.clips_per_step // world_size()
        together = min(settings.clips_per_pass or share, share)
        passes = -(-share // together)
        yield f"{together} clips at once" + (f" in {passes} passes per step" if passes > 1 else "")
        if world_size() > 1:
            parts = "a shard of the weights" if settings.parallel == "fsdp" else "all weights"
            yield f"in each of {world_size()} processes with {parts}"
        yield "activation checkpointing" if settings.activation_checkpointing else "no activation checkpointing"
        if settings.ema_decay is not None:
            yield f"averaged weights (decay {settings.ema_decay:g})"

    def _evaluation(self) -> Iterator[str]:
        if self.window:
            every = f"the masked loss of data.val every {self.settings.validate_every_epochs} epochs"
            yield every if self.data.val is not None else "none (no data.val)"
            return
        if self.data.val is not None or self.data.train == AUTO:
            yield f"every {self.settings.validate_every_epochs} epochs with one view per video"
        else:
            yield "none during training (no data.val)"
        views = f"{self.config.evaluation.protocol} views (clips × crops) at a short side of {self.data.short_side}"
        yield f"{views} {'at the end' if self.config.evaluation.after_training else 'by mvit-video evaluate'}"


def _source(registry: Registry, name: str) -> str:
    """The plugin that registered a name, or mvit_video. Raises ConfigError for an unknown name."""
    registry.get(name)
    plugin = registry.plugin_of(name)
    return f"the plugin {plugin}" if plugin else "mvit_video"


def _kept(data: DataSettings) -> str:
    """Where decoded frames are kept, and as many as the disk has room for."""
    room = cache_room(data.decoding)
    if room == data.cache_gib:
        return f"kept in {data.cache}, up to {room:g} GiB"
    if room:
        return f"kept in {data.cache}, up to {room:.3g} of {data.cache_gib:g} GiB, since 1 GiB of the disk stays free"
    return f"not kept, since less than 1 GiB is free at data.cache = {data.cache}: name another folder"
