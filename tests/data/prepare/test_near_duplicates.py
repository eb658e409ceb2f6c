"""Near-duplicates by fingerprints: what is the same stays together, what is not stays apart."""

import numpy as np
import pytest
from PIL import Image

from mvit_video.data.prepare import near_duplicates as module
from mvit_video.data.prepare.near_duplicates import distances, near_duplicates, numbers_of_groups
from mvit_video.data.synthetic import draw_video
from mvit_video.data.video.fingerprint import MOMENTS, SIDE, fingerprint


def drawn(seed, label=0):
    return draw_video(label, np.random.default_rng([7, seed]))[2::4][:MOMENTS]


def all_distances(prints):
    return np.concatenate([block for _, block in distances(prints, *alike(len(prints)))])


def alike(count):
    """Lengths and rates."""
    return np.full(count, 2.0), np.full(count, 15.0)


@pytest.fixture(scope="module")
def prints():
    return np.stack([fingerprint(drawn(seed, seed % 8)) for seed in range(12)])


def test_a_fingerprint_holds_the_mean_grey_of_each_cell():
    frames = np.random.default_rng(0).integers(0, 256, (MOMENTS, 32, 40, 3), dtype=np.uint8)
    grey = frames @ np.array([0.299, 0.587, 0.114])
    cells = grey.reshape(MOMENTS, SIDE, 32 // SIDE, SIDE, 40 // SIDE).mean((2, 4))
    assert np.abs(fingerprint(frames) - cells).max() <= 1


def test_distances_are_those_of_the_plain_formula(prints):
    found = all_distances(prints)
    for one in range(4):
        for other in range(4, 8):
            grey = [prints[place].reshape(MOMENTS, -1).astype(float) for place in (one, other)]
            contrasts = [video.std() for video in grey]
            still = [(video.mean(0) - video.mean()) / video.std() for video in grey]
            moving = [(video - video.mean(0)) / video.std() for video in grey]
            energy = sum((video**2).mean() for video in moving) + sum(
                module.NOISE**2 / contrast**2 / 2 for contrast in contrasts
            )
            motion = ((moving[0] - moving[1]) ** 2).mean() / energy / module.MOTION_LIMIT
            rest = ((still[0] - still[1]) ** 2).mean() / module.STILL_LIMIT
            assert found[one, other] == pytest.approx(max(motion, rest), rel=1e-3)


def test_size_brightness_contrast_and_noise_leave_videos_near_and_others_far(prints):
    rng, changed = np.random.default_rng(0), []
    for seed in range(12):
        small = np.stack([np.asarray(Image.fromarray(frame).resize((50, 36))) for frame in drawn(seed, seed % 8)])
        noisy = 20 + 0.7 * small + rng.normal(0, 5, small.shape)
        changed.append(fingerprint(noisy.clip(0, 255).astype(np.uint8)))
    found = all_distances(np.concatenate([prints, np.stack(changed)]))[:12, 12:]
    assert np.diag(found).max() < 1 and (found + 1e3 * np.eye(12)).min() > 5


def test_videos_that_differ_only_in_what_moves_before_the_same_background_are_not_the_same():
    rng = np.random.default_rng(1)
    room = rng.integers(40, 200, (1, SIDE, SIDE)).repeat(MOMENTS, 0)
    left, right = room.copy(), room.copy()
    for moment in range(MOMENTS):
        left[moment, 3, moment] += 40
        right[moment, 3, MOMENTS - 1 - moment] += 40
    groups, _ = near_duplicates(np.stack([left, right, left]).astype(np.uint8), *alike(3))
    assert groups == [[0, 2]]


def test_groups_and_nearest_distances_do_not_depend_on_the_size_of_blocks(prints, monkeypatch):
    many = np.concatenate([prints, prints[3:5], prints[3:4]])
    whole = near_duplicates(many, *alike(15))
    monkeypatch.setattr(module, "BLOCK", 4)
    parts = near_duplicates(many, *alike(15))
    assert whole[0] == parts[0] == [[3, 12, 14], [4, 13]]
    assert np.allclose(whole[1], parts[1], atol=1e-4) and whole[1].min() < 1e-3


def test_videos_without_any_contrast_are_a_group_of_their_own(prints):
    black = np.zeros((2, MOMENTS, SIDE, SIDE), np.uint8)
    groups, nearest = near_duplicates(np.concatenate([prints, black]), *alike(14))
    assert groups == [[12, 13]] and np.isfinite(nearest).all()


def test_a_video_alone_has_no_duplicate(prints):
    groups, nearest = near_duplicates(prints[:1], *alike(1))
    assert groups == [] and nearest.tolist() == [np.inf]
    assert numbers_of_groups([[1, 3]], 4).tolist() == [0, 1, 2, 1]


def test_copies_last_as_long_to_a_frame_of_the_lower_rate():
    prints = np.stack([fingerprint(drawn(0))] * 4)
    groups, nearest = near_duplicates(prints, np.array([2.0, 2.06, 2.3, 2.0]), np.array([30.0, 15.0, 30.0, 30.0]))
    assert groups == [[0, 1, 3]] and nearest[2] == np.inf
