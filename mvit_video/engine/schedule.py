"""Learning rate schedule: linear warm-up, then half a cosine."""

from collections.abc import Callable

from fvcore.common.param_scheduler import CompositeParamScheduler, CosineParamScheduler, LinearParamScheduler

from mvit_video.config.schema import TrainSettings

CLIPS_OF_BASE_LR = 512


def learning_rate(
    peak: float, total_steps: int, warmup_steps: float, start: float, end: float
) -> Callable[[int], float]:
    """Map step (from 0) to learning rate: `start` to `peak` during warm-up, then down to just above `end`."""
    warmup = min(warmup_steps / total_steps, 1.0)
    decay = CosineParamScheduler(peak, end)
    if warmup == 0.0:
        return lambda step: decay(step / total_steps)
    rise = LinearParamScheduler(start, peak)
    if warmup == 1.0:
        return lambda step: rise(step / total_steps)
    both = CompositeParamScheduler([rise, decay], lengths=[warmup, 1 - warmup], interval_scaling=["rescaled"] * 2)
    return lambda step: both(step / total_steps)


def learning_rate_from(settings: TrainSettings, total_steps: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Schedule of the settings, with rates scaled linearly from 512 clips per step to `clips_per_step`."""
    scale = settings.clips_per_step / CLIPS_OF_BASE_LR
    peak, start, end = (rate * scale for rate in (settings.base_lr, settings.warmup_lr, settings.end_lr))
    return learning_rate(peak, total_steps, settings.warmup_epochs * steps_per_epoch, start, end)
