"""CSWin, MaxViT, PVT v2 and Twins as video networks: what holds for every family that comes from images."""

import pytest
import torch

from mvit_video.errors import ConfigError, InputError
from mvit_video.model.cswin import CSWin
from mvit_video.model.maxvit import MaxViT
from mvit_video.model.pvt import PVTv2, Twins
from mvit_video.model.registry import build_model

SMALL = dict(num_classes=5)
STAGES = dict(embed_dims=(32, 64), num_heads=(1, 2), mlp_ratios=(2, 2), depths=(1, 2), sr_ratios=(4, 2))
FAMILIES = {
    "cswin": (
        CSWin,
        dict(crop_size=32, embed_dim=16, depths=(1, 1, 1), num_heads=(2, 2, 4), stripe_widths=(1, 2, 2)),
        (32, 48),
    ),
    "maxvit": (
        MaxViT,
        dict(crop_size=32, embed_dims=(32, 64), depths=(1, 1), stem_width=8, window=2, grid=4),
        (32, 64),
    ),
    "pvt_v2": (PVTv2, STAGES, (32, 48)),
    "pvt_v2_li": (PVTv2, STAGES | dict(linear=True), (32, 48)),
    "twins_svt": (Twins, STAGES | dict(windows=(4, 4)), (32, 40)),
    "twins_pcpvt": (Twins, STAGES | dict(windows=None), (32, 40)),
}


def built(name: str, num_frames: int):
    network, arguments, size = FAMILIES[name]
    return network(num_frames=num_frames, **SMALL, **arguments).double().eval(), size


def inflated(image: torch.nn.Module, video: torch.nn.Module) -> torch.nn.Module:
    """The image network's weights in the video network: filters in the middle tap, position tables repeated."""
    state = {}
    for key, expected in video.state_dict().items():
        value = image.state_dict()[key]
        if expected.ndim == 5 and expected.shape[2] > value.shape[2]:
            filled = torch.zeros_like(expected)
            filled[:, :, expected.shape[2] // 2] = value[:, :, 0]
            value = filled
        elif key.endswith("relative_position_bias_table"):
            value = value.unsqueeze(1).expand_as(expected)
        state[key] = value
    video.load_state_dict(state)
    return video


def random_weights(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if name.endswith("weight") and parameter.ndim == 1 else 0.0, 0.3)
    return model


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("frames", [1, 2, 5, 8])
def test_a_clip_of_identical_frames_gives_the_image_networks_logits(name, frames):
    image, size = built(name, 1)
    random_weights(image)
    video = inflated(image, built(name, 8)[0])
    picture = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = image(picture)
        torch.testing.assert_close(
            video(picture.unsqueeze(2).expand(-1, -1, frames, -1, -1)), expected, rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_the_order_of_frames_matters(name):
    model, size = built(name, 8)
    random_weights(model)
    clip = torch.randn(1, 3, 8, *size, dtype=torch.float64)
    with torch.no_grad():
        assert (model(clip) - model(clip.flip(2))).abs().max() > 1e-6


@pytest.mark.parametrize("name", FAMILIES)
def test_maps_feature_and_checkpointing_belong_together(name):
    network, arguments, size = FAMILIES[name]
    model = network(num_frames=4, **SMALL, **arguments)
    clip = torch.randn(2, 3, 4, *size)
    maps = model.forward_features(clip)
    assert [grid.shape[1] for grid in maps] == list(model.stage_dims)
    logits, feature = model(clip, with_feature=True)
    assert logits.shape == (2, 5) and feature.shape == (2, model.stage_dims[-1])
    torch.testing.assert_close(model.head(feature), logits)
    model.train()
    gradients = []
    for checkpointing in (False, True):
        model.activation_checkpointing = checkpointing
        model.zero_grad()
        model(clip).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_stochastic_depth_leaves_branches_out_in_training_only(name):
    network, arguments, size = FAMILIES[name]
    model = network(num_frames=2, drop_path_rate=0.5, **SMALL, **arguments)
    clip = torch.randn(8, 3, 2, *size)
    torch.manual_seed(0)
    model.train()
    assert not torch.equal(model(clip), model(clip))
    model.eval()
    assert torch.equal(model(clip), model(clip))


def test_wrong_arguments_are_named():
    with pytest.raises(
        ConfigError,
        match=r"num_heads=\(2,\): expected 3 whole numbers from 1, one for each stage of depths=\(1, 1, 1\)$",
    ):
        CSWin(depths=(1, 1, 1), num_heads=(2,), stripe_widths=(1, 1, 1))
    with pytest.raises(ConfigError, match=r"num_heads=3 in stage 1.*even divisor.*64"):
        CSWin(num_heads=(3, 4, 8, 16))
    with pytest.raises(ConfigError, match=r"stripe_widths=\(0, 2, 7, 7\): expected 4 whole numbers from 1"):
        CSWin(stripe_widths=(0, 2, 7, 7))
    with pytest.raises(ConfigError, match=r"windows=\(7, 7, -1, 7\): expected 4 whole numbers from 1"):
        Twins(windows=(7, 7, -1, 7))
    with pytest.raises(ConfigError, match=r"depths=\(\): expected a list of whole numbers"):
        PVTv2(depths=(), embed_dims=(), num_heads=(), mlp_ratios=(), sr_ratios=())
    with pytest.raises(ConfigError, match=r"embed_dims=\(48, 64\).*multiples of 32"):
        MaxViT(embed_dims=(48, 64), depths=(1, 1), crop_size=32, window=2, grid=2)
    with pytest.raises(ConfigError, match=r"num_heads=3 in stage 2.*divisor of its width 128"):
        PVTv2(num_heads=(1, 3, 5, 8))


COMMON = (
    (dict(num_classes="7"), "num_classes='7': expected a whole number from 1"),
    (dict(num_classes=2.5), "num_classes=2.5: expected a whole number from 1"),
    (dict(num_frames=0), "num_frames=0: expected a whole number from 1"),
    (dict(num_frames=16.5), "num_frames=16.5: expected a whole number from 1"),
    (dict(crop_size=0), "crop_size=0: expected a whole number from 1, or two: height and width"),
    (dict(crop_size="224"), "crop_size='224': expected a whole number from 1, or two: height and width"),
    (dict(crop_size=[64]), r"crop_size=\[64\]: expected a whole number from 1, or two: height and width"),
)
OF_OURS = (
    (dict(drop_path_rate="0.1"), "drop_path_rate='0.1': expected a number from 0 to below 1"),
    (dict(drop_path_rate=1.0), "drop_path_rate=1.0: expected a number from 0 to below 1"),
    (dict(dropout_rate=True), "dropout_rate=True: expected a number from 0 to below 1"),
    (dict(activation_checkpointing=1), "activation_checkpointing=1: expected true or false"),
    (dict(depths=3), "depths=3: expected a list of whole numbers, blocks of each stage, from 1"),
    (dict(depths=[1, 1.5, 1, 1]), r"depths=\[1, 1.5, 1, 1\]: expected a list of whole numbers"),
)
OF_ONE = (
    (
        "cswin_t_16x4",
        dict(stripe_widths=[1.5, 1, 1, 1]),
        r"stripe_widths=\[1.5, 1, 1, 1\]: expected 4 whole numbers from 1",
    ),
    ("cswin_t_16x4", dict(embed_dim=-64), "embed_dim=-64: expected a whole number from 1"),
    ("cswin_t_16x4", dict(mlp_ratio=-1), "mlp_ratio=-1: expected a number above 0"),
    ("cswin_t_16x4", dict(qkv_bias="maybe"), "qkv_bias='maybe': expected true or false"),
    ("maxvit_t_16x4", dict(window=3.5), "window=3.5: expected a whole number from 1, or two"),
    ("maxvit_t_16x4", dict(grid=[7]), r"grid=\[7\]: expected a whole number from 1, or two"),
    ("maxvit_t_16x4", dict(stem_width=0), "stem_width=0: expected a whole number from 1"),
    ("pvt_v2_b0_16x4", dict(sr_ratios=[1.5, 1, 1, 1]), r"sr_ratios=\[1.5, 1, 1, 1\]: expected 4 whole numbers from 1"),
    ("pvt_v2_b0_16x4", dict(mlp_ratios=[True, 1, 1, 1]), r"mlp_ratios=\[True, 1, 1, 1\]: expected 4 numbers above 0"),
    ("pvt_v2_b0_16x4", dict(linear=7), "linear=7: expected true or false"),
    ("twins_svt_s_16x4", dict(windows=3), "windows=3: expected 4 whole numbers from 1"),
    ("twins_svt_s_16x4", dict(num_heads="2222"), "num_heads='2222': expected 4 whole numbers from 1"),
)
OURS = ("cswin_t_16x4", "maxvit_t_16x4", "pvt_v2_b0_16x4", "twins_svt_s_16x4", "twins_pcpvt_s_16x4")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [(name, *case) for name in (*OURS, "torchvision/swin3d_t", "pytorchvideo/x3d_s") for case in COMMON]
    + [(name, *case) for name in OURS for case in OF_OURS]
    + [*OF_ONE],
)
def test_arguments_of_a_wrong_kind_are_refused_in_one_sentence(name, arguments, message):
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        build_model(name, **arguments)


@pytest.mark.parametrize("name", ["pvt_v2_b0_16x4", "twins_svt_s_16x4", "twins_pcpvt_s_16x4"])
def test_the_smallest_picture_is_taken_and_a_smaller_one_refused_when_built_and_when_given(name):
    with torch.device("meta"):
        model = build_model(name, num_classes=3).eval()
        least = model.smallest_side
        assert model(torch.zeros(1, 3, 2, least, least)).shape == (1, 3)
        expected = f"too small for this network: expected at least {least}×{least} pixels$"
        with pytest.raises(InputError, match=expected):
            model(torch.zeros(1, 3, 2, least - 1, 500))
        with pytest.raises(ConfigError, match=expected):
            build_model(name, crop_size=(500, least - 1))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_give_nearly_the_same_logits(name, dtype):
    network, arguments, size = FAMILIES[name]
    model = network(num_frames=2, **SMALL, **arguments).eval()
    clip = torch.randn(2, 3, 2, *size)
    with torch.inference_mode():
        exact, rounded = model(clip), model.to(dtype)(clip.to(dtype)).float()
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_maxvit_names_the_sizes_that_it_can_take():
    with pytest.raises(ConfigError, match=r"240×240.*multiples of 224 and 224"):
        MaxViT(crop_size=240, window=7, grid=7)
    model = MaxViT(crop_size=32, embed_dims=(32, 64), depths=(1, 1), stem_width=8, window=2, grid=4)
    with pytest.raises(InputError, match=r"40×32.*multiples of 32 and 32"):
        model(torch.zeros(1, 3, 2, 40, 32))


def test_clips_of_a_wrong_form_are_refused():
    model = PVTv2(num_frames=4, **SMALL, **STAGES)
    with pytest.raises(InputError, match="expected \\(batch, 3, frames"):
        model(torch.zeros(1, 3, 32, 32))
    with pytest.raises(InputError, match="uint8"):
        model(torch.zeros(1, 3, 4, 32, 32, dtype=torch.uint8))
