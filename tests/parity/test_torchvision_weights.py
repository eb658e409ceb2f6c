"""Our video networks against torchvision's, with torchvision's random weights loaded through `load_weights`."""

import pytest
import torch
from tiny_models import randomise, relative_difference

from mvit_video import build_model, load_weights
from mvit_video.model.weights.formats import convert_to_ours, to_torchvision
from mvit_video.model.weights.load import read_weights, recognise_model

video = pytest.importorskip("torchvision.models.video")
SIZES = {"mvit_v2_s": "mvitv2_s_16x4", "mvit_v1_b": "mvitv1_b_16x4"}
SMALL_INPUT = dict(spatial_size=(64, 64), temporal_size=4)


@pytest.fixture
def small_input(monkeypatch):
    """torchvision's builders state their input's size twice when it is given: this puts in another one."""
    build = video.mvit._mvit
    monkeypatch.setattr(video.mvit, "_mvit", lambda **words: build(**words | SMALL_INPUT))


@pytest.mark.integration
@pytest.mark.parametrize("name", SIZES)
def test_video_networks_have_torchvisions_logits_and_their_export_is_torchvisions_state(name, small_input, tmp_path):
    theirs = randomise(getattr(video, name)(num_classes=10), seed=3)
    torch.save(theirs.state_dict(), tmp_path / "tv.pth")
    ours = build_model(SIZES[name], num_frames=4, crop_size=64, num_classes=10).eval()
    report = load_weights(ours, tmp_path / "tv.pth")
    assert report.format == "torchvision" and set(report.copied) == set(ours.state_dict())
    clips = torch.randn(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected, actual = theirs(clips), ours(clips)
    assert expected.std() > 0.1
    assert relative_difference(actual, expected) < 1e-5
    exported = to_torchvision(ours.state_dict())
    assert exported.keys() == theirs.state_dict().keys()
    assert all(torch.equal(exported[key], tensor) for key, tensor in theirs.state_dict().items())


def full_size_pair(theirs, tmp_path, attention, dtype):
    """torchvision's network and ours with its weights, without dropout: the logits and the gradients of both."""
    theirs.head[0].p = 0.0
    torch.save(theirs.state_dict(), tmp_path / "tv.pth")
    ours = build_model("mvitv2_s_16x4", attention=attention, dropout_rate=0.0, drop_path_rate=0.0).train()
    load_weights(ours, tmp_path / "tv.pth")
    clips = torch.randn(1, 3, 16, 224, 224, generator=torch.Generator().manual_seed(6)).to(dtype)
    logits = []
    for model in (theirs, ours):
        logits.append(model.to(dtype)(clips))
        logits[-1].square().mean().backward()
    assert logits[0].std() > 0.1
    _, expected = convert_to_ours({name: parameter.grad for name, parameter in theirs.named_parameters()}, "gradients")
    return logits, {name: (parameter.grad, expected[name]) for name, parameter in ours.named_parameters()}


@pytest.mark.integration
@pytest.mark.parametrize("attention", ["flash", "reference"])
def test_mvitv2_s_has_torchvisions_logits_and_gradients(attention, tmp_path):
    torch.manual_seed(0)
    theirs = video.mvit_v2_s(stochastic_depth_prob=0.0).train()
    logits, gradients = full_size_pair(theirs, tmp_path, attention, torch.float32)
    assert (logits[0] - logits[1]).abs().max() < 1e-5
    # A near tie in a max pool sends a gradient to another cell in single precision, which ones depends on the processor:
    # here the gradient as a whole is compared, every single one in double precision below.
    ours, expected = (torch.cat([pair[side].flatten() for pair in gradients.values()]) for side in (0, 1))
    assert (ours - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.integration
def test_in_double_precision_all_gradients_are_torchvisions_to_the_last_digits(tmp_path):
    theirs = randomise(video.mvit_v2_s(stochastic_depth_prob=0.0), seed=5).train()
    logits, gradients = full_size_pair(theirs, tmp_path, "flash", torch.float64)
    assert (logits[0] - logits[1]).abs().max() < 1e-12
    for name, (ours, expected) in gradients.items():
        assert (ours - expected).norm() < 1e-11 * max(expected.norm().item(), 1e-3), name


def test_the_full_mvit_v1_b_is_recognised(tmp_path):
    with torch.device("meta"):
        theirs = video.mvit_v1_b()
    state = {name: torch.zeros(tensor.shape) for name, tensor in theirs.state_dict().items()}
    torch.save(state, tmp_path / "tv.pth")
    assert recognise_model(read_weights(tmp_path / "tv.pth")) == ("mvitv1_b_16x4", {})
