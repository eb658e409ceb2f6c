"""What a run is about to do, in words and effective numbers: printed at its start, and by `train --dry-run`."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mvit_video.config.schema import Config, DataSettings, TrainSettings
from mvit_video.data.loader import steps_per_epoch
from mvit_video.engine.optimizer import freeze_all_but_head
from mvit_video.engine.schedule import CLIPS_OF_BASE_LR, learning_rate
from mvit_video.engine.trainer import effective_precision
from mvit_video.model.variants import VARIANTS, build_model


def dry_model(config: Config, num_classes: int | None) -> nn.Module:
    """The configuration's network without memory (on the meta device); without `num_classes` its usual head."""
    data = config.data
    with torch.device("meta"):
        model = build_model(
            config.model.name,
            num_classes=num_classes,
            num_frames=data.num_frames,
            crop_size=data.crop_size,
            **config.model.arguments,
        )
    if config.train.trainable == "head":
        freeze_all_but_head(model)
    return model


def giga_multiply_adds(config: Config) -> float | None:
    """Multiply-adds of one clip in 10⁹, those of matrix products and convolutions; None for baselines. Takes seconds."""
    if config.model.name not in VARIANTS:
        return None
    arguments = config.model.arguments | {"attention": "reference"}
    model = dry_model(config.model_copy(update={"model": config.model.model_copy(update={"arguments": arguments})}), 1)
    clip = torch.zeros(1, 3, config.data.num_frames, *config.data.crop_hw, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(clip)
    return counter.get_total_flops() / 2e9


def describe_plan(
    config: Config,
    device: torch.device,
    model: nn.Module,
    num_classes: int,
    num_videos: int | None,
    first_step: int = 0,
    multiply_adds: float | None = None,
) -> str:
    """The whole plan, one line a subject. Without a number of videos, steps are counted in epochs only."""
    settings = config.train
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    cost = f", {multiply_adds:,.1f} G multiply-adds per clip" if multiply_adds is not None else ""
    lines = [
        f"{config.model.name}: {parameters:,} parameters, {num_classes} classes; {_amount(settings, num_videos)}",
        f"network: {trained:,} of {parameters:,} parameters trained{cost}, {_start(config)}",
        f"clips: {_clips(config.data)}",
        f"augmentation: {', '.join(_augmentation(config))}",
        f"optimiser: {_optimizer(settings)}",
        f"learning rate: {_rates(settings, num_videos)}",
        *_span(settings, num_videos, first_step),
        f"precision: {_precision(settings, device)}",
        f"memory: {', '.join(_memory(settings))}",
        f"evaluation: every {settings.validate_every_epochs} epochs one view a video; afterwards "
        f"{config.evaluation.protocol} views (clips × crops), short side {config.data.short_side}",
    ]
    return "\n  ".join(lines)


def _amount(settings: TrainSettings, num_videos: int | None) -> str:
    if num_videos is None:
        return f"training videos not known, {settings.epochs} epochs in steps of {settings.clips_per_step} clips"
    steps = steps_per_epoch(num_videos, settings.clips_per_step)
    return (
        f"{num_videos:,} training videos, {settings.epochs} epochs of {steps} steps of {settings.clips_per_step} clips"
    )


def _start(config: Config) -> str:
    return f"starting from {config.model.weights or f'random weights of seed {config.train.seed}'}"


def _clips(data: DataSettings) -> str:
    height, width = data.crop_hw
    seconds = data.num_frames * data.sampling_rate / data.target_fps
    frames = {
        "dense": f"{data.num_frames} frames out of {seconds:.1f} s, 1 in {data.sampling_rate} at {data.target_fps:g} per second",
        "segment": f"{data.num_frames} frames, one from each equal part of the video",
    }[data.sampling]
    mean, std = (", ".join(f"{value:g}" for value in dict.fromkeys(values)) for values in (data.mean, data.std))
    return f"{frames}, {height}×{width} pixels, mean {mean}, std {std}"


def _augmentation(config: Config) -> Iterator[str]:
    data = config.data
    yield f"crop of {data.crop_area[0]:.0%} to {data.crop_area[1]:.0%} of the picture"
    yield "half of the clips mirrored" if data.flip else "no mirroring"
    if config.train.label_smoothing:
        yield f"label smoothing {config.train.label_smoothing:g}"


def _optimizer(settings: TrainSettings) -> str:
    kind = {
        "adamw": f"AdamW, betas {settings.betas[0]:g} and {settings.betas[1]:g}",
        "sgd": f"SGD, Nesterov momentum {settings.momentum:g}",
    }[settings.optimizer]
    layers = f", layer decay {settings.layer_decay:g}" if settings.layer_decay < 1 else ""
    norm = settings.clip_gradient
    clip = f"gradient norm at most {norm:g}" if norm is not None else "gradient not clipped"
    return f"{kind}, weight decay {settings.weight_decay:g} (not on biases and norms){layers}, {clip}"


def _rates(settings: TrainSettings, num_videos: int | None) -> str:
    """The rates in effect at the first step, at the peak and at the last step."""
    per_epoch = 1000 if num_videos is None else steps_per_epoch(num_videos, settings.clips_per_step)
    steps = settings.epochs * per_epoch
    rate = learning_rate(settings, steps, per_epoch)
    warmup = min(settings.warmup_epochs, settings.epochs)
    count = "" if num_videos is None else f" ({round(warmup * per_epoch):,} steps)"
    return (
        f"{rate(0):.3g} at the start, {rate(round(warmup * per_epoch)):.3g} after {warmup:g} epochs of warm-up{count}, "
        f"{rate(steps - 1):.3g} at the end: base_lr {settings.base_lr:g} for {CLIPS_OF_BASE_LR} clips × "
        f"{settings.clips_per_step} / {CLIPS_OF_BASE_LR}"
    )


def _span(settings: TrainSettings, num_videos: int | None, first_step: int) -> Iterator[str]:
    if num_videos is not None:
        steps = settings.epochs * steps_per_epoch(num_videos, settings.clips_per_step)
        clips = steps * settings.clips_per_step
        yield f"steps: {first_step + 1:,} to {steps:,}, {clips:,} clips seen in all"


def _precision(settings: TrainSettings, device: torch.device) -> str:
    precision = effective_precision(settings, device)
    given = f" (auto on {device.type})" if settings.precision == "auto" else ""
    scaling = " with loss scaling" if precision == "fp16" else ""
    deterministic = ", deterministic algorithms" if settings.deterministic else ""
    return f"{precision}{given}{scaling}{deterministic}{', compiled' if settings.compile else ''}"


def _memory(settings: TrainSettings) -> Iterator[str]:
    together = min(settings.clips_per_pass or settings.clips_per_step, settings.clips_per_step)
    passes = -(-settings.clips_per_step // together)
    yield f"{together} clips at once" + (f" in {passes} passes a step" if passes > 1 else "")
    yield "activation checkpointing" if settings.activation_checkpointing else "no activation checkpointing"
    if settings.ema_decay is not None:
        yield f"a second copy of the weights for their average (decay {settings.ema_decay:g})"
