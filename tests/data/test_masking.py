"""Masks of masked pre-training: PySlowFast's for its seeds, and what each kind promises."""

import json
from random import Random

import numpy as np
import pytest
from shared_files import shared

from mvit_video.config.schema import PretrainSettings
from mvit_video.data.masking import MASKS, cube_mask, frame_mask, hidden_part, mask_from, tube_mask

WINDOW = (8, 7, 7)


def recorded():
    return json.loads(shared("reference/maskfeat/mask_generator.json").read_text())["cases"]


@pytest.mark.parametrize("place", [0, 1])
def test_cubes_are_the_public_codes_for_its_seeds(place):
    case = recorded()[place]
    for seed, mask in case["masks_of_seeds"].items():
        assert cube_mask(Random(int(seed)), tuple(case["window"]), case["ratio"]).tolist() == mask, seed


def test_shares_of_cells_are_the_public_codes():
    case = recorded()[0]
    masks = np.stack([cube_mask(Random(seed), WINDOW, 0.4) for seed in range(600)]).astype(float)
    counts = masks.sum((1, 2, 3))
    assert counts.mean() == pytest.approx(case["masked_mean"], abs=0.5)
    assert counts.max() == 157 and counts.min() >= case["masked_min"] - 3
    assert masks.mean((0, 2, 3)) == pytest.approx(case["probability_by_frame"], abs=0.03)
    assert masks.mean((0, 1, 3)) == pytest.approx(case["probability_by_row"], abs=0.03)


def test_a_tube_is_the_same_in_all_frames():
    for seed in range(50):
        mask = tube_mask(Random(seed), WINDOW, 0.4)
        assert (mask == mask[0]).all()
        assert 0 < mask[0].sum() <= round(0.4 * 49)


def test_whole_frames_are_hidden():
    for seed in range(20):
        mask = frame_mask(Random(seed), WINDOW, 0.4)
        assert sorted(mask.reshape(8, -1).mean(1)) == [0] * 5 + [1] * 3


@pytest.mark.parametrize("kind", MASKS)
def test_a_seed_decides_a_mask(kind):
    masks = [MASKS[kind](Random(seed), WINDOW, 0.4) for seed in (3, 3, 4)]
    assert (masks[0] == masks[1]).all() and (masks[0] != masks[2]).any()


@pytest.mark.parametrize(("window", "ratio"), [((4, 2, 2), 0.5), ((4, 3, 3), 0.9), ((8, 7, 7), 0.95)])
def test_a_mask_that_hides_nothing_is_drawn_again(window, ratio):
    """The public code's tubes give up after ten tries, now and then before a cell is hidden."""
    draw = mask_from(PretrainSettings(mask="tube", mask_ratio=ratio), window)
    plain = [tube_mask(Random(seed), window, ratio) for seed in range(400)]
    drawn = [draw(Random(seed)) for seed in range(400)]
    assert not all(mask.any() for mask in plain) and all(mask.any() for mask in drawn)
    assert all((mask == other).all() for mask, other in zip(drawn, plain, strict=True) if other.any())


@pytest.mark.parametrize(
    ("kind", "window", "ratio", "part"),
    [
        ("cube", (4, 3, 3), 0.01, "nothing"),
        ("cube", (4, 1, 6), 0.4, "nothing"),
        ("cube", (4, 2, 20), 0.4, "nothing"),
        ("tube", (4, 2, 40), 0.9, "nothing"),
        ("cube", (4, 2, 10), 0.4, "some"),
        ("frames", (4, 1, 1), 0.5, "some"),
        ("frames", (1, 7, 7), 0.4, "nothing"),
        ("frames", (4, 7, 7), 0.9, "all"),
        ("tube", (4, 2, 2), 0.9, "all"),
    ],
)
def test_a_grid_of_which_nothing_or_all_would_be_hidden_is_known_before(kind, window, ratio, part):
    """A cuboid has a fifth of a picture's cells and sides up to 1 to 0.3, which no strip of two rows takes."""
    assert hidden_part(PretrainSettings(mask=kind, mask_ratio=ratio), window) == part
