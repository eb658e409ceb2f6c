"""The public reference model's numbers on weights that anybody can make again (RECIPES §7)."""

import json

import numpy as np
import pytest
import torch
from fixed_weights import fixed_values, with_fixed_weights
from shared_files import shared

from mvit_video import build_model

MODELS = {
    "mvitv2_s_16x4_k400": dict(),
    "mvitv2_small_8x96": dict(depths=(1, 1, 2, 1), num_frames=8, crop_size=96, num_classes=11),
}


def recorded(name: str) -> dict:
    return json.loads(shared(f"reference/{name}.json").read_text())


def fixed_model(name: str, **arguments) -> torch.nn.Module:
    return with_fixed_weights(build_model("mvitv2_s_16x4", **MODELS[name], **arguments))


@pytest.fixture(scope="module", params=MODELS)
def golden(request):
    return request.param, recorded(request.param)


@pytest.mark.parametrize("attention", ["flash", "reference"])
def test_logits_and_block_statistics_are_the_reference_models(golden, attention):
    name, expected = golden
    model = fixed_model(name, attention=attention)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected["params"]
    outputs = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output[0]))
    with torch.inference_mode():
        logits = model(fixed_values("input", tuple(expected["input_shape"])))
    assert np.abs(logits[0].numpy() - expected["logits"]).max() < 1e-4
    for output, block in zip(outputs, expected["blocks"], strict=True):
        assert output.shape[1:] == (block["tokens"], block["channels"])
        assert output.double().mean().item() == pytest.approx(block["mean"], abs=1e-4)
        assert output.double().std().item() == pytest.approx(block["std"], abs=1e-3)
        assert np.abs(output[0, 0, :8].numpy() - block["cls_token_first8"]).max() < 1e-4
        assert np.abs(output[0, -1, :8].numpy() - block["last_token_first8"]).max() < 1e-4


@pytest.mark.parametrize(("dtype", "largest"), [(torch.bfloat16, 0.05), (torch.float16, 0.006)])
def test_mixed_precision_stays_near_the_reference_models_logits(dtype, largest):
    """The largest logit is 2.4; docs/training.md states the differences of S."""
    name = "mvitv2_small_8x96"
    expected = recorded(name)
    with torch.inference_mode(), torch.autocast("cpu", dtype):
        logits = fixed_model(name)(fixed_values("input", tuple(expected["input_shape"])))
    assert logits.dtype == dtype
    assert np.abs(logits[0].float().numpy() - expected["logits"]).max() < largest
