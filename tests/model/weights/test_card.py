import json

import pytest
import torch
from safetensors.torch import save_file

from mvit_video.config.schema import InputSettings
from mvit_video.errors import CheckpointError
from mvit_video.model.weights.card import CARD_KEY, ModelCard, model_from_card
from mvit_video.model.weights.convert import convert
from mvit_video.model.weights.files import save_checkpoint
from mvit_video.model.weights.load import load_checkpoint

CARD = ModelCard(
    name="mvitv2_nano_8x3",
    arguments={"depths": [1, 1]},
    classes=("größer", "kleiner"),
    preprocessing=InputSettings(num_frames=4, crop_size=(32, 48), short_side=48),
    protocol="3x1",
)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = model_from_card(CARD).eval()
    save_checkpoint(tmp_path / "m.safetensors", model, CARD)
    return tmp_path / "m.safetensors", model


def test_a_checkpoint_is_enough_to_build_the_same_network(saved):
    path, model = saved
    loaded, card = load_checkpoint(path)
    assert card == CARD and not loaded.training
    clips = torch.randn(1, 3, 4, 32, 48)
    assert torch.equal(loaded(clips), model(clips))


def test_weights_that_are_not_numbers_are_never_written(saved, tmp_path):
    _, model = saved
    with torch.no_grad():
        model.head.projection.weight[0, 0] = float("inf")
    with pytest.raises(CheckpointError, match=r"not written, because 'head.projection.weight' holds NaN or Inf"):
        save_checkpoint(tmp_path / "broken.safetensors", model, CARD)
    assert not (tmp_path / "broken.safetensors").exists()


def rewrite(path, change_state=lambda state: state, change_card=lambda card: card):
    from safetensors.torch import load_file

    state, card = load_file(path), json.loads(CARD.model_dump_json())
    save_file(change_state(state), path, metadata={CARD_KEY: json.dumps(change_card(card))})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: {k: v for k, v in state.items() if k != "norm.bias"},
            r"lacks 'norm.bias' \(1 missing, 0 unknown\)",
        ),
        (lambda state: state | {"extra": torch.ones(1)}, "holds 'extra', which the network does not have"),
        (
            lambda state: state | {"head.projection.bias": torch.ones(3)},
            r"'head.projection.bias' has shape \(3,\), wanted \(2,\): is it a checkpoint of another network or class list",
        ),
        (lambda state: state | {"norm.bias": state["norm.bias"] * float("nan")}, "'norm.bias' holds NaN or Inf"),
    ],
)
def test_weights_that_do_not_fit_are_named(saved, change, message):
    rewrite(saved[0], change_state=change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card | {"name": "mvitv9"}, "describes no network that can be built .*model 'mvitv9' is unknown"),
        (lambda card: card | {"arguments": {"depht": 1}}, "model argument 'depht' is unknown"),
        (
            lambda card: card | {"arguments": {"cls_token": "no"}},
            "no network that can be built .*cls_token='no': wanted",
        ),
        (lambda card: card | {"arguments": {"mlp_ratio": -1}}, "no network that can be built .*mlp_ratio=-1: wanted"),
        (lambda card: card | {"arguments": {"embed_dim": 10**12}}, "no network that can be built .*as large as"),
        (lambda card: card | {"arguments": {"num_classes": 2}}, "no network that can be built .*num_classes"),
        (lambda card: {}, "its card cannot be read"),
    ],
)
def test_a_card_that_does_not_describe_a_network_is_an_error(saved, change, message):
    rewrite(saved[0], change_card=change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved[0])
    with pytest.raises(CheckpointError):
        convert(str(saved[0]), "native", saved[0].with_name("new.safetensors"))


def test_files_that_are_no_checkpoints_are_named(saved, tmp_path):
    path, _ = saved
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-100])
    (tmp_path / "text.safetensors").write_text("hello")
    save_file({"x": torch.ones(1)}, tmp_path / "foreign.safetensors")
    for name, message in (
        ("cut", "is not a whole safetensors file"),
        ("text", "is not a whole safetensors file"),
        ("foreign", "is a safetensors file without our card"),
        ("nowhere", "no such file"),
    ):
        with pytest.raises(CheckpointError, match=rf"{name}.safetensors: {message}"):
            load_checkpoint(tmp_path / f"{name}.safetensors")
