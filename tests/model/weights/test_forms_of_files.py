"""Files whose network differs from a registered one in form: read from their tensors, labelled with, converted, trained from."""

import pytest
import torch
from tiny_models import randomise

from mvit_video import build_model, load_weights
from mvit_video.config.schema import Config
from mvit_video.errors import CheckpointError, ConfigError
from mvit_video.model.weights.auto import resolve_model_name
from mvit_video.model.weights.convert import convert, load_network
from mvit_video.model.weights.load import load_checkpoint

MASKED = {"width_growth": "mlp", "pooling": "mean_without_cls"}
DEEPER = MASKED | {"depths": (1, 2, 2)}
CLIPS = torch.randn(1, 3, 8, 48, 48, generator=torch.Generator().manual_seed(2))


def nano(**arguments):
    return randomise(build_model("mvitv2_nano_8x3", num_classes=6, **arguments), seed=1)


def as_mmaction2(state):
    """Under MMAction2's names (MASKFEAT.md §8); the norm behind the third stage is number 2."""
    theirs = {
        "head.projection.": "cls_head.fc_cls.",
        "norm.": "backbone.norm2.",
        "patch_embed.proj.": "backbone.patch_embed.projection.",
    }
    return {
        next(
            (new + name.removeprefix(old) for old, new in theirs.items() if name.startswith(old)), f"backbone.{name}"
        ): tensor
        for name, tensor in state.items()
    }


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"width_growth": "mlp"}, as_mmaction2),
        ({}, as_mmaction2),
        (MASKED, dict),
        ({"depths": (2, 1, 2), "pool_kernel": "stride"}, dict),
    ],
    ids=["MMAction2 from MaskFeat", "MMAction2", "PySlowFast from MaskFeat", "other depths and filters"],
)
def test_a_files_form_is_read_from_it_and_travels_with_its_conversion(arguments, names, tmp_path):
    model = nano(**arguments)
    file, output = tmp_path / "file.pth", tmp_path / "native.safetensors"
    torch.save({"state_dict": names(model.state_dict())}, file)
    network, card = load_network(str(file))
    convert(str(file), "native", output, classes=list("abcdef"))
    again, native = load_checkpoint(output)
    assert (card.name, card.arguments) == ("mvitv2_nano_8x3", arguments)
    assert native.arguments.keys() == arguments.keys()
    with torch.no_grad():
        assert torch.equal(network(CLIPS), model(CLIPS)) and torch.equal(again(CLIPS), model(CLIPS))


def test_a_network_of_another_form_is_named_with_its_arguments(tmp_path):
    torch.save({"model_state": nano(**MASKED).state_dict()}, tmp_path / "file.pyth")
    expected = "of mvitv2_nano_8x3 with width_growth='mlp', pooling='mean_without_cls', so build that one$"
    with pytest.raises(CheckpointError, match=expected):
        load_weights(nano(), tmp_path / "file.pyth")
    with pytest.raises(ConfigError, match="with pooling='mean_without_cls', which torchvision does not have"):
        convert(str(tmp_path / "file.pyth"), "torchvision", tmp_path / "tv.pth")


@pytest.fixture
def pretrained(tmp_path):
    """MaskFeat's file of a small network: the last stage is not strided, a predictor in place of norm and head."""
    state = nano(q_stride=((1, 2, 2), (1, 1, 1)), **DEEPER).state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.startswith(("norm.", "head."))}
    state |= {"mask_token": torch.zeros(1, 1, 32), "pred_head.projections.0.weight": torch.zeros(27, 128)}
    state |= {"hogs.0.weight_x": torch.zeros(3, 1, 3, 3)}
    torch.save({"model_state": state}, tmp_path / "pretrained.pyth")
    return tmp_path / "pretrained.pyth"


def test_pretrained_weights_start_a_network_and_leave_norm_and_head_new(pretrained):
    model = nano(**DEEPER)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_weights(model, pretrained)
    assert report.new == ("head.projection.weight", "head.projection.bias", "norm.weight", "norm.bias")
    assert report.ignored == ("mask_token", "pred_head.projections.0.weight", "hogs.0.weight_x")
    assert set(report.interpolated) == {"blocks.4.attn.rel_pos_h", "blocks.4.attn.rel_pos_w"}
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in report.new)


def test_pretrained_weights_cannot_predict_and_the_error_names_the_command(pretrained, tmp_path):
    expected = (
        r"pretrained.pyth: is pre-trained without labels and has no head, so it cannot predict labels: "
        "fine-tune it, `mvit-video train"
    )
    for use in (load_network, lambda source: convert(source, "native", tmp_path / "x.safetensors")):
        with pytest.raises(CheckpointError, match=expected) as error:
            use(str(pretrained))
        assert f"model.weights={pretrained} --output DIR`" in str(error.value)


@pytest.mark.parametrize(
    ("source", "name", "arguments"),
    [(None, "mvitv2_nano_8x3", DEEPER), ("maskfeat_l_16x4_k400", "mvitv2_l_16x4", MASKED)],
    ids=["file", "zoo"],
)
def test_fine_tuning_takes_the_network_of_pretrained_weights(source, name, arguments, pretrained):
    words = {"model": {"name": "auto", "weights": source or str(pretrained), "arguments": {"drop_path_rate": 0.1}}}
    found = resolve_model_name(Config.model_validate(words | {"data": {"train": "a.csv", "val": "b.csv"}}))
    assert (found.model.name, found.model.arguments) == (name, arguments | {"drop_path_rate": 0.1})
