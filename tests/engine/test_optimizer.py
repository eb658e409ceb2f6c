"""Who is decayed, who learns at which rate, and the optimisers' arithmetic."""

import json

import pytest
import torch
from shared_files import shared
from tiny_models import tiny_masked, tiny_video

from mvit_video import build_model
from mvit_video.config.load import load_config
from mvit_video.config.schema import TrainSettings
from mvit_video.engine.optimizer import freeze_all_but_head, optimizer_from, parameter_groups
from mvit_video.errors import ConfigError


def scales(model, layer_decay):
    groups = parameter_groups(model, 0.05, layer_decay)
    by_parameter = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    return {name: by_parameter[id(parameter)] for name, parameter in model.named_parameters()}


def test_sgd_is_nesterov_momentum_written_out():
    """One matrix entry and one bias, three steps, in plain arithmetic: the decay is part of the gradient."""
    model = torch.nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(0.5)
        model.bias.fill_(-0.2)
    settings = TrainSettings(optimizer="sgd", base_lr=0.1, momentum=0.8, weight_decay=0.01)
    optimizer = optimizer_from(settings, model)
    values, buffers = {"weight": 0.5, "bias": -0.2}, {"weight": 0.0, "bias": 0.0}
    for gradient in (0.3, -0.2, 0.7):
        model.weight.grad, model.bias.grad = torch.full((1, 1), gradient), torch.full((1,), gradient)
        optimizer.step()
        for name, decay in (("weight", 0.01), ("bias", 0.0)):
            slope = gradient + decay * values[name]
            buffers[name] = 0.8 * buffers[name] + slope
            values[name] -= 0.1 * (slope + 0.8 * buffers[name])
            assert getattr(model, name).item() == pytest.approx(values[name], abs=1e-7)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_optimisers_run_as_one_fused_kernel(optimizer):
    assert optimizer_from(TrainSettings(optimizer=optimizer), torch.nn.Linear(1, 1)).defaults["fused"] is True


def test_layer_decay_is_the_table_of_the_image_recipes():
    """Three blocks: layers 0 (embedding) to 4 (norm and head), each at half the rate of the next."""
    table = {
        "cls_token": 1 / 16, "patch_embed.proj.weight": 1 / 16, "patch_embed.proj.bias": 1 / 16,
        "blocks.0.norm1.weight": 1 / 8, "blocks.0.attn.rel_pos_t": 1 / 8, "blocks.0.mlp.fc2.bias": 1 / 8,
        "blocks.1.attn.qkv.weight": 1 / 4, "blocks.1.proj.weight": 1 / 4,
        "blocks.2.attn.pool_k.weight": 1 / 2, "blocks.2.norm2.bias": 1 / 2,
        "norm.weight": 1, "norm.bias": 1, "head.projection.weight": 1, "head.projection.bias": 1,
    }  # fmt: skip
    found = scales(tiny_video(), 0.5)
    assert {name: found[name] for name in table} == table
    assert all(scale == 1 / 2 ** (3 - int(name[7])) for name, scale in found.items() if name.startswith("blocks."))


def test_rates_and_decays_of_maskfeats_fine_tuning_are_the_public_codes():
    recorded = json.loads(shared("reference/maskfeat/layer_decay.json").read_text())["k400_MVITv2_S_16x4_FT"]
    config = load_config("kinetics400/maskfeat_s_16x4_finetune")
    with torch.device("meta"):
        model = build_model(config.model.name, **config.model.arguments)
    groups = parameter_groups(model, config.train.weight_decay, config.train.layer_decay)
    actual = {id(each): (group["lr_scale"], group["weight_decay"]) for group in groups for each in group["params"]}
    names = {name: actual[id(parameter)] for name, parameter in model.named_parameters()}
    assert names.keys() == recorded["scale_and_weight_decay"].keys() and len(names) == 397
    for name, expected in recorded["scale_and_weight_decay"].items():
        assert names[name] == pytest.approx(tuple(expected), rel=1e-6), name


def test_the_mask_token_is_decayed_and_learns_as_the_class_token_does():
    model = tiny_masked()
    found, groups = scales(model, 0.5), parameter_groups(model, 0.05)
    assert found["mask_token"] == found["cls_token"] == min(found.values())
    assert any(model.mask_token is each for group in groups if group["weight_decay"] for each in group["params"])


def test_layer_decay_and_weight_decay_go_together():
    model = tiny_video()
    groups = parameter_groups(model, 0.05, 0.5)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    assert all(decay[id(parameter)] == (0.05 if parameter.ndim > 1 else 0.0) for parameter in model.parameters())


def test_without_layer_decay_all_learn_at_the_full_rate():
    assert set(scales(tiny_video(), 1.0).values()) == {1.0}


def test_layer_decay_of_a_baseline_ends_at_its_head():
    model = build_model("pytorchvideo/slow_r50", num_classes=3, num_frames=4, crop_size=32)
    found = scales(model, 0.5)
    assert found["blocks.5.proj.weight"] == 1 and found["blocks.4.res_blocks.0.branch2.conv_a.weight"] == 1 / 2


def test_layer_decay_of_a_network_without_blocks_is_refused():
    with pytest.raises(ConfigError, match=r"has no numbered blocks, which train.layer_decay needs"):
        parameter_groups(torch.nn.Linear(2, 2), 0.05, 0.9)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("mvitv2_nano_8x3", "head.projection"),
        ("pytorchvideo/slow_r50", "blocks.5.proj"),
        ("pytorchvideo/x3d_s", "blocks.5.proj"),
        ("pytorchvideo/mvit_base_16x4", "head.proj"),
        ("torchvision/swin3d_t", "head"),
    ],
)
def test_the_head_of_every_network_is_its_classifier(name, head):
    model = build_model(name, num_classes=3)
    freeze_all_but_head(model)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {f"{head}.weight", f"{head}.bias"}
