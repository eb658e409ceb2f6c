"""Where a training run starts from."""

import torch
from tiny_models import randomise

from mvit_video import build_model
from mvit_video.config.load import load_config
from mvit_video.config.schema import Config
from mvit_video.engine.build import initial_model
from mvit_video.engine.resolve import model_card
from mvit_video.model.weights.files import save_checkpoint

SMALL = dict(depths=(1, 1))


def config_with(weights) -> Config:
    data = dict(num_frames=8, crop_size=48, short_side=48)
    return Config.model_validate(
        {"model": dict(name="mvitv2_nano_8x3", arguments=SMALL, weights=str(weights)), "data": data}
    )


def network(seed, num_classes=2):
    return randomise(build_model("mvitv2_nano_8x3", num_classes=num_classes, **SMALL), seed)


def test_a_checkpoint_with_the_same_classes_keeps_its_head(tmp_path):
    config, source, said = config_with(tmp_path / "m.safetensors"), network(1), []
    card = model_card(config, ("left", "right"))
    save_checkpoint(tmp_path / "m.safetensors", source, card)
    model = initial_model(config, card, said.append)
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert said == [f"weights from {tmp_path / 'm.safetensors'} (native): {len(source.state_dict())} copied"]


def test_a_head_for_other_classes_starts_new_and_is_announced_even_where_their_number_is_the_same(tmp_path):
    config, source, said = config_with(tmp_path / "m.safetensors"), network(1), []
    save_checkpoint(tmp_path / "m.safetensors", source, model_card(config, ("left", "right")))
    model = initial_model(config, model_card(config, ("up", "down")), said.append)
    assert said[0] == (
        f"the classification head is re-initialised for your classes: {tmp_path / 'm.safetensors'} has 2 classes, such as 'left', "
        "the training list 2, such as 'up'"
    )
    assert "2 new (head.projection.weight, head.projection.bias)" in said[1]
    assert not torch.equal(model.head.projection.weight, source.head.projection.weight)
    assert model.head.projection.weight.std() < 0.03
    assert torch.equal(model.norm.weight, source.norm.weight)


def test_a_foreign_checkpoint_starts_a_run_with_a_new_head(tmp_path):
    config, source, said = config_with(tmp_path / "x.pyth"), network(1, num_classes=31), []
    torch.save({"model_state": source.state_dict(), "epoch": 3}, tmp_path / "x.pyth")
    model = initial_model(config, model_card(config, ("up", "down")), said.append)
    assert "has 31 classes, of unknown names, the training list 2" in said[0]
    assert "(PySlowFast)" in said[1] and "3 ignored" in said[1]  # the epoch, and its head of two tensors
    assert torch.equal(model.blocks[1].attn.rel_pos_t, source.blocks[1].attn.rel_pos_t)


def test_the_seed_decides_the_new_head(tmp_path):
    torch.save(network(1, num_classes=31).state_dict(), tmp_path / "x.pyth")
    config = config_with(tmp_path / "x.pyth")
    heads = [initial_model(config, model_card(config, ("up", "down")), print).head.projection.weight for _ in range(2)]
    assert torch.equal(*heads)


def test_the_setting_takes_any_checkpoint(tmp_path):
    (tmp_path / "c.yaml").write_text("model: {weights: mvitv2_s_16x4_k400}\n")
    assert load_config(tmp_path / "c.yaml", []).model.weights == "mvitv2_s_16x4_k400"
