"""Masked pre-training: PySlowFast's loss and gradients, and the same ones however a step is split."""

import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from fixed_weights import fixed_values, with_fixed_weights
from shared_files import shared

from mvit_video.benchmark.pretraining import seconds_of_steps
from mvit_video.config.schema import PretrainSettings
from mvit_video.engine.masked import hidden_weights, masked_objective_from
from mvit_video.model.maskfeat import enlarged
from mvit_video.model.registry import build_masked

GOLDENS = {"": {}, "multi_": {"predict_from": (1, 3)}, "pixel_": {"target": "pixels"}}
FORM = dict(
    depths=(1, 1, 1, 1), num_frames=8, crop_size=96, width_growth="mlp", q_stride=((1, 2, 2), (1, 2, 2), (1, 1, 1))
)


def recorded(name: str) -> dict:
    return json.loads(shared(f"reference/maskfeat/{name}.json").read_text())


@pytest.mark.parametrize("which", GOLDENS)
def test_predictions_loss_and_gradients_are_the_public_codes(which):
    expected, settings = recorded(f"maskfeat_pretrain_{which}8x96"), PretrainSettings(**GOLDENS[which])
    model = with_fixed_weights(build_masked("mvitv2_s_16x4", settings.predict_from, settings.target, **FORM))
    assert {name: list(each.shape) for name, each in model.named_parameters()} == expected["parameters"]
    clips, mask = fixed_values("input", tuple(expected["input_shape"])), torch.tensor(expected["mask"])
    predictions = model(clips, mask)
    for prediction, output in zip(predictions, expected["outputs"], strict=True):
        rows = prediction[enlarged(mask, prediction.shape[2:4])].detach()
        assert list(rows.shape) == output["prediction"]["shape"]
        assert np.abs(rows[0].numpy() - output["prediction_row0"]).max() < 1e-4
        assert np.abs(rows.mean(1).numpy() - output["prediction_row_means"]).max() < 1e-5
    objective = masked_objective_from(settings, model)
    [(losses, _)] = objective.parts(model, nullcontext, *hidden_weights(clips, mask))
    assert losses.mean().item() == pytest.approx(expected["loss"], rel=1e-5)
    losses.mean().backward()
    norm = torch.nn.utils.get_total_norm([each.grad for each in model.parameters()])
    assert norm.item() == pytest.approx(expected["gradient_norm"], rel=1e-5)
    actual = model.mask_token.grad.flatten()[:16].numpy()
    assert np.abs(actual - expected["mask_token_gradient_first16"]).max() < 1e-5


def test_the_benchmark_lets_three_forms_take_turns():
    found = seconds_of_steps("mvitv2_nano_8x3", frames=4, crop=32, clips=1, cell=8, rounds=1)
    assert len(found) == 3 and "pre-training" in found and all(seconds > 0 for seconds in found.values())


def test_the_mean_over_hidden_cells_does_not_depend_on_how_they_are_spread_over_clips():
    model = with_fixed_weights(build_masked("mvitv2_nano_8x3", crop_size=64))
    clips, mask = torch.randn(3, 3, 8, 64, 64), torch.zeros(3, 4, 2, 2)
    mask[0, 0, 0, 0] = mask[1, :, 1] = 1
    objective = masked_objective_from(PretrainSettings(), model)
    [(losses, _)] = objective.parts(model, nullcontext, *hidden_weights(clips, mask))
    [prediction], [target] = model(clips, mask), objective.targets(clips)
    hidden = enlarged(mask, prediction.shape[2:4])
    by_hand = (prediction[hidden] - target[hidden]).double().square().mean()
    assert losses.mean().item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert losses[2] == 0
