"""Our video networks against torchvision's, with torchvision's random weights loaded through `load_weights`."""

import pytest
import torch
from tiny_models import randomise, relative_difference

from mvit_video import build_model, load_weights
from mvit_video.model.checkpoint_formats import to_torchvision
from mvit_video.model.checkpoints import read_weights, recognise_model

video = pytest.importorskip("torchvision.models.video")
SIZES = {"mvit_v2_s": "mvitv2_s_16x4", "mvit_v1_b": "mvitv1_b_16x4"}
SMALL_INPUT = dict(spatial_size=(64, 64), temporal_size=4)


@pytest.fixture
def small_input(monkeypatch):
    """torchvision's builders state their input's size twice when it is given: this puts in another one."""
    build = video.mvit._mvit
    monkeypatch.setattr(video.mvit, "_mvit", lambda **words: build(**words | SMALL_INPUT))


@pytest.mark.parametrize("name", SIZES)
def test_video_networks_have_torchvisions_logits_and_their_export_is_torchvisions_state(name, small_input, tmp_path):
    theirs = randomise(getattr(video, name)(num_classes=10), seed=3)
    torch.save(theirs.state_dict(), tmp_path / "tv.pth")
    ours = build_model(SIZES[name], num_frames=4, crop_size=64, num_classes=10).eval()
    report = load_weights(ours, tmp_path / "tv.pth")
    assert report.format == "torchvision" and set(report.copied) == set(ours.state_dict())
    clips = torch.randn(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        wanted, found = theirs(clips), ours(clips)
    assert wanted.std() > 0.1
    assert relative_difference(found, wanted) < 1e-5
    exported = to_torchvision(ours.state_dict())
    assert exported.keys() == theirs.state_dict().keys()
    assert all(torch.equal(exported[key], tensor) for key, tensor in theirs.state_dict().items())


def test_the_full_mvit_v1_b_is_recognised(tmp_path):
    with torch.device("meta"):
        theirs = video.mvit_v1_b()
    state = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in theirs.state_dict().items()}
    torch.save(state, tmp_path / "tv.pth")
    assert recognise_model(read_weights(tmp_path / "tv.pth").state) == "mvitv1_b_16x4"
