"""MViTv2 with hybrid windows gives the numbers of detectron2's backbone, in every block, padded sizes included."""

import json

import numpy as np
import pytest
import torch
from fixed_weights import fixed_values, with_fixed_weights
from shared_files import shared

from mvit_video import build_model

SMALL = dict(crop_size=64, embed_dim=32, depths=(1, 3, 3, 2), num_classes=3)


@pytest.mark.parametrize(("name", "arguments"), [("hwin_small_72x100", SMALL), ("hwin_mvitv2_t_256x320", {})])
def test_blocks_are_the_public_codes(name, arguments):
    expected = json.loads(shared(f"reference/mixers/{name}.json").read_text())
    model = with_fixed_weights(build_model("mvitv2_t_in1k", token_mixing="hwin", **arguments))
    outputs: list[torch.Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output[0]))
    with torch.inference_mode():
        model(fixed_values("input", tuple(expected["input_shape"])))
    blocks = [block for block in expected["blocks"] if block["name"].startswith("blocks")]
    assert len(blocks) == len(outputs)
    for output, block in zip(outputs, blocks, strict=True):
        assert output.double().mean().item() == pytest.approx(block["mean"], abs=1e-4), block["name"]
        assert output.double().std().item() == pytest.approx(block["std"], abs=1e-4), block["name"]
        assert np.abs(output[0, 0, :8].numpy() - block["first_token_first8"]).max() < 1e-4, block["name"]
        assert np.abs(output[0, -1, :8].numpy() - block["last_token_first8"]).max() < 1e-4, block["name"]
