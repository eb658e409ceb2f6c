import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mvit_video.compat import import_torchvision
from mvit_video.config.schema import TrainSettings
from mvit_video.data.mixing import MixParameters, apply_mix, draw_box, mix_generator, mixer_from, smooth_targets

import_torchvision()  # timm needs it, by way of the repair that some installations need
from timm.data import mixup as timm_mixup  # noqa: E402

RECIPE = dict(mixup=0.8, cutmix=1.0, mix_switch=0.5, mix_probability=1.0, label_smoothing=0.1)
LABELS = torch.tensor([0, 2, 1, 4])


def clips(batch=4):
    return torch.randn(batch, 3, 5, 12, 16, generator=torch.Generator().manual_seed(0))


def timms_mix(images, labels, share, box=None, smoothing=0.1):
    """timm's own class on (B, C, H, W), told which share and box to take."""
    theirs = timm_mixup.Mixup(1.0, 1.0, label_smoothing=smoothing, num_classes=5)
    theirs._params_per_batch = lambda: (share, box is not None)
    original = timm_mixup.cutmix_bbox_and_lam
    timm_mixup.cutmix_bbox_and_lam = lambda *_, **__: ((box[0], box[2], box[1], box[3]), share)
    try:
        return theirs(images.clone(), labels)
    finally:
        timm_mixup.cutmix_bbox_and_lam = original


@pytest.mark.parametrize(
    "mix",
    [
        MixParameters(0.3),
        MixParameters(0.875),
        MixParameters(1 - 5 * 8 / (12 * 16), (2, 3, 7, 11)),
        MixParameters(1.0),
    ],
)
def test_every_frame_and_the_targets_are_mixed_as_timm_does(mix):
    mixed, targets = apply_mix(clips(), smooth_targets(LABELS, 5, 0.1), mix)
    for frame in range(5):
        expected, wanted_targets = timms_mix(clips()[:, :, frame], LABELS, mix.share, mix.box)
        assert torch.equal(mixed[:, :, frame], expected)
    assert torch.allclose(targets, wanted_targets, atol=1e-7) and torch.allclose(targets.sum(1), torch.ones(4))


@pytest.mark.parametrize(("share", "y", "x"), [(0.3, 5, 8), (0.3, 0, 15), (0.9, 11, 0), (0.999, 5, 5), (0.0, 6, 8)])
def test_boxes_are_timms_for_the_same_share_and_centre(share, y, x, monkeypatch):
    class Centre:
        def integers(self, size):
            return {12: y, 16: x}[size]

    centre = iter([y, x])
    monkeypatch.setattr(timm_mixup.np.random, "randint", lambda *_, **__: next(centre))
    (top, bottom, left, right), left_over = timm_mixup.cutmix_bbox_and_lam((4, 3, 12, 16), share)
    assert draw_box(Centre(), share, 12, 16) == (pytest.approx(left_over), (top, left, bottom, right))


def test_without_mixing_the_loss_is_that_of_label_smoothing():
    mixer = mixer_from(TrainSettings(label_smoothing=0.1), 5)
    same, targets = mixer(clips(), LABELS, mix_generator(0, 0))
    assert torch.equal(same, clips())
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(F.cross_entropy(logits, targets), F.cross_entropy(logits, LABELS, label_smoothing=0.1))


def draws(count=3000, **changes):
    mixer, rng = mixer_from(TrainSettings(**(RECIPE | changes)), 5), np.random.default_rng(0)
    return [mixer.draw(rng, 224, 224) for _ in range(count)]


def test_the_recipe_takes_mixup_and_cutmix_half_of_the_time_each():
    boxes = [mix for mix in draws() if mix.box]
    shares = np.array([mix.share for mix in draws() if not mix.box])
    assert abs(len(boxes) / 3000 - 0.5) < 0.03
    assert abs(shares.mean() - 0.5) < 0.03 and abs(shares.var() - 1 / (4 * (2 * 0.8 + 1))) < 0.01  # of Beta(.8, .8)


def test_every_switch_decides_alone():
    assert all(mix.box is None and mix.share < 1 for mix in draws(cutmix=0))
    assert all(mix.box is not None for mix in draws(mixup=0))
    assert all(mix.box is not None for mix in draws(mix_switch=1))
    assert all(mix.box is None for mix in draws(mix_switch=0))
    assert all(mix == MixParameters() for mix in draws(mix_probability=0)) and all(
        mix == MixParameters() for mix in draws(mixup=0, cutmix=0)
    )
    assert abs(sum(mix == MixParameters() for mix in draws(mix_probability=0.7)) / 3000 - 0.3) < 0.03


def test_a_mix_follows_from_seed_and_step_and_leaves_the_clips_alone():
    mixer = mixer_from(TrainSettings(**RECIPE), 5)
    given = clips()
    first, targets = mixer(given, LABELS, mix_generator(0, 7))
    assert torch.equal(given, clips()) and not torch.equal(first, given)
    again, targets_again = mixer(given, LABELS, mix_generator(0, 7))
    assert torch.equal(first, again) and torch.equal(targets, targets_again)
    for key in ((1, 7), (0, 8)):
        assert not torch.equal(first, mixer(given, LABELS, mix_generator(*key))[0])


def test_an_odd_batch_and_a_single_clip_are_mixed_too():
    mixed, targets = apply_mix(clips(3), smooth_targets(LABELS[:3], 5, 0), MixParameters(0.3))
    assert torch.allclose(mixed[1], clips(3)[1]) and torch.allclose(targets[1], F.one_hot(LABELS[1], 5).float())
    assert torch.allclose(apply_mix(clips(1), smooth_targets(LABELS[:1], 5, 0), MixParameters(0.3))[0], clips(1))
