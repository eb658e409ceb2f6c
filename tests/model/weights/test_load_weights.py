"""Checkpoints of every format, whole and broken."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import tiny_image, tiny_video

from mvit_video import build_model, load_weights
from mvit_video.config.schema import InputSettings
from mvit_video.download import cache_path
from mvit_video.errors import CheckpointError, ConfigError
from mvit_video.model.weights.card import ModelCard, model_from_card
from mvit_video.model.weights.convert import load_network
from mvit_video.model.weights.files import save_checkpoint
from mvit_video.model.weights.formats import convert_to_ours, to_pyslowfast, to_torchvision
from mvit_video.model.weights.load import checkpoint_file, load_checkpoint, read_weights
from mvit_video.model.weights.zoo import ZOO


def saved(content, path):
    torch.save(content, path)
    return path


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def tiny_v1(seed=1):
    return tiny_video(seed, positions="absolute", residual_pooling=False, pool_all_queries=False, width_growth="mlp")


def test_a_pyslowfast_file_is_loaded_bit_for_bit_and_its_other_contents_are_ignored(tmp_path):
    source, model = tiny_video(seed=1), tiny_video(seed=2)
    optimizer = torch.optim.AdamW(source.parameters())
    source(torch.randn(1, 3, 8, 32, 32)).sum().backward()
    optimizer.step()
    content = {
        "model_state": source.state_dict(),
        "optimizer_state": optimizer.state_dict(),
        "epoch": 199,
        "cfg": "MVIT:\n  DEPTH: 3\n",
    }
    report = load_weights(model, saved(content, tmp_path / "x.pyth"))
    assert same_weights(model.state_dict(), source.state_dict())
    assert report.format == "PySlowFast"
    assert report.ignored == ("cfg", "epoch", "optimizer_state")
    assert set(report.copied) == set(model.state_dict())


@pytest.mark.parametrize("wrapper", ["model_state", "model", None])
def test_an_image_file_with_2d_patches_and_pools_of_one_tap_is_loaded_bit_for_bit(tmp_path, wrapper):
    source, model = tiny_image(seed=1), tiny_image(seed=2)
    state = to_pyslowfast(source.state_dict())
    assert state["patch_embed.proj.weight"].ndim == 4 and state["blocks.0.attn.pool_q.weight"].ndim == 5
    report = load_weights(model, saved({wrapper: state} if wrapper else state, tmp_path / "x.pyth"))
    assert same_weights(model.state_dict(), source.state_dict())
    assert set(report.copied) == set(model.state_dict())


@pytest.mark.parametrize("make", [tiny_video, tiny_v1])
def test_torchvisions_names_there_and_back_are_bit_equal(tmp_path, make):
    source, model = make(1), make(2)
    report = load_weights(model, saved(to_torchvision(source.state_dict()), tmp_path / "x.pth"))
    assert report.format == "torchvision"
    assert same_weights(model.state_dict(), source.state_dict())
    theirs = to_torchvision(source.state_dict())
    assert same_weights(to_torchvision(convert_to_ours(theirs, "x")[1]), theirs)


@pytest.mark.parametrize("make", [tiny_video, tiny_image, tiny_v1])
def test_pyslowfasts_shapes_there_and_back_are_bit_equal(make):
    state = make(1).state_dict()
    assert same_weights(convert_to_ours(to_pyslowfast(state), "x")[1], state)


def test_torchvision_has_no_names_for_image_networks():
    with pytest.raises(CheckpointError, match=r"torchvision has no image MViT .*export this network --to pyslowfast"):
        to_torchvision(tiny_image().state_dict())


def test_a_checkpoint_of_ours_and_a_safetensors_file_without_card_are_loaded(tmp_path):
    card = ModelCard(
        name="mvitv2_nano_8x3",
        arguments={"depths": [1, 1]},
        classes=("up", "down"),
        preprocessing=InputSettings(num_frames=4, crop_size=32, short_side=32),
    )
    source, one, two = model_from_card(card), model_from_card(card), model_from_card(card)
    save_checkpoint(tmp_path / "card.safetensors", source, card)
    save_file(source.state_dict(), tmp_path / "bare.safetensors")
    assert load_weights(one, tmp_path / "card.safetensors").format == "native"
    assert load_weights(two, tmp_path / "bare.safetensors").format == "PySlowFast"
    assert same_weights(one.state_dict(), source.state_dict()) and same_weights(two.state_dict(), source.state_dict())
    assert read_weights(tmp_path / "card.safetensors").classes == ("up", "down")


def test_every_tensor_of_the_model_is_in_exactly_one_list_and_the_report_reads_well(tmp_path):
    path = saved({"model": to_pyslowfast(tiny_image(crop_size=64).state_dict()), "epoch": 3}, tmp_path / "image.pyth")
    model = tiny_video(num_classes=7)
    report = load_weights(model, path, reset_head=True)
    names = report.copied + report.inflated + report.interpolated + report.new
    assert sorted(names) == sorted(model.state_dict())
    assert report.summary() == (
        f"weights from {path} (PySlowFast): 59 copied, 13 inflated, 6 interpolated, 3 ignored, "
        "3 new (head.projection.weight, head.projection.bias, cls_token)"
    )
    lines = str(report).splitlines()
    assert lines[0] == report.summary() and len(lines) == 1 + 13 + 6 + 3 + 3
    assert "  inflated: blocks.2.attn.rel_pos_t" in lines and "  ignored: epoch" in lines
    assert "  new: head.projection.bias" in lines and "  ignored: head.projection.bias" in lines  # ours, and theirs


def mixed(**arguments):
    return build_model("mvitv2_nano_8x3", 3, num_frames=4, crop_size=32, **arguments)


def saved_mixed(path, **arguments):
    settings = InputSettings(num_frames=4, sampling_rate=1, short_side=32, crop_size=32)
    card = ModelCard(name="mvitv2_nano_8x3", arguments=arguments, classes=("a", "b", "c"), preprocessing=settings)
    save_checkpoint(path, mixed(**arguments), card)
    return path


def test_arguments_that_change_no_shape_are_told_where_they_are_not_those_of_the_weights(tmp_path):
    mixing = {"token_mixing": ["window 4x4x4", "all", "all"]}
    path = saved_mixed(tmp_path / "a.safetensors", residual_pooling=False, drop_path_rate=0.1, **mixing)
    report = load_weights(mixed(), path)
    assert report.otherwise == (
        "residual_pooling=False where this one has True",
        "token_mixing=('window 4x4x4', 'all', 'all') where this one has 'all'",
    )
    assert report.summary().endswith(f"; the network that they were trained in had {', '.join(report.otherwise)}")
    assert load_weights(mixed(residual_pooling=False, **mixing), path).otherwise == ()
    assert load_weights(tiny_video(), saved(tiny_video().state_dict(), tmp_path / "b.pyth")).otherwise == ()


def test_arguments_that_only_fit_the_clips_of_a_card_are_compared_too(tmp_path):
    """At the usual 48 pixels hwin has windows of 6 queries, which keys with a stride of 4 do not fill."""
    fitting = {"patch_stride": [2, 8, 8], "kv_stride": [1, 4, 4], "token_mixing": "hwin"}
    path = saved_mixed(tmp_path / "a.safetensors", **fitting)
    with pytest.raises(ConfigError, match="multiples of"):
        build_model("mvitv2_nano_8x3", **fitting)
    assert load_weights(mixed(**fitting | {"token_mixing": "all"}), path).otherwise == (
        "token_mixing='hwin' where this one has 'all'",
    )


def test_image_weights_that_are_inflated_tell_no_arguments_since_all_of_an_image_networks_differ(tmp_path):
    arguments = {"depths": [1, 2], "embed_dim": 16}
    settings = InputSettings(num_frames=1, short_side=32, crop_size=32)
    card = ModelCard(name="mvitv2_s_in1k", arguments=arguments, classes=tuple("abcde"), preprocessing=settings)
    save_checkpoint(tmp_path / "a.safetensors", model_from_card(card), card)
    report = load_weights(tiny_video(), tmp_path / "a.safetensors")
    assert report.inflated and report.otherwise == ()


def test_weights_with_filters_name_all_of_their_network_where_their_card_tells_it(tmp_path):
    path = saved_mixed(tmp_path / "a.safetensors", positions="lepe", token_mixing="window 4x4x4")
    network = "mvitv2_nano_8x3 with positions='lepe', token_mixing='window 4x4x4'"
    with pytest.raises(CheckpointError, match=f"these are weights of {network}, so build that one$"):
        load_weights(mixed(), path)


def test_a_head_of_another_size_is_an_error_unless_it_is_reset(tmp_path):
    path, model = saved(tiny_video().state_dict(), tmp_path / "x.pyth"), tiny_video(seed=2, num_classes=9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    message = (
        r"x.pyth: its head has 5 classes, the network's 9: build the network with num_classes=5, "
        r"or re-initialise its head with reset_head=True$"
    )
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, path)
    assert same_weights(model.state_dict(), before)
    report = load_weights(model, path, reset_head=True)
    assert report.new == ("head.projection.weight", "head.projection.bias")
    assert torch.equal(model.state_dict()["head.projection.weight"], before["head.projection.weight"])
    assert not torch.equal(model.state_dict()["norm.weight"], before["norm.weight"])


def test_weights_without_a_head_leave_the_models_own_and_say_so(tmp_path):
    state = {name: tensor for name, tensor in tiny_video().state_dict().items() if not name.startswith("head.")}
    report = load_weights(tiny_video(seed=2), saved(state, tmp_path / "x.pyth"))
    assert "2 new (head.projection.weight, head.projection.bias)" in report.summary()


def test_absolute_positions_are_interpolated_over_the_square_and_over_time(tmp_path):
    source = tiny_v1()
    longer = tiny_video(
        2,
        num_frames=16,
        crop_size=64,
        positions="absolute",
        residual_pooling=False,
        pool_all_queries=False,
        width_growth="mlp",
    )
    report = load_weights(longer, saved(source.state_dict(), tmp_path / "x.pyth"))
    assert report.interpolated == ("pos_embed_spatial", "pos_embed_temporal")
    clips = torch.randn(1, 3, 16, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(longer(clips), source(clips), atol=1e-5, rtol=1e-5)  # it interpolates at run time


def test_tables_that_are_interpolated_when_loaded_give_what_interpolating_at_run_time_gives(tmp_path):
    source = tiny_video()
    larger = tiny_video(seed=2, num_frames=16, crop_size=(64, 48))
    report = load_weights(larger, saved(source.state_dict(), tmp_path / "x.pyth"))
    assert len(report.interpolated) == 3 * 3  # every axis of every block
    clips = torch.randn(2, 3, 16, 64, 48, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        torch.testing.assert_close(larger(clips), source(clips), atol=1e-5, rtol=1e-5)


def test_a_folder_with_the_name_of_a_public_checkpoint_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MVIT_VIDEO_CACHE", str(tmp_path / "cache"))
    place = cache_path(ZOO["mvitv2_s_in1k"].url)
    place.parent.mkdir(parents=True)
    torch.save(build_model("mvitv2_nano_8x3", num_classes=400).state_dict(), place)
    (tmp_path / "mvitv2_s_in1k").mkdir()
    assert checkpoint_file("mvitv2_s_in1k") == place
    assert load_network("mvitv2_s_in1k")[1].name == "mvitv2_nano_8x3"
    (tmp_path / "mvitv2_s_in1k").rmdir()
    (tmp_path / "mvitv2_s_in1k").write_bytes(place.read_bytes())
    assert checkpoint_file("mvitv2_s_in1k") == Path("mvitv2_s_in1k")


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch code_was_run",)


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


BROKEN = {
    "code": (
        lambda state: {"model_state": state, "cfg": RunsCode()},
        "contains 'posix.system', which is code and is never run here: save the weights alone, torch.save",
    ),
    "missing": (
        lambda state: without(state, "blocks.1.norm1.bias"),
        r"lacks 'blocks.1.norm1.bias' \(1 missing, 0 unknown\): they are weights of no network that is known here",
    ),
    "unknown": (
        lambda state: state | {"blocks.0.gamma": torch.ones(1)},
        r"contains 'blocks.0.gamma', which the network does not have \(0 missing, 1 unknown\)",
    ),
    "no class token": (lambda state: without(state, "cls_token"), "lacks 'cls_token'"),
    "half a head": (lambda state: without(state, "head.projection.bias"), "lacks 'head.projection.bias'"),
    "nan": (
        lambda state: state | {"norm.bias": state["norm.bias"] * float("nan")},
        "'norm.bias' contains NaN or Inf: these weights are unusable",
    ),
    "integers": (
        lambda state: state | {"norm.bias": state["norm.bias"].long()},
        "'norm.bias' contains torch.int64, expected floating point weights$",
    ),
    "sparse": (
        lambda state: state | {"norm.bias": state["norm.bias"].to_sparse()},
        "'norm.bias' contains float32, sparse_coo, expected dense weights of float16, bfloat16, float32, float64$",
    ),
    "empty table": (
        lambda state: state | {"blocks.0.attn.rel_pos_h": torch.zeros(0, 16)},
        r"'blocks.0.attn.rel_pos_h' has shape \(0, 16\), the network's has \(15, 16\)",
    ),
    "shape": (
        lambda state: state | {"norm.bias": torch.ones(3)},
        r"'norm.bias' has shape \(3,\), the network's has \(32,\): they are weights of no network",
    ),
    "foreign": (
        lambda state: {"conv1.weight": torch.ones(1), "fc.bias": torch.ones(1)},
        r"contains weights of no network that is known here \(the first is 'conv1.weight'\): known are the names of PySlowFast",
    ),
    "beside": (
        lambda state: {"model_state": state, "ema_state": state},
        "contains 'ema_state' next to 'model_state', which is unknown: known are amp_scaler, arch, args",
    ),
    "mixed": (lambda state: state | {"epoch": 3}, "'epoch' is of type int, expected tensors by name"),
    "a list": (lambda state: list(state.values()), "contains no tensors by name: give a state dict"),
    "empty": (lambda state: {"model_state": {}}, "contains no tensors by name"),
    "twice": (
        lambda state: state | {"conv_proj.bias": state["norm.bias"], "conv_proj.weight": state["norm.weight"]},
        r"contains two tensors for 'patch_embed.proj.\w+', one of them is 'conv_proj.\w+'",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_checkpoint_that_does_not_explain_the_model_is_one_sentence(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change, message = BROKEN[what]
    model = tiny_video(seed=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = saved(change(tiny_video().state_dict()), tmp_path / "x.pyth")
    with pytest.raises(CheckpointError, match=f"^{path}: {message}") as caught:
        load_weights(model, path)
    assert "\n" not in str(caught.value)
    assert same_weights(model.state_dict(), before)
    assert not (tmp_path / "code_was_run").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.001, 0.02, 0.5, 0.99])
def test_a_truncated_file_is_one_sentence(tmp_path, share, zipped):
    path = tmp_path / "x.pyth"
    torch.save(tiny_video().state_dict(), path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: max(int(path.stat().st_size * share), 8)])
    with pytest.raises(
        CheckpointError, match=r"x.pyth: is not a complete PyTorch file \(truncated or damaged\): download it again$"
    ):
        load_weights(tiny_video(), path)


def test_a_file_that_is_no_checkpoint_at_all_is_named(tmp_path):
    (tmp_path / "x.pyth").write_bytes(b"\xff\xd8\xff\xe0 an image")
    (tmp_path / "empty.pyth").write_bytes(b"")
    for name in ("x.pyth", "empty.pyth"):
        with pytest.raises(CheckpointError, match=f"{name}: is neither a PyTorch nor a safetensors file: give a .pth"):
            load_weights(tiny_video(), tmp_path / name)
    with pytest.raises(CheckpointError, match=r"nowhere.pyth: no such file"):
        load_weights(tiny_video(), tmp_path / "nowhere.pyth")


@pytest.mark.parametrize("wrong", ["mvitv2_s_16x4_k40", "mvitv2_s_16x4"])
def test_a_name_that_the_zoo_does_not_have_is_answered_with_the_nearest(wrong):
    with pytest.raises(
        CheckpointError, match=rf"^{wrong}: no such file \(did you mean 'mvitv2_s_16x4_(k400|ssv2)'\?\)$"
    ):
        load_weights(tiny_video(), wrong)


def test_weights_of_another_size_name_the_network_that_they_belong_to(tmp_path):
    path = saved(build_model("mvitv2_nano_8x3").state_dict(), tmp_path / "x.pyth")
    with pytest.raises(
        CheckpointError, match=r"lacks 'blocks.10.* these are weights of mvitv2_nano_8x3 with its usual arguments"
    ):
        with torch.device("meta"):
            model = build_model("mvitv2_s_16x4")
        load_weights(model, path)
    with pytest.raises(CheckpointError, match=r"x.pyth: is a checkpoint without our card: .*convert --to native"):
        load_checkpoint(path)
