"""The forms of MViT in which its other weights are published, against the public code's numbers (MASKFEAT.md §10)."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fixed_weights import fixed_values, with_fixed_weights
from shared_files import shared

from mvit_video import build_model, load_weights
from mvit_video.model.weights.formats import convert_to_ours

SMALL = dict(depths=(1, 1, 2, 1), num_frames=8, crop_size=96, num_classes=11)
FORMS = {
    "maskfeat_finetune_8x96": ("mvitv2_s_16x4", dict(width_growth="mlp", pooling="mean_without_cls")),
    "mvitv1_stride_kernels_8x96": ("mvitv1_b_16x4", dict(pool_kernel="stride")),
}


def recorded(name: str) -> dict:
    return json.loads(shared(f"reference/maskfeat/{name}.json").read_text())


def logits_of(model: torch.nn.Module, expected: dict) -> np.ndarray:
    with torch.inference_mode():
        return model(fixed_values("input", tuple(expected["input_shape"]))).numpy()


@pytest.mark.parametrize("attention", ["flash", "reference"])
@pytest.mark.parametrize("form", FORMS)
def test_logits_and_blocks_are_the_public_codes(form, attention):
    expected, (name, arguments) = recorded(form), FORMS[form]
    model = with_fixed_weights(build_model(name, **SMALL, **arguments, attention=attention))
    shapes = {key: list(parameter.shape) for key, parameter in model.named_parameters()}
    assert shapes == expected["parameters"]
    outputs = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output[0]))
    assert np.abs(logits_of(model, expected) - expected["logits"]).max() < 1e-4
    assert len(outputs) == 5
    for output, block in zip(outputs, expected.get("blocks", ()), strict=False):  # not recorded for MViTv1
        assert output.double().mean().item() == pytest.approx(block["mean"], abs=1e-4)
        assert output.double().std().item() == pytest.approx(block["std"], abs=1e-3)


def test_a_last_stage_without_a_stride_gives_maskfeats_predictions():
    """q_stride by stage, as in pre-training; mask and prediction head are put on here by hand, in plain operations."""
    expected = recorded("maskfeat_pretrain_8x96")
    strides = ((1, 2, 2), (1, 2, 2), (1, 1, 1))
    form = dict(SMALL, depths=(1, 1, 1, 1), q_stride=strides, width_growth="mlp")
    model = with_fixed_weights(build_model("mvitv2_s_16x4", **form))
    values = {key: fixed_values(key, tuple(shape)) for key, shape in expected["parameters"].items()}
    own = {key: shape for key, shape in expected["parameters"].items() if key.startswith("blocks.")}
    assert {key: list(each.shape) for key, each in model.named_parameters() if key.startswith("blocks.")} == own
    mask = F.interpolate(torch.tensor(expected["mask"], dtype=torch.float32), size=(24, 24)).flatten(1)[..., None]

    def hide(module, inputs, output):
        return output[0] * (1 - mask) + values["mask_token"] * mask, output[1]

    model.patch_embed.register_forward_hook(hide)
    with torch.inference_mode():
        actual = model.forward_features(fixed_values("input", tuple(expected["input_shape"])))[-1]
        norm, projection = (
            [values[f"pred_head.{part}.weight"], values[f"pred_head.{part}.bias"]]
            for part in ("transforms.0.0", "projections.0")
        )
        actual = F.linear(F.layer_norm(actual.flatten(2).transpose(1, 2), (768,), *norm, 1e-6), *projection)
    [all_tokens] = expected["all_tokens_prediction"]
    assert list(actual.shape) == all_tokens["shape"]
    assert np.abs(actual.flatten()[:16].numpy() - all_tokens["first16"]).max() < 1e-4
    assert np.abs(actual.flatten()[-16:].numpy() - all_tokens["last16"]).max() < 1e-4
    assert actual.double().std().item() == pytest.approx(all_tokens["std"], abs=1e-4)


@pytest.mark.parametrize("golden", ["maskfeat_finetune_separate_qkv_8x96", "maskfeat_finetune_8x96"])
def test_a_pyslowfast_file_gives_its_logits_also_with_separate_projections(golden, tmp_path):
    expected = recorded(golden)
    state = {key: fixed_values(key, tuple(shape)) for key, shape in expected["parameters"].items()}
    torch.save({"epoch": 3, "model_state": state}, tmp_path / "file.pyth")
    model = build_model("mvitv2_s_16x4", **SMALL, **FORMS["maskfeat_finetune_8x96"][1]).eval()
    report = load_weights(model, tmp_path / "file.pyth")
    assert set(report.copied) == set(model.state_dict()) and report.ignored == ("epoch",)
    assert np.abs(logits_of(model, expected) - expected["logits"]).max() < 1e-4


def test_an_mmaction2_file_gives_its_logits(tmp_path):
    expected = recorded("mmaction2_small_8x96")
    model = build_model("mvitv2_s_16x4", **SMALL).eval()
    kind, ours = convert_to_ours({key: torch.empty(shape) for key, shape in expected["keys"].items()}, "x")
    names = dict(zip(expected["keys"], ours, strict=True))  # renamed one by one, in order
    state = {key: fixed_values(names[key], tuple(shape)) for key, shape in expected["keys"].items()}
    state["data_preprocessor.mean"] = torch.full((3, 1, 1), 114.75)
    torch.save({"meta": {"CLASSES": None}, "state_dict": state}, tmp_path / "file.pth")
    report = load_weights(model, tmp_path / "file.pth")
    assert report.format == kind == "MMAction2" and set(report.copied) == set(model.state_dict())
    assert set(report.ignored) == {"meta", "data_preprocessor.mean"}
    assert np.abs(logits_of(model, expected) - expected["logits"]).max() < 1e-4
