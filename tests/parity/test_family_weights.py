"""Weights of Swin, CSWin, MaxViT, PVT v2 and Twins: public names and shapes load, image weights are inflated."""

import json

import numpy as np
import pytest
import timm
import torch
from fixed_weights import fixed_values, with_fixed_weights
from shared_files import shared

from mvit_video import build_model, load_weights
from mvit_video.compat import import_torchvision
from mvit_video.errors import CheckpointError
from mvit_video.model.cswin import CSWin
from mvit_video.model.maxvit import MaxViT
from mvit_video.model.pvt import PVTv2
from mvit_video.model.weights.formats import convert_to_ours
from mvit_video.model.weights.load import Weights, fit_weights, recognise_model


def recorded(name: str) -> dict:
    return json.loads(shared(f"reference/mixers/{name}.json").read_text())


def fixed_state(keys: dict[str, list]) -> dict[str, torch.Tensor]:
    """A state of these names and shapes; index tables are zeros, which nothing reads."""
    return {
        key: torch.zeros([side for side in shape if isinstance(side, int)], dtype=torch.long)
        if "index" in key or "num_batches" in key
        else fixed_values(key, tuple(shape))
        for key, shape in keys.items()
    }


SWINS = {
    "video_swin_small_10x60x76": dict(
        embed_dim=24, window_size=[4, 4, 4], num_heads=[2, 4, 4], depths=[2, 2, 3], num_classes=11
    ),
    "video_swin_small_odd_window_9x52x68": dict(
        embed_dim=32, window_size=[3, 5, 5], num_heads=[1, 4], depths=[2, 2], num_classes=7
    ),
    "video_swin_small_clipped_4x48x48_quirk": dict(
        embed_dim=24, window_size=[2, 7, 7], num_heads=[2, 2], depths=[2, 2], num_classes=5
    ),
}


def small_swin(**arguments) -> torch.nn.Module:
    swin = import_torchvision("torchvision.models.video.swin_transformer")
    return swin.SwinTransformer3d(patch_size=[2, 4, 4], stochastic_depth_prob=0.0, **arguments).eval()


@pytest.mark.parametrize("name", SWINS)
def test_video_swins_weights_give_its_logits(name, tmp_path):
    expected, model = recorded(name), small_swin(**SWINS[name])
    state = {
        key: value
        for key, value in fixed_state(expected["keys"]).items()
        if not key.endswith("relative_position_index")
    }
    tables = {
        key.removeprefix("backbone.").replace("layers.", "features.") for key in expected["keys"] if "index" in key
    }
    assert tables
    kind, ours = convert_to_ours(state, name)
    assert kind == "Swin"
    indices = {key: value for key, value in model.state_dict().items() if key.endswith("relative_position_index")}
    fitted, report = fit_weights(Weights(name, kind, ours | indices, ()), model.state_dict())
    model.load_state_dict(fitted)
    assert not report.new and not report.inflated
    with torch.inference_mode():
        logits = model(fixed_values("input", tuple(expected["input_shape"])))
    assert np.abs(logits[0].numpy() - expected["logits"]).max() < 1e-4


@pytest.mark.integration
def test_the_baseline_of_the_published_size_gives_torchvisions_logits():
    expected = recorded("swin3d_t_8x224")
    model = with_fixed_weights(build_model("torchvision/swin3d_t"))
    assert sum(parameter.numel() for parameter in model.parameters()) == expected["params"]
    with torch.inference_mode():
        logits = model(fixed_values("input", tuple(expected["input_shape"])))
    assert np.abs(logits[0].numpy() - expected["logits"]).max() < 1e-4


def test_an_image_swin_in_a_video_network_gives_its_logits_for_identical_frames(tmp_path):
    expected = recorded("swin_image_small_116x132")
    torch.save({"model": fixed_state(expected["keys"])}, tmp_path / "swin.pth")
    model = small_swin(embed_dim=24, window_size=[4, 7, 7], num_heads=[2, 4], depths=[2, 2], num_classes=5)
    report = load_weights(model, tmp_path / "swin.pth")
    assert report.format == "torchvision image Swin" and not report.new
    assert any(name.endswith("relative_position_bias_table") for name in report.inflated)
    picture = fixed_values("input", tuple(expected["input_shape"]))
    for frames in (1, 2, 8):
        with torch.inference_mode():
            logits = model(picture.unsqueeze(2).expand(-1, -1, frames, -1, -1))
        assert np.abs(logits[0].numpy() - expected["logits"]).max() < 1e-4, frames


def test_timms_and_torchvisions_image_swins_are_the_same_network(tmp_path):
    torch.manual_seed(0)
    theirs = timm.create_model("swin_tiny_patch4_window7_224", num_classes=7).eval()
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    model = build_model("torchvision/swin3d_t", num_classes=7).eval()
    assert load_weights(model, tmp_path / "timm.pth").format == "Swin"
    picture = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(
            model(picture.unsqueeze(2).expand(-1, -1, 2, -1, -1)), theirs(picture), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(
    ("keys", "kind", "name"),
    [
        ("cswin_t", "CSWin", "cswin_t_in1k"),
        ("maxvit_tiny_tf_224", "timm MaxViT", "maxvit_t_in1k"),
        ("video_swin_t", "Swin", "torchvision/swin3d_t"),
        ("swin3d_t", "torchvision Swin", "torchvision/swin3d_t"),
    ],
)
def test_a_published_list_of_names_is_recognised_and_fits(keys, kind, name):
    listed = recorded("keys")[keys]["keys"]
    with torch.device("meta"):
        state = {key: torch.zeros([side for side in shape if isinstance(side, int)]) for key, shape in listed.items()}
    found, ours = convert_to_ours(state, keys)
    weights = Weights(keys, found, ours, ())
    assert (found, recognise_model(weights)) == (kind, (name, {}))


IMAGES = {
    "cswin": (
        CSWin,
        dict(crop_size=64, embed_dim=16, depths=(1, 1, 2, 1), num_heads=(2, 2, 2, 4), stripe_widths=(1, 2, 2, 2)),
        lambda model: {"state_dict_ema": flat(model)},
    ),
    "maxvit": (
        MaxViT,
        dict(crop_size=32, embed_dims=(32, 64), depths=(1, 1), stem_width=8, window=2, grid=4),
        lambda model: flat(model),
    ),
    "pvt_v2": (
        PVTv2,
        dict(embed_dims=(32, 64), num_heads=(1, 2), mlp_ratios=(2, 2), depths=(1, 1), sr_ratios=(4, 2)),
        lambda model: {"state_dict": flat(model)},
    ),
}


def flat(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state as the image network's authors write it: filters without a time axis."""
    return {key: value.squeeze(2) if value.ndim == 5 else value for key, value in model.state_dict().items()}


@pytest.mark.parametrize("family", IMAGES)
def test_image_weights_are_inflated_and_give_the_image_networks_logits(family, tmp_path):
    network, arguments, content = IMAGES[family]
    image = with_fixed_weights(network(num_frames=1, num_classes=5, **arguments))
    torch.save(content(image), tmp_path / "image.pth")
    video = network(num_frames=8, num_classes=5, **arguments).eval()
    report = load_weights(video, tmp_path / "image.pth")
    assert not report.new and report.inflated
    picture = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        clip = picture.unsqueeze(2).expand(-1, -1, 8, -1, -1)
        torch.testing.assert_close(video(clip), image(picture), rtol=1e-5, atol=1e-5)
    other = network(num_frames=8, num_classes=9, **arguments)
    assert len(load_weights(other, tmp_path / "image.pth", reset_head=True).new) == 2
    with pytest.raises(CheckpointError, match=r"head has 5 classes, the network's 9.*reset_head=True"):
        load_weights(other, tmp_path / "image.pth")


def test_torchvisions_maxvit_is_named_as_another_network(tmp_path):
    keys = recorded("maxvit_torchvision_small_64")["keys"]
    torch.save(fixed_state(keys), tmp_path / "tv.pth")
    with pytest.raises(CheckpointError, match=r"torchvision's MaxViT, another network.*maxvit_\*_tf_\*"):
        load_weights(build_model("maxvit_t_16x4"), tmp_path / "tv.pth")
