import math

import pytest
import torch

from mvit_video.config.schema import TrainSettings
from mvit_video.engine.optimizer import optimizer_from
from mvit_video.engine.schedule import learning_rate_from


def settings(**changes):
    values = dict(clips_per_step=256, base_lr=1.6e-3, warmup_lr=1e-6, end_lr=1e-6, warmup_epochs=3, epochs=10)
    return TrainSettings(**(values | changes))


def test_the_rate_rises_linearly_then_falls_along_half_a_cosine():
    rate = learning_rate_from(settings(), total_steps=1000, steps_per_epoch=100)
    for step in range(1000):
        if step < 300:
            expected = 1e-6 + (1.6e-3 - 1e-6) * step / 300
        else:
            expected = 1e-6 + (1.6e-3 - 1e-6) * (1 + math.cos(math.pi * (step - 300) / 700)) / 2
        assert rate(step) == pytest.approx(expected / 2, rel=1e-9), step  # 256 clips: half of the rate for 512


def test_without_warm_up_the_rate_starts_at_its_peak():
    rate = learning_rate_from(settings(warmup_epochs=0, clips_per_step=512), 100, 10)
    assert rate(0) == 1.6e-3
    assert rate(50) == pytest.approx((1.6e-3 + 1e-6) / 2)


def test_a_run_shorter_than_its_warm_up_only_rises():
    rate = learning_rate_from(settings(warmup_epochs=10, clips_per_step=512, epochs=5), 50, 10)
    assert rate(25) == pytest.approx((1.6e-3 + 1e-6) / 2)
    assert all(rate(step) < rate(step + 1) for step in range(49))


def test_decay_is_for_parameters_with_more_than_one_dimension():
    from mvit_video import build_model

    model = build_model("mvitv2_nano_8x3", num_classes=3)
    groups = optimizer_from(settings(weight_decay=0.05), model).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        one_dimensional = name.endswith("bias") or "norm" in name
        assert decay[id(parameter)] == (0.0 if one_dimensional else 0.05), name
    assert {"cls_token", "blocks.0.attn.rel_pos_t"} <= {n for n, p in model.named_parameters() if decay[id(p)] == 0.05}


def test_a_step_is_that_of_adamw_written_out():
    """One parameter, three steps, in plain arithmetic."""
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.5)
    optimizer = optimizer_from(settings(weight_decay=0.1, betas=(0.9, 0.99)), model)
    weight, mean, square = 0.5, 0.0, 0.0
    for step, gradient in enumerate((0.3, -0.2, 0.7), 1):
        model.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        mean, square = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
        weight -= 1.6e-3 * (0.1 * weight + mean / (1 - 0.9**step) / (math.sqrt(square / (1 - 0.99**step)) + 1e-8))
        assert model.weight.item() == pytest.approx(weight, abs=1e-7)
