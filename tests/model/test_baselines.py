"""Other people's networks under our names: their sizes as published, logits out, plain errors."""

import pytest
import torch

from mvit_video import build_model, list_models, load_weights
from mvit_video.compat import import_pytorchvideo, import_torchvision
from mvit_video.config.schema import Config, InputSettings
from mvit_video.errors import CheckpointError, ConfigError
from mvit_video.model.registry import model_entry
from mvit_video.model.weights.auto import resolve_model_name
from mvit_video.model.weights.card import ModelCard, model_from_card
from mvit_video.model.weights.convert import convert
from mvit_video.model.weights.files import save_checkpoint
from mvit_video.model.weights.load import load_checkpoint, load_into, read_weights

# Small inputs where the network allows it; torchvision's MViTv2 is made for one size.
SMALL = {
    "torchvision/mvit_v2_s": {},
    "torchvision/swin3d_t": dict(num_frames=4, crop_size=48),
    "torchvision/swin3d_s": dict(num_frames=4, crop_size=48),
    "torchvision/swin3d_b": dict(num_frames=4, crop_size=48),
    "pytorchvideo/slow_r50": dict(num_frames=4, crop_size=(40, 64)),
    "pytorchvideo/x3d_s": dict(num_frames=4, crop_size=(48, 32)),
    "pytorchvideo/mvit_base_16x4": dict(num_frames=4, crop_size=(32, 48)),
}


def small_clips(name: str, batch: int) -> torch.Tensor:
    frames, height, width = model_entry(name).input_size
    crop = SMALL[name].get("crop_size", (height, width))
    height, width = (crop, crop) if isinstance(crop, int) else crop
    frames = SMALL[name].get("num_frames", frames)
    return torch.randn(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(0))


def test_every_baseline_is_tested_here():
    assert SMALL.keys() == {name for name in list_models() if model_entry(name).package}


def test_models_lists_baselines_behind_our_networks():
    names = list_models()
    assert names[-len(SMALL) :] == sorted(SMALL)
    assert "mvitv2_s_16x4" in names[: -len(SMALL)]


@pytest.mark.integration
@pytest.mark.parametrize("name", SMALL)
def test_a_baseline_returns_its_head_s_projection_in_training_and_evaluation(name):
    """Logits: what leaves the last Linear layer, averaged over places where it is applied at several; no softmax."""
    model = build_model(name, num_classes=6, **SMALL[name])
    heads = [module for module in model.modules() if isinstance(module, torch.nn.Linear) and module.out_features == 6]
    assert len(heads) == 1
    seen = []
    heads[0].register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    clips = small_clips(name, 1 if name == "torchvision/mvit_v2_s" else 2)
    for training in (False, True):
        with torch.no_grad():
            logits = model.train(training)(clips)
        projected = seen.pop()
        expected = projected.flatten(1, -2).mean(1) if projected.ndim > 2 else projected
        assert logits.shape == (len(clips), 6)
        torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("name", ["mvit_v2_s", "swin3d_t"])
def test_torchvision_baselines_have_the_published_parameters(name):
    video = import_torchvision("torchvision.models.video")
    weights = {"mvit_v2_s": video.MViT_V2_S_Weights, "swin3d_t": video.Swin3D_T_Weights}[name]
    with torch.device("meta"):
        model = build_model(f"torchvision/{name}")
    assert sum(parameter.numel() for parameter in model.parameters()) == weights.DEFAULT.meta["num_params"]


@pytest.mark.integration
@pytest.mark.parametrize("name", ["slow_r50", "x3d_s", "mvit_base_16x4"])
def test_pytorchvideo_baselines_are_the_hub_s_networks_up_to_the_softmax(name):
    hub = import_pytorchvideo("pytorchvideo.models.hub")
    theirs = getattr(hub, name)(pretrained=False).eval()
    ours = build_model(f"pytorchvideo/{name}").eval()
    ours.load_state_dict(theirs.state_dict())
    clips = torch.randn(
        1, 3, *model_entry(f"pytorchvideo/{name}").input_size, generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        expected, logits = theirs(clips), ours(clips)
    torch.testing.assert_close(logits.softmax(1) if name == "x3d_s" else logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        (
            "torchvision/mvit_v2_s",
            dict(crop_size=112),
            "torchvision/mvit_v2_s cannot be built for clips of 16×112×112 (frames×height×width): it takes 16×224×224 only",
        ),
        (
            "pytorchvideo/mvit_base_16x4",
            dict(num_frames=3),
            "pytorchvideo/mvit_base_16x4 cannot be built for clips of 3×224×224 (frames×height×width): "
            "it takes multiples of 2×4×4",
        ),
        (
            "pytorchvideo/x3d_s",
            dict(crop_size=(31, 64)),
            "pytorchvideo/x3d_s cannot be built for clips of 13×31×64 (frames×height×width): "
            "it takes images of at least 32×32",
        ),
        (
            "torchvision/swin3d_t",
            dict(num_frame=8),
            "model argument 'num_frame' is unknown (did you mean 'num_frames'?): "
            "choose from crop_size, num_classes, num_frames",
        ),
    ],
)
def test_a_size_or_argument_that_a_baseline_does_not_take_is_one_sentence(name, arguments, sentence):
    with pytest.raises(ConfigError) as caught:
        build_model(name, **arguments)
    assert str(caught.value) == sentence


def test_an_unknown_baseline_is_answered_with_the_nearest_name():
    with pytest.raises(
        ConfigError, match=r"^model 'torchvision/mvit_v2' is unknown \(did you mean 'torchvision/mvit_v2_s'"
    ):
        build_model("torchvision/mvit_v2")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mvitv2_s_16x4", (16, 224, 224)),
        ("mvitv2_l_40x3", (40, 312, 312)),
        ("mvitv2_s_in1k", (1, 224, 224)),
        ("torchvision/swin3d_t", (32, 224, 224)),
        ("pytorchvideo/x3d_s", (13, 160, 160)),
    ],
)
def test_the_usual_input_of_a_network(name, size):
    assert model_entry(name).input_size == size


def small_card(name: str, classes: tuple[str, ...]) -> ModelCard:
    frames, height, width = small_clips(name, 1).shape[2:]
    inputs = InputSettings(num_frames=frames, crop_size=(height, width), short_side=max(height, width))
    return ModelCard(name=name, arguments={}, classes=classes, preprocessing=inputs)


@pytest.mark.integration
@pytest.mark.parametrize("name", SMALL)
def test_a_baselines_own_checkpoint_starts_it_again_with_its_head_or_a_new_one(name, tmp_path):
    card = small_card(name, ("left", "right", "up"))
    source, path = model_from_card(card), tmp_path / "m.safetensors"
    save_checkpoint(path, source, card)
    weights, model = read_weights(path), model_from_card(card)
    assert (weights.num_classes, weights.classes, weights.format) == (3, card.classes, "native")
    report = load_into(model, weights)
    assert set(report.copied) == set(model.state_dict()) and not report.new
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in model.state_dict().items())

    other = build_model(name, num_classes=5, **SMALL[name])
    before = {key: tensor.clone() for key, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="its head has 3 classes, the network's 5: build the network with"):
        load_weights(other, path)
    (layer,) = [key for key, module in other.named_modules() if getattr(module, "out_features", 0) == 5]
    report = load_weights(other, path, reset_head=True)
    assert report.new == (f"{layer}.weight", f"{layer}.bias") and set(report.new) <= set(report.ignored)
    for key, tensor in other.state_dict().items():
        assert torch.equal(tensor, (before if key in report.new else source.state_dict())[key])


def test_a_baselines_checkpoint_names_its_network_and_fits_no_other(tmp_path):
    name = "pytorchvideo/x3d_s"
    card, path = small_card(name, ("left", "right")), tmp_path / "m.safetensors"
    save_checkpoint(path, model_from_card(card), card)
    settings = {"model": {"name": "auto", "weights": str(path)}}
    config = resolve_model_name(Config.model_validate(settings))
    assert (config.model.name, config.data.num_frames, config.data.crop_size) == (name, 4, (48, 32))
    with pytest.raises(CheckpointError, match="these are weights of pytorchvideo/x3d_s, so build that one"):
        load_weights(build_model("mvitv2_nano_8x3"), path)
    with pytest.raises(ConfigError, match="is of pytorchvideo/x3d_s, which cannot be written --to pyslowfast"):
        convert(str(path), "pyslowfast", tmp_path / "x.pyth")
    convert(str(path), "native", tmp_path / "new.safetensors", classes=("one", "two"))
    assert load_checkpoint(tmp_path / "new.safetensors")[1].classes == ("one", "two")
