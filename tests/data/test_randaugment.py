import numpy as np
import pytest
from PIL import Image

from mvit_video.compat import import_torchvision
from mvit_video.data.randaugment import OPERATIONS, RandAugment, Step, augment, draw_color_jitter
from mvit_video.errors import ConfigError

import_torchvision()  # timm needs it, by way of the repair that some installations need
from timm.data import auto_augment  # noqa: E402

WHOLE = (0, 0, 40, 54)
TIMM = {
    "auto_contrast": "AutoContrast", "equalize": "Equalize", "invert": "Invert", "rotate": "Rotate",
    "posterize": "PosterizeIncreasing", "solarize": "SolarizeIncreasing", "solarize_add": "SolarizeAdd",
    "color": "ColorIncreasing", "contrast": "ContrastIncreasing", "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing", "shear_x": "ShearX", "shear_y": "ShearY",
    "translate_x": "TranslateXRel", "translate_y": "TranslateYRel",
}  # fmt: skip
# What PySlowFast gives timm's operations: no mean (so grey 128), and AUG.INTERPOLATION of MVITv2_S_16x4.yaml.
PIXELS = dict(resample=Image.Resampling.BICUBIC, fillcolor=(128, 128, 128))


def pictures(count=2, height=WHOLE[2], width=WHOLE[3], seed=0):
    """Smooth patches with noise on top and flat areas: values of every kind, uint8 (T, H, W, C)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, height // 8 + 1, width // 8 + 1, 3))
    frames = np.kron(coarse, np.ones((1, 8, 8, 1)))[:, :height, :width]
    frames[:, : height // 2] += rng.integers(-20, 21, (count, height // 2, width, 3))
    return np.clip(frames, 0, 255).astype(np.uint8)


def timm_pixels(step, frames):
    """timm's function for a step, one image at a time."""
    function = auto_augment.NAME_TO_OP[TIMM[step.name]]
    arguments = [] if auto_augment.LEVEL_TO_ARG[TIMM[step.name]] is None else [step.argument]
    arguments = [int(value) if step.name in ("posterize", "solarize", "solarize_add") else value for value in arguments]
    return np.stack([np.asarray(function(Image.fromarray(frame), *arguments, **PIXELS)) for frame in frames])


def test_the_operations_are_those_that_timm_chooses_from():
    chosen = auto_augment.rand_augment_transform("rand-m7-n4-mstd0.5-inc1", {}).ops
    assert [operation.name for operation in chosen] == [TIMM[name] for name in OPERATIONS]
    assert {(operation.prob, operation.magnitude, operation.magnitude_std) for operation in chosen} == {(0.5, 7, 0.5)}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("magnitude", [0.0, 3.3, 7.0, 7.46, 10.0])
def test_each_operation_is_timms_to_the_last_bit(name, sign, magnitude, monkeypatch):
    monkeypatch.setattr(auto_augment.random, "random", lambda: 0.9 if sign < 0 else 0.1)  # decides the sign alone
    hparams = dict(interpolation=PIXELS["resample"], img_mean=PIXELS["fillcolor"])
    theirs = auto_augment.AugmentOp(TIMM[name], prob=1.0, magnitude=magnitude, hparams=hparams)
    frames = pictures()
    if name == "posterize" and magnitude == 10:  # no bits are left, which Pillow's function refuses
        expected = np.zeros_like(frames)
    else:
        expected = np.stack([np.asarray(theirs(Image.fromarray(frame))) for frame in frames])
    step = Step(name, OPERATIONS[name].argument(magnitude / 10, sign))
    assert np.array_equal(augment(frames, [step], WHOLE), expected)


def test_a_crop_of_the_result_is_the_crop_of_timms_result_on_whole_pictures():
    recipe = RandAugment.parse("rand-m6-n6-mstd1.1-inc1")
    moved = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        frames, steps = pictures(1, seed=seed), recipe.draw(rng)
        height, width = int(rng.integers(1, 41)), int(rng.integers(1, 55))
        top, left = int(rng.integers(41 - height)), int(rng.integers(55 - width))
        expected = frames
        for step in steps:
            expected = timm_pixels(step, expected)
        cropped = augment(frames, steps, (top, left, height, width))
        assert np.array_equal(cropped, expected[:, top : top + height, left : left + width]), (seed, steps)
        moved += not np.array_equal(expected, frames)
    assert moved > 100


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_a_crop_of_a_move_by_round_numbers_is_at_most_one_level_off_in_few_pixels(name):
    step = Step(name, OPERATIONS[name].argument(1.0, 1))
    whole, cropped = augment(pictures(), [step], WHOLE), augment(pictures(), [step], (7, 9, 31, 41))
    difference = np.abs(cropped.astype(int) - whole[:, 7:38, 9:50])
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def test_no_steps_leave_the_frames_alone():
    assert np.array_equal(augment(pictures(), [], (3, 4, 20, 30)), pictures()[:, 3:23, 4:34])


def test_frames_given_are_not_changed():
    frames = pictures()
    augment(frames, [Step(name, OPERATIONS[name].argument(1.0, 1)) for name in OPERATIONS], WHOLE)
    assert np.array_equal(frames, pictures())


def test_draws_have_the_recipes_frequencies_and_levels():
    recipe, rng = RandAugment.parse("rand-m7-n4-mstd0.5-inc1"), np.random.default_rng(0)
    draws = [recipe.draw(rng) for _ in range(4000)]
    lengths = np.bincount([len(steps) for steps in draws], minlength=5) / len(draws)
    assert np.allclose(lengths, np.array([1, 4, 6, 4, 1]) / 16, atol=0.025)  # binomial, 4 times one half
    names, counts = np.unique([step.name for steps in draws for step in steps], return_counts=True)
    assert set(names) == set(OPERATIONS) and np.allclose(counts / counts.sum(), 1 / 15, atol=0.01)
    degrees = np.array([step.argument for steps in draws for step in steps if step.name == "rotate"])
    assert abs((degrees > 0).mean() - 0.5) < 0.06
    assert abs(np.abs(degrees).mean() - 21) < 0.3 and abs(np.abs(degrees).std() - 1.5) < 0.2


def test_levels_stay_between_none_and_all():
    rng = np.random.default_rng(0)
    for magnitude, limit in ((0, 0.0), (10, 30.0)):
        draws = [RandAugment(magnitude, 15, 3.0).draw(rng) for _ in range(60)]
        degrees = [abs(step.argument) for steps in draws for step in steps if step.name == "rotate"]
        assert limit in degrees and min(degrees) >= 0 and max(degrees) <= 30


@pytest.mark.parametrize("text", ["rand-m7-n4-mstd0.5", "rand-m7-n4-mstd0.5-inc0", "rand-n4", "augmix-m7", ""])
def test_another_specification_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match=r"is not rand-mM-nN-mstdS-inc1: write rand-m7-n4-mstd0.5-inc1, for example"):
        RandAugment.parse(text)


def test_colour_jitter_is_torchvisions_with_the_same_factors():
    adjust = import_torchvision("torchvision.transforms.functional")
    functions = dict(
        brightness=adjust.adjust_brightness, contrast=adjust.adjust_contrast, color=adjust.adjust_saturation
    )
    orders = set()
    for seed in range(30):
        steps = draw_color_jitter(0.4, np.random.default_rng(seed))
        orders.add(tuple(step.name for step in steps))
        assert all(0.6 <= step.argument <= 1.4 for step in steps)
        expected = Image.fromarray(pictures(1)[0])
        for step in steps:
            expected = functions[step.name](expected, step.argument)
        assert np.array_equal(augment(pictures(1), steps, (8, 9, 20, 30))[0], np.asarray(expected)[8:28, 9:39])
    assert len(orders) == 6
