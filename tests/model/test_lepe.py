"""positions="lepe": a depth-wise filter of the values, zero at first, beside the position tables."""

import io
import json

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from tiny_models import randomise, tiny_image, tiny_video

from mvit_video import build_model, load_weights
from mvit_video.config.schema import InputSettings
from mvit_video.engine.optimizer import layer_numbers, parameter_groups
from mvit_video.errors import CheckpointError, ConfigError
from mvit_video.model.weights.card import ModelCard
from mvit_video.model.weights.convert import convert
from mvit_video.model.weights.files import save_checkpoint
from mvit_video.model.weights.load import load_checkpoint

CASES = {
    "all": {},
    "no class token": dict(cls_token=False),
    "no residual pooling": dict(residual_pooling=False),
    "width grows in the mlp": dict(width_growth="mlp"),
    "hwin": dict(token_mixing="hwin"),
    "shifted windows": dict(token_mixing="window 2x4x4, shifted 2x4x4"),
    "grid": dict(token_mixing=["grid 2x4x4", "grid 4x2x2"]),
    "stripes": dict(token_mixing=["all", "stripes 4x2"]),
}
FILTERS = ["blocks.0.attn.lepe.weight", "blocks.1.attn.lepe.weight", "blocks.2.attn.lepe.weight"]


def pair(**arguments):
    """A network with filters of zeros, and the same without."""
    plain = tiny_video(**arguments)
    filtered = build_model("mvitv2_s_16x4", positions="lepe", **sizes(), **arguments).eval()
    found = filtered.load_state_dict(plain.state_dict(), strict=False)
    assert found.missing_keys == FILTERS and not found.unexpected_keys
    return filtered, plain


def sizes():
    return dict(depths=(1, 2), embed_dim=16, crop_size=32, num_classes=5, num_frames=8, kv_stride=(1, 4, 4))


def clips(batch=2, frames=8):
    return torch.randn(batch, 3, frames, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("case", CASES)
def test_a_filter_of_zeros_changes_no_bit_and_a_gradient_reaches_it(case):
    filtered, plain = pair(**CASES[case])
    with torch.no_grad():
        assert torch.equal(filtered(clips()), plain(clips()))
    filtered(clips()).square().sum().backward()
    plain(clips()).square().sum().backward()
    gradients = dict(plain.named_parameters())
    for name, parameter in filtered.named_parameters():
        if name in FILTERS:
            unseen = filtered.cls_token is not None and name == FILTERS[-1]  # it changes the grid's last tokens alone
            assert (parameter.grad.abs().max() == 0) == unseen, name
        else:
            torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("attention", ["flash", "reference"])
def test_the_filter_adds_conv3d_of_the_unpooled_values_strided_as_the_queries(case, attention):
    model = randomise(
        build_model("mvitv2_s_16x4", positions="lepe", attention=attention, **sizes(), **CASES[case]), seed=0
    ).double()
    x, thw, num_cls = None, None, 0 if case == "no class token" else 1
    for place, block in enumerate(model.blocks):
        attn = block.attn
        if x is None:
            thw = (4, 8, 8)
            x = torch.randn(2, num_cls + 256, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            found = attn(x, thw)
            values = attn.qkv(x)[:, num_cls:].chunk(3, -1)[2]
            grid = values.transpose(1, 2).unflatten(2, thw)
            term = F.conv3d(grid, attn.lepe.weight, None, attn.lepe.stride, 1, groups=grid.shape[1])
            term = F.pad(term.flatten(2).transpose(1, 2), (0, 0, num_cls, 0)) @ attn.proj.weight.T
            attn.lepe.weight.zero_()
            torch.testing.assert_close(found, attn(x, thw) + term, rtol=1e-9, atol=1e-9)
            assert attn.lepe.stride == ((1, 2, 2) if place == 1 else (1, 1, 1)) and term.abs().max() > 0.1
            x, thw = block(x, thw)


def test_the_filter_starts_at_zero_and_has_a_weight_for_each_channel_of_each_head():
    model = build_model("mvitv2_nano_8x3", positions="lepe")
    for block in model.blocks:
        weight = block.attn.lepe.weight
        assert weight.shape == (block.attn.proj.in_features, 1, 3, 3, 3) and not weight.any()


def test_a_trained_network_can_be_given_the_filter(tmp_path):
    """Its logits stay, and a step of training moves the filter."""
    plain = tiny_video()
    torch.save({"model_state": plain.state_dict()}, tmp_path / "plain.pyth")
    filtered = build_model("mvitv2_s_16x4", positions="lepe", **sizes()).eval()
    report = load_weights(filtered, tmp_path / "plain.pyth")
    assert list(report.new) == FILTERS and len(report.copied) == len(plain.state_dict())
    assert torch.equal(filtered(clips()), plain(clips()))
    optimizer = torch.optim.SGD(parameter_groups(filtered, 0.05), 0.1)
    filtered(clips()).square().sum().backward()
    optimizer.step()
    assert all(filtered.get_parameter(name).abs().max() > 0 for name in FILTERS[:-1])
    assert not torch.equal(filtered(clips()), plain(clips()))


def test_weights_with_the_filter_are_refused_by_a_network_without_in_one_sentence(tmp_path):
    torch.save(
        randomise(build_model("mvitv2_s_16x4", positions="lepe", **sizes()), 0).state_dict(), tmp_path / "lepe.pyth"
    )
    with pytest.raises(CheckpointError, match=r"attn.lepe.weight.*3 unknown.*positions='lepe'"):
        load_weights(tiny_video(), tmp_path / "lepe.pyth")
    damaged = torch.load(tmp_path / "lepe.pyth", weights_only=True)
    del damaged[FILTERS[1]]
    torch.save(damaged, tmp_path / "damaged.pyth")
    with pytest.raises(CheckpointError, match=rf"lacks '{FILTERS[1]}'"):
        load_weights(build_model("mvitv2_s_16x4", positions="lepe", **sizes()), tmp_path / "damaged.pyth")


def test_image_weights_with_the_filter_are_inflated_and_give_the_pictures_logits(tmp_path):
    image = tiny_image(positions="lepe")
    torch.save({"model_state": image.state_dict()}, tmp_path / "image.pyth")
    video = build_model("mvitv2_s_16x4", positions="lepe", cls_token=False, **sizes()).eval()
    report = load_weights(video, tmp_path / "image.pyth")
    assert {*FILTERS} <= {*report.inflated} and not report.new
    picture = clips(frames=1)
    with torch.no_grad():
        torch.testing.assert_close(video(picture.expand(-1, -1, 8, -1, -1)), image(picture), rtol=1e-4, atol=1e-5)


@pytest.fixture
def checkpoint(tmp_path):
    model = randomise(build_model("mvitv2_s_16x4", positions="lepe", token_mixing="hwin", **sizes()), 0)
    arguments = {name: value for name, value in sizes().items() if name in ("depths", "embed_dim", "kv_stride")}
    card = ModelCard(
        name="mvitv2_s_16x4",
        arguments=json.loads(json.dumps(arguments)) | dict(positions="lepe", token_mixing="hwin"),
        classes=tuple("abcde"),
        preprocessing=InputSettings(num_frames=8, crop_size=32, short_side=32),
    )
    save_checkpoint(tmp_path / "lepe.safetensors", model, card)
    return tmp_path / "lepe.safetensors", model


def test_checkpoints_keep_the_filter_and_no_other_projects_file_is_written(checkpoint, tmp_path):
    path, model = checkpoint
    assert torch.equal(load_checkpoint(path)[0](clips()), model(clips()))
    convert(str(path), "native", tmp_path / "again.safetensors")
    assert torch.equal(load_checkpoint(tmp_path / "again.safetensors")[0](clips()), model(clips()))
    for project in ("pyslowfast", "torchvision"):
        with pytest.raises(ConfigError, match=r"token_mixing='hwin', which .* does not have: .*--to native"):
            convert(str(path), project, tmp_path / "theirs.pyth")
    assert not (tmp_path / "theirs.pyth").exists()


def test_the_filter_learns_and_decays_with_its_block():
    model = build_model("mvitv2_nano_8x3", positions="lepe")
    numbers = layer_numbers(model)
    assert [numbers[f"blocks.{place}.attn.lepe.weight"] for place in range(4)] == [1, 2, 3, 4]
    decayed = {id(p) for group in parameter_groups(model, 0.05) if group["weight_decay"] for p in group["params"]}
    assert id(model.blocks[0].attn.lepe.weight) in decayed


@pytest.mark.integration
@pytest.mark.parametrize("case", ["all", "hwin", "stripes"])
def test_it_compiles_as_one_graph_with_the_same_gradients(case):
    model = randomise(
        build_model("mvitv2_s_16x4", positions="lepe", dropout_rate=0.0, **sizes(), **CASES[case]), seed=0
    )
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    both = []
    for run in (model, compiled):
        model.zero_grad()
        run(clips()).square().sum().backward()
        both.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * max(1.0, one.abs().max().item()))


@pytest.mark.integration
def test_it_exports_as_a_program_and_as_onnx(checkpoint):
    _, model = checkpoint
    expected = model(clips())
    torch.testing.assert_close(torch.export.export(model, (clips(),)).module()(clips()), expected, rtol=1e-4, atol=1e-4)
    file = io.BytesIO()
    torch.onnx.export(model, (clips(),), dynamo=True, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file.getvalue())
    (actual,) = session.run(None, {session.get_inputs()[0].name: clips().numpy()})
    torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_single_precision(dtype):
    model = randomise(build_model("mvitv2_s_16x4", positions="lepe", dropout_rate=0.0, **sizes()), seed=0)
    expected = model(clips())
    with torch.autocast("cpu", dtype=dtype):
        actual = model(clips())
    assert (actual - expected).abs().max() < 0.1 * expected.abs().max()
    actual.float().square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert all(model.get_parameter(name).grad.dtype == torch.float32 for name in FILTERS)
