"""Networks built without values and filled from a file: the bits of a network that is built with some and loaded."""

import subprocess
import sys

import pytest
import torch
from tiny_checkpoint import write_tiny
from tiny_models import randomise
from torch import nn

from mvit_video import build_model
from mvit_video.config.schema import InputSettings
from mvit_video.model.registry import Capabilities, ModelEntry, model_entry
from mvit_video.model.weights.card import ModelCard
from mvit_video.model.weights.convert import load_network
from mvit_video.model.weights.files import save_checkpoint
from mvit_video.model.weights.load import filled, load_checkpoint

NETWORKS = {  # one with absolute positions, one with index tables as buffers, one that cannot be built on the meta device
    "mvitv2_nano_8x3": dict(num_frames=4, crop_size=32),
    "mvitv1_b_16x4": dict(num_frames=4, crop_size=32),
    "maxvit_t_in1k": dict(num_frames=1, crop_size=64),
    "torchvision/swin3d_t": dict(num_frames=4, crop_size=32),
    "pytorchvideo/x3d_s": dict(num_frames=4, crop_size=32),
}


def saved(path, name, seed=0):
    model = randomise(build_model(name, num_classes=5, **NETWORKS[name]), seed)
    input = InputSettings(sampling_rate=1, short_side=64, **NETWORKS[name])
    save_checkpoint(path, model, ModelCard(name=name, arguments={}, classes=tuple("abcde"), preprocessing=input))
    return model


@pytest.mark.parametrize(
    "name", ["mvitv2_nano_8x3", *(pytest.param(n, marks=pytest.mark.integration) for n in list(NETWORKS)[1:])]
)
def test_a_loaded_network_gives_the_bits_of_the_saved_one(name, tmp_path):
    model = saved(tmp_path / "x.safetensors", name)
    size = NETWORKS[name]
    clips = torch.randn(2, 3, size["num_frames"], size["crop_size"], size["crop_size"])
    before = torch.get_rng_state()
    for found in (load_network(tmp_path / "x.safetensors")[0], load_checkpoint(tmp_path / "x.safetensors")[0]):
        tensors = dict(found.named_parameters()) | dict(found.named_buffers())
        assert tensors.keys() == (dict(model.named_parameters()) | dict(model.named_buffers())).keys()
        assert all(tensor.device.type == "cpu" and tensor.data_ptr() % 64 == 0 for tensor in tensors.values())
        assert all(parameter.requires_grad and parameter.is_leaf for parameter in found.parameters())
        with torch.no_grad():
            assert torch.equal(found(clips), model(clips)) and not found.training
    if model_entry(name).capabilities.meta:
        assert torch.equal(torch.get_rng_state(), before)  # no weights were drawn


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_of_another_type_become_the_network_s(dtype, tmp_path):
    model = saved(tmp_path / "x.safetensors", "mvitv2_nano_8x3")
    card = load_network(tmp_path / "x.safetensors")[1]
    save_checkpoint(tmp_path / "y.safetensors", model.to(dtype), card)
    actual = load_network(tmp_path / "y.safetensors")[0]
    expected = {name: tensor.float() for name, tensor in model.state_dict().items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in actual.state_dict().items())


def test_a_network_is_its_own_and_not_the_file_s_memory(tmp_path):
    state = {name: tensor.clone() for name, tensor in build_model("mvitv2_nano_8x3").state_dict().items()}
    actual = filled(lambda: build_model("mvitv2_nano_8x3"), lambda expected: state, model_entry("mvitv2_nano_8x3"))
    with torch.no_grad():
        actual.norm.weight.zero_()
    assert bool(state["norm.weight"].all())


class WithATable(nn.Module):
    """A network with a buffer that no file has."""

    def __init__(self, **arguments):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("table", torch.arange(3.0), persistent=False)


def test_a_network_with_values_that_are_in_no_file_is_built_with_them():
    arguments = dict(num_classes=2, num_frames=1, crop_size=1)
    entry = ModelEntry("mine", WithATable, arguments, Capabilities(meta=True), 1, "")
    state = WithATable().state_dict()
    actual = filled(WithATable, lambda expected: state, entry)
    assert actual.table.tolist() == [0, 1, 2] and torch.equal(actual.linear.weight, state["linear.weight"])


@pytest.mark.integration
def test_predict_imports_what_it_uses(tmp_path, few_videos):
    write_tiny(tmp_path / "x.safetensors")
    code = (
        "import sys; from mvit_video import cli; "
        f"assert cli.main(['predict', {str(few_videos / 'val/00000.mp4')!r}, '--checkpoint', {str(tmp_path / 'x.safetensors')!r}]) == 0; "
        "print([n for n in ('yaml', 'matplotlib', 'sympy', 'torchvision', 'pytorchvideo', 'tensorboard', 'starlette', 'onnx', "
        "'torch._dynamo', 'torch._inductor', 'decord') if n in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.splitlines()[-1] == "[]"
