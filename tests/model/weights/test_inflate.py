"""Image weights to video weights."""

import numpy as np
import pytest
import torch
from tiny_models import relative_difference, tiny_image, tiny_video

from mvit_video import build_model, load_weights
from mvit_video.errors import CheckpointError, ConfigError
from mvit_video.model.mvit_variants import VARIANTS
from mvit_video.model.registry import model_entry
from mvit_video.model.weights.inflate import inflate_filter
from mvit_video.model.weights.load import Weights, fit_weights
from mvit_video.model.weights.zoo import ZOO


@pytest.fixture
def image_file(tmp_path):
    image = tiny_image()
    torch.save(image.state_dict(), tmp_path / "image.pyth")
    return tmp_path / "image.pyth", image


def frames_repeated(pictures, count=8):
    return pictures[:, :, None].expand(-1, -1, count, -1, -1)


def test_center_puts_the_2d_filter_in_the_middle_tap_and_zeros_elsewhere():
    flat = torch.randn(6, 2, 7, 5)
    for taps, middle in ((1, 0), (3, 1), (5, 2)):
        made = inflate_filter(flat, taps)
        assert made.shape == (6, 2, taps, 7, 5)
        for tap in range(taps):
            assert torch.equal(made[:, :, tap], flat if tap == middle else torch.zeros_like(flat))


def test_mean_puts_an_equal_share_of_the_2d_filter_in_every_tap_and_the_sum_is_the_filter():
    flat = torch.randn(6, 1, 3, 3)
    for source in (flat, flat[:, :, None]):
        made = inflate_filter(source, 3, "mean")
        assert all(torch.equal(made[:, :, tap], flat / 3) for tap in range(3))
        torch.testing.assert_close(made.sum(2), flat)


def test_an_unknown_inflation_is_refused_for_video_weights_too(tmp_path):
    video = tiny_video()
    torch.save(video.state_dict(), tmp_path / "video.pyth")
    with pytest.raises(ConfigError, match="inflation 'middle' is unknown: choose from center and mean"):
        load_weights(video, tmp_path / "video.pyth", inflation="middle")


def test_a_clip_of_identical_frames_gives_the_image_models_logits(image_file):
    path, image = image_file
    video = tiny_video(cls_token=False)
    load_weights(video, path)
    pictures = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected, actual = image(pictures), video(frames_repeated(pictures))
    assert relative_difference(actual, expected) < 1e-5
    assert expected.std() > 0.1


def test_order_of_time_changes_nothing_until_the_temporal_tables_are_trained(image_file):
    path, _ = image_file
    video = tiny_video(cls_token=False)
    load_weights(video, path)
    clips = torch.randn(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(6))
    pairs = clips.unflatten(2, (4, 2))  # the patch step is two frames: permute whole steps
    shuffled = pairs[:, :, [2, 0, 3, 1]].flatten(2, 3)
    with torch.no_grad():
        expected = video(clips)
        assert relative_difference(video(shuffled), expected) < 1e-5
        for name, parameter in video.named_parameters():
            if name.endswith("rel_pos_t"):
                parameter.copy_(torch.randn(parameter.shape))
        assert relative_difference(video(shuffled), video(clips)) > 1e-3


@pytest.mark.parametrize("inflation", ["center", "mean"])
def test_every_filter_of_the_video_model_comes_from_the_image_models(image_file, inflation):
    path, image = image_file
    video = tiny_video()
    before = {name: tensor.clone() for name, tensor in video.state_dict().items()}
    report = load_weights(video, path, inflation)
    after, source = video.state_dict(), image.state_dict()
    assert report.new == ("cls_token",)
    for name, tensor in after.items():
        if name.endswith("rel_pos_t"):
            assert name in report.inflated and not tensor.any() and before[name].any()
        elif tensor.ndim == 5:
            assert name in report.inflated and torch.equal(tensor, inflate_filter(source[name], 3, inflation))
        elif name == "cls_token":
            assert torch.equal(tensor, before[name])
        else:
            assert name in report.copied and torch.equal(tensor, source[name])


def test_of_the_published_sizes_only_the_first_block_of_stage_3_needs_interpolation():
    with torch.device("meta"):
        image, video = build_model("mvitv2_s_in1k").state_dict(), build_model("mvitv2_s_16x4").state_dict()
    _, report = fit_weights(Weights("s.pyth", "PySlowFast", image, ()), video, reset_head=True)
    assert report.interpolated == ("blocks.3.attn.rel_pos_h", "blocks.3.attn.rel_pos_w")
    assert report.new == ("head.projection.weight", "head.projection.bias", "cls_token")
    assert len(report.inflated) == 1 + 16 * 3 + 16  # patches, pools, temporal tables


IMAGE_CHECKPOINTS = sorted(
    name
    for name, entry in ZOO.items()
    if entry.preprocessing.num_frames == 1 and not entry.model.startswith("torchvision/")
)


@pytest.mark.parametrize("name", IMAGE_CHECKPOINTS)
def test_every_image_checkpoint_of_the_zoo_starts_the_video_networks_of_its_size(name):
    size = ZOO[name].model.rpartition("_")[0]
    names = VARIANTS if size.startswith("mvit") else [f"{size}_16x4"]
    videos = [video for video in names if video.startswith(f"{size}_") and model_entry(video).input_size[0] > 1]
    growth = {"width_growth": "mlp"} if name == "mvitv2_l_in1k" else {}
    assert videos
    for video in videos:
        with torch.device("meta"):
            image, expected = build_model(ZOO[name].model).state_dict(), build_model(video, **growth).state_dict()
        head = model_entry(video).capabilities.head
        _, report = fit_weights(Weights(name, "PySlowFast", image, ()), expected, "center", True, head)
        assert set(report.new) - {"cls_token"} == {f"{head}.weight", f"{head}.bias"}
        assert ("cls_token" in report.new) == (name.endswith("in1k") and "cls_token" in expected)


def test_image_weights_of_another_size_say_what_a_video_network_must_share_with_them():
    with torch.device("meta"):
        image, video = build_model("mvitv2_l_in1k").state_dict(), build_model("mvitv2_l_40x3").state_dict()
    with pytest.raises(CheckpointError) as caught:
        fit_weights(Weights("l.pyth", "PySlowFast", image, ()), video, reset_head=True)
    assert str(caught.value) == (
        "l.pyth: lacks 'blocks.2.proj.bias' (6 missing, 6 unknown): these are weights of mvitv2_l_in1k, so build a video "
        "network with its depths, embed_dim, num_heads and width_growth"
    )


def test_tables_of_another_length_are_read_at_the_middles_of_equal_parts(tmp_path):
    image = tiny_image(crop_size=64)
    torch.save(image.state_dict(), tmp_path / "image.pyth")
    smaller = tiny_image(seed=9)
    report = load_weights(smaller, tmp_path / "image.pyth")
    name = "blocks.0.attn.rel_pos_h"
    before, after = (model.state_dict()[name].numpy() for model in (image, smaller))
    assert name in report.interpolated and before.shape == (31, 16) and after.shape == (15, 16)
    at = (np.arange(15) + 0.5) * 31 / 15 - 0.5
    expected = np.stack([np.interp(at, np.arange(31), column) for column in before.T], 1)
    np.testing.assert_allclose(after, expected, atol=1e-5)


def test_video_weights_keep_their_temporal_tables(tmp_path):
    video = tiny_video()
    torch.save(video.state_dict(), tmp_path / "video.pyth")
    same, longer = tiny_video(seed=2), tiny_video(seed=3, num_frames=16)
    load_weights(same, tmp_path / "video.pyth")
    report = load_weights(longer, tmp_path / "video.pyth")
    for name, table in video.state_dict().items():
        if name.endswith("rel_pos_t"):
            assert torch.equal(same.state_dict()[name], table)
            assert name in report.interpolated and longer.state_dict()[name].abs().min() > 0
    assert report.inflated == ()
