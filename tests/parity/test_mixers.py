"""CSWin, MaxViT, PVT v2 and Twins give the numbers of their public code on weights that anybody can make again."""

import json

import numpy as np
import pytest
import timm
import torch
from fixed_weights import fixed_values, with_fixed_weights
from shared_files import shared
from timm.models import maxxvit, pvt_v2, twins

from mvit_video.model.cswin import CSWin
from mvit_video.model.maxvit import MaxViT
from mvit_video.model.pvt import PVTv2, Twins

PVT = dict(embed_dims=(32, 64, 64, 96), num_heads=(1, 2, 2, 4), num_classes=5)
TWINS = dict(embed_dims=(32, 64, 96), num_heads=(1, 2, 3), mlp_ratios=(4, 4, 4), sr_ratios=(4, 2, 1), num_classes=5)
SMALL_CSWIN = dict(embed_dim=32, num_classes=11)
NETWORKS = {
    "cswin_small_96": (
        CSWin,
        SMALL_CSWIN | dict(crop_size=96, depths=(1, 2, 3, 1), stripe_widths=(1, 2, 3, 3), num_heads=(2, 4, 8, 16)),
    ),
    "cswin_small_128_wide_stripes": (
        CSWin,
        SMALL_CSWIN | dict(crop_size=128, depths=(1, 1, 2, 1), stripe_widths=(2, 4, 8, 4), num_heads=(2, 2, 4, 4)),
    ),
    "cswin_t_224": (CSWin, dict(num_classes=1000)),
    "maxvit_tf_small_64": (
        MaxViT,
        dict(crop_size=64, embed_dims=(32, 64), depths=(1, 2), stem_width=16, window=4, grid=4, num_classes=11),
    ),
    "maxvit_tiny_tf_224": (MaxViT, dict(num_classes=1000)),
    "pvt_v2_small_64x96": (PVTv2, PVT | dict(depths=(1, 1, 2, 1), mlp_ratios=(4, 4, 4, 4))),
    "pvt_v2_linear_small_128x96": (PVTv2, PVT | dict(depths=(1, 1, 1, 1), mlp_ratios=(4, 4, 2, 2), linear=True)),
    "twins_svt_small_88x104": (Twins, TWINS | dict(depths=(2, 2, 3), windows=(4, 4, 4))),
    "twins_pcpvt_small_64x96": (Twins, TWINS | dict(depths=(1, 1, 2), windows=None)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_the_public_codes(name):
    expected = json.loads(shared(f"reference/mixers/{name}.json").read_text())
    network, arguments = NETWORKS[name]
    model = with_fixed_weights(network(num_frames=1, **arguments))
    assert sum(parameter.numel() for parameter in model.parameters()) == expected["params"]
    if "keys" in expected:
        assert set(model.state_dict()) == set(expected["keys"])
    with torch.inference_mode():
        logits = model(fixed_values("input", tuple(expected["input_shape"])))
    assert np.abs(logits[0].numpy() - expected["logits"]).max() < 1e-4


def test_cswin_pads_grids_of_any_size_as_its_segmentation_backbone_does():
    expected = json.loads(shared("reference/mixers/cswin_backbone_small_84x116.json").read_text())
    model = with_fixed_weights(
        CSWin(
            num_frames=1,
            embed_dim=32,
            depths=(1, 2, 2, 1),
            num_heads=(2, 4, 8, 16),
            stripe_widths=(2, 3, 4, 4),
            num_classes=3,
        )
    )
    outputs = []
    for stage in range(1, 5):
        for block in model.get_submodule(f"stage{stage}").children():
            block.register_forward_hook(lambda module, inputs, output: outputs.append(output.flatten(1, 3)))
    with torch.inference_mode():
        maps = model.forward_features(fixed_values("input", tuple(expected["input_shape"])))
    for output, block in zip(outputs, expected["blocks"], strict=True):
        assert output.double().mean().item() == pytest.approx(block["mean"], abs=1e-4)
        assert output.double().std().item() == pytest.approx(block["std"], abs=1e-4)
        assert np.abs(output[0, 0, :8].numpy() - block["first_token_first8"]).max() < 1e-4
        assert np.abs(output[0, -1, :8].numpy() - block["last_token_first8"]).max() < 1e-4
    assert [list(grid.shape[3:]) for grid in maps] == [grid["grid"] for grid in expected["maps"]]


def timm_maxvit() -> torch.nn.Module:
    convolutions = maxxvit.MaxxVitConvCfg(norm_eps=1e-3, act_layer="gelu_tanh", padding="same")
    attention = maxxvit.MaxxVitTransformerCfg(
        norm_eps=1e-5,
        act_layer="gelu_tanh",
        head_first=False,
        rel_pos_type="bias_tf",
        window_size=(2, 2),
        grid_size=(2, 2),
    )
    settings = maxxvit.MaxxVitCfg(
        embed_dim=(32, 64),
        depths=(1, 2),
        block_type=("M", "M"),
        stem_width=16,
        stem_bias=True,
        head_hidden_size=64,
        conv_cfg=convolutions,
        transformer_cfg=attention,
    )
    return maxxvit.MaxxVit(settings, img_size=32, num_classes=5)


TIMM = {
    "maxvit": (
        timm_maxvit,
        lambda: MaxViT(
            num_frames=1,
            crop_size=32,
            embed_dims=(32, 64),
            depths=(1, 2),
            stem_width=16,
            window=2,
            grid=2,
            num_classes=5,
        ),
        (32, 32),
    ),
    "pvt_v2": (
        lambda: pvt_v2.PyramidVisionTransformerV2(depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2), **PVT),
        lambda: PVTv2(num_frames=1, depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2), **PVT),
        (64, 72),
    ),
    "pvt_v2_li": (
        lambda: pvt_v2.PyramidVisionTransformerV2(depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2), linear=True, **PVT),
        lambda: PVTv2(num_frames=1, depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2), linear=True, **PVT),
        (64, 72),
    ),
    "twins_svt": (
        lambda: twins.Twins(depths=(2, 2, 2), wss=(7, 7, 7), img_size=64, **TWINS),
        lambda: Twins(num_frames=1, depths=(2, 2, 2), windows=(7, 7, 7), **TWINS),
        (56, 40),
    ),
    "twins_pcpvt": (
        lambda: twins.Twins(depths=(1, 1, 1), img_size=64, **TWINS),
        lambda: Twins(num_frames=1, depths=(1, 1, 1), windows=None, **TWINS),
        (56, 40),
    ),
}


@pytest.mark.parametrize("name", TIMM)
def test_values_and_gradients_are_timms(name):
    theirs, ours, size = TIMM[name]
    torch.manual_seed(0)
    their_model, our_model = theirs().double().eval(), ours().double().eval()
    for parameter in their_model.parameters():
        torch.nn.init.normal_(parameter, 0.0 if parameter.ndim > 1 else 1.0, 0.3)
    state = {key: value.unsqueeze(2) if value.ndim == 4 else value for key, value in their_model.state_dict().items()}
    our_model.load_state_dict(state)
    pictures = torch.randn(2, 3, *size, dtype=torch.float64)
    their_logits, our_logits = their_model(pictures), our_model(pictures)
    torch.testing.assert_close(our_logits, their_logits, rtol=1e-9, atol=1e-9)
    weights = torch.randn_like(their_logits)
    (their_logits * weights).sum().backward()
    (our_logits * weights).sum().backward()
    gradients = {key: value.grad for key, value in our_model.named_parameters()}
    for key, parameter in their_model.named_parameters():
        scale = parameter.grad.abs().max().item() + 1e-12
        assert (gradients[key].reshape(parameter.shape) - parameter.grad).abs().max().item() < 1e-9 * scale + 1e-12, key


def test_sizes_are_timms():
    for name, network, arguments in (
        ("maxvit_tiny_tf_224", MaxViT, dict()),
        ("pvt_v2_b1", PVTv2, dict()),
        ("twins_svt_small", Twins, dict()),
    ):
        with torch.device("meta"):
            theirs, ours = timm.create_model(name), network(num_frames=1, num_classes=1000, **arguments)
        assert {key: value.numel() for key, value in ours.named_parameters()} == {
            key: value.numel() for key, value in theirs.named_parameters()
        }
