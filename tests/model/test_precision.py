"""Half precision for inference: what a word becomes on a device, and that rounding weights once changes no bit."""

from types import SimpleNamespace

import pytest
import torch
from tiny_models import relative_difference, tiny_video
from torch import nn

from mvit_video import build_model
from mvit_video.errors import ConfigError
from mvit_video.model import precision
from mvit_video.model.precision import DTYPES, Precision, resolve_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

# Published widths and depths, on clips as small as the network takes. At published sizes the logits in bf16 were found to be
# at most .013 of the largest one from those in fp32.
REAL = {
    "mvitv2_t_16x4": dict(num_frames=4, crop_size=64),
    "mvitv1_b_16x4": dict(num_frames=4, crop_size=64),
    "cswin_t_in1k": dict(crop_size=64),
    "maxvit_t_in1k": dict(crop_size=64),
    "pvt_v2_b1_in1k": dict(crop_size=64),
    "twins_svt_s_in1k": dict(crop_size=64),
    "pytorchvideo/x3d_s": dict(num_frames=4, crop_size=32),
    "torchvision/swin3d_t": dict(num_frames=4, crop_size=64),
}
BOUND = 0.03


def has_bf16(monkeypatch, answer):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: answer)


def clips_for(arguments, batch=2):
    frames, crop = arguments.get("num_frames", 1), arguments["crop_size"]
    return torch.randn(batch, 3, frames, crop, crop, generator=torch.Generator().manual_seed(0))


def test_auto_is_single_precision_on_a_cpu_and_bf16_on_a_gpu_that_has_it(monkeypatch):
    assert resolve_precision("auto", CPU).name == "fp32"
    has_bf16(monkeypatch, True)
    assert resolve_precision("auto", CUDA).name == "bf16"
    has_bf16(monkeypatch, False)
    assert resolve_precision("auto", CUDA).name == "fp32"
    assert [resolve_precision(name, CPU).dtype for name in DTYPES] == [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize(
    ("word", "device", "message"),
    [
        ("int8", CPU, "--precision 'int8' is unknown: choose from auto, fp32, bf16, fp16$"),
        ("bf16", CUDA, "--precision bf16: device 'cuda' does not compute in it: use auto or fp32$"),
        ("fp16", torch.device("meta"), "--precision fp16: device 'meta' does not compute in it: use auto or fp32$"),
    ],
)
def test_what_a_device_lacks_is_refused_by_the_option_s_name(word, device, message, monkeypatch):
    has_bf16(monkeypatch, False)
    with pytest.raises(ConfigError, match=message):
        resolve_precision(word, device, "--precision")


def test_fp16_on_a_cpu_is_said_to_be_slow_once(caplog):
    precision._tell_slow.cache_clear()
    for _ in range(2):
        assert resolve_precision("fp16", CPU, "--precision").name == "fp16"
    assert [record.message.partition(":")[0] for record in caplog.records] == ["--precision fp16"]


def test_a_record_says_whether_tf32_is_on(monkeypatch):
    assert str(Precision("fp32", CPU)) == "fp32" and str(Precision("bf16", CUDA)) == "bf16"
    texts = []
    for products, convolutions in (("tf32", "tf32"), ("none", "tf32"), ("ieee", "ieee")):
        monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision=products))
        monkeypatch.setattr(torch.backends.cudnn, "conv", SimpleNamespace(fp32_precision=convolutions))
        texts.append(str(Precision("fp32", CUDA)))
    assert texts == ["fp32, TF32 for products and convolutions", "fp32, TF32 for convolutions", "fp32, TF32 off"]


def test_single_precision_is_the_network_itself():
    model = tiny_video()
    assert Precision("fp32", CPU).held(model) is model
    clips = torch.randn(1, 3, 8, 32, 32)
    with torch.no_grad(), Precision("fp32", CPU).autocast():
        assert model(clips).dtype == torch.float32


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_linear_layers_and_convolutions_are_rounded_once_and_all_else_is_shared(name):
    model = tiny_video()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    held = Precision(name, CPU).held(model)
    layers = [key for key, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv3d)]
    for key, tensor in held.state_dict().items():
        if key.rpartition(".")[0] in layers:
            assert torch.equal(tensor, before[key].to(DTYPES[name])) and tensor.dtype == DTYPES[name]
        else:
            assert tensor.dtype == torch.float32 and tensor.data_ptr() == model.state_dict()[key].data_ptr()
    kept = {key for key, tensor in held.state_dict().items() if tensor.dtype == torch.float32}
    assert any("rel_pos" in key for key in kept) and any("norm" in key for key in kept) and "cls_token" in kept
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert [p.requires_grad for p in held.parameters()] == [p.requires_grad for p in model.parameters()]
    assert held.registered_name == model.registered_name


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_held_weights_give_the_bits_of_autocast_with_and_without_gradients(name):
    model, half = tiny_video(), Precision(name, CPU)
    held, clips = half.held(model), torch.randn(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full = model(clips)
    with half.autocast(), torch.inference_mode():
        expected, actual = model(clips), held(clips)
    assert torch.equal(actual, expected) and actual.dtype == half.dtype
    assert 0 < relative_difference(actual.float(), full) < (0.05 if name == "bf16" else 0.006)
    with half.autocast():
        assert torch.equal(held(clips), expected)
        maps = zip(held.forward_features(clips), model.forward_features(clips), strict=True)
        assert all(torch.equal(actual, expected) for actual, expected in maps)


def test_networks_of_others_keep_their_weights():
    """They may switch autocast off inside, where rounded weights would not fit what comes in."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    assert Precision("bf16", CPU).held(model) is model


@pytest.mark.integration
@pytest.mark.parametrize("name", REAL)
def test_a_network_in_bf16_is_autocast_s_to_the_bit_and_near_single_precision(name):
    torch.manual_seed(0)
    model, half, clips = build_model(name, **REAL[name]).eval(), Precision("bf16", CPU), clips_for(REAL[name])
    held = half.held(model)
    assert sum(p.numel() * p.element_size() for p in held.parameters()) < 0.6 * 4 * sum(
        p.numel() for p in model.parameters()
    )
    with torch.inference_mode():
        full = model(clips)
        with half.autocast():
            expected, actual = model(clips), held(clips)
    assert torch.equal(actual, expected)
    assert 0 < relative_difference(actual.float(), full) < BOUND
