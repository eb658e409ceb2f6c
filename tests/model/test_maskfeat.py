"""Targets of masked pre-training: PySlowFast's numbers, and a histogram by loop."""

import json
import math

import numpy as np
import pytest
import torch
from fixed_weights import fixed_values
from shared_files import shared

from mvit_video.model.maskfeat import hog, hog_target, pixel_target


def recorded(name: str) -> dict:
    return json.loads(shared(f"reference/maskfeat/{name}.json").read_text())


def test_histograms_are_the_public_codes():
    for case in recorded("hog")["cases"]:
        if "output" not in case:
            continue
        found = hog(fixed_values("input", tuple(case["input_shape"])), case["gaussian_window"])
        assert list(found.shape) == case["output"]["shape"]
        assert found.double().mean().item() == pytest.approx(case["output"]["mean"], abs=1e-6)
        assert np.abs(found.flatten()[:16].numpy() - case["output"]["first16"]).max() < 1e-6
        if "values" in case:
            assert np.abs(found.flatten().numpy() - case["values"]).max() < 1e-6


def test_ramps_fall_into_the_bins_that_their_direction_says():
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    ramps = {4: x, 0: y, 3: x + 0.3 * y, 8: 0.3 * x - y}
    for expected, ramp in ramps.items():
        assert hog(ramp.expand(1, 3, 16, 16))[0, :, :, 1, 1].argmax(1).tolist() == [expected] * 3
    assert not hog(torch.full((1, 3, 16, 16), 0.7)).any(), "an even image has no gradients"


def test_a_loop_over_pixels_counts_the_same_votes():
    picture = np.random.default_rng(0).normal(size=(16, 24))
    padded = np.pad(picture, 1, mode="reflect")
    votes = np.zeros((9, 2, 3))
    for row in range(16):
        for column in range(24):
            box = padded[row : row + 3, column : column + 3]
            gx = box[:, 0] @ [1, 2, 1] - box[:, 2] @ [1, 2, 1]
            gy = box[0] @ [1, 2, 1] - box[2] @ [1, 2, 1]
            turn = math.floor(math.atan2(gx, gy) / math.pi * 9) % 9
            votes[turn, row // 8, column // 8] += math.hypot(gx, gy)
    expected = votes / np.linalg.norm(votes, axis=0)
    found = hog(torch.from_numpy(picture).expand(1, 3, 16, 24))
    assert np.abs(found[0, 0, :, :, 1].numpy() - expected[:, :, 1]).max() < 1e-5


def test_a_gaussian_of_one_pixel_weighs_nothing():
    pictures = torch.rand(1, 3, 16, 16)
    assert torch.equal(hog(pictures, 1), hog(pictures))


@pytest.mark.parametrize(("name", "target"), [("multi", hog_target), ("pixel", pixel_target)])
def test_targets_of_hidden_tokens_are_the_public_codes(name, target):
    expected = recorded(f"maskfeat_pretrain_{name}_8x96")
    clips = fixed_values("input", tuple(expected["input_shape"]))
    mask = torch.tensor(expected["mask"])  # (B, T', 3, 3)
    for output in expected["outputs"]:
        stride = 8 if output["depth"] == 1 else 16
        actual = target(clips, 2, stride)
        hidden = mask.repeat_interleave(actual.shape[2] // 3, 2).repeat_interleave(actual.shape[3] // 3, 3).bool()
        rows = actual[hidden]
        assert list(rows.shape) == output["target"]["shape"]
        assert np.abs(rows[0].numpy() - output["target_row0"]).max() < 1e-5
        assert rows.double().mean().item() == pytest.approx(output["target"]["mean"], abs=1e-5)
        assert np.abs(rows.mean(1).numpy() - output["target_row_means"]).max() < 1e-5
