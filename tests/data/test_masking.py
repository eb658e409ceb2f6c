"""Masks of masked pre-training: PySlowFast's for its seeds, and what each kind promises."""

import json
from random import Random

import numpy as np
import pytest
from shared_files import shared

from mvit_video.data.masking import MASKS, cube_mask, frame_mask, tube_mask

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
