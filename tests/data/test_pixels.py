import copy

import numpy as np
import pytest
import torch

from mvit_video.data.loader import collate, joined
from mvit_video.data.pixels import Erasing, Normalise, from_zero_to_one, stacked

MEAN, STD = (0.45, 0.4, 0.35), (0.225, 0.25, 0.3)
CPU = torch.device("cpu")
normalise = Normalise(MEAN, STD)


def pixels(*shape, seed=0):
    """uint8 (..., C, T, H, W), channels last in memory, as decoded."""
    *before, channels, frames, height, width = shape
    values = np.random.default_rng(seed).integers(0, 256, (*before, frames, height, width, channels), np.uint8)
    return torch.from_numpy(values).movedim(-1, -4)


def plainly(values):
    mean, std = (torch.tensor(numbers).view(3, 1, 1, 1) for numbers in (MEAN, STD))
    return (values - mean) / std


def test_every_grey_level_becomes_the_float_that_plain_arithmetic_gives():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 4, 4).expand(1, 3, 16, 4, 4)
    clips = normalise(every)
    assert clips.is_contiguous() and torch.equal(clips, plainly(every.float() / 255))
    exact = (every.double() / 255 - torch.tensor(MEAN).double().view(3, 1, 1, 1)) / torch.tensor(STD).double().view(
        3, 1, 1, 1
    )
    assert (clips - exact).abs().max() < 1e-6


@pytest.mark.parametrize("order", ["as decoded", "planes"])
def test_bytes_and_floats_of_the_same_values_become_the_same_clips(order):
    given = pixels(2, 3, 4, 6, 8)
    given = given.contiguous() if order == "planes" else given
    floats = from_zero_to_one(given)
    assert floats.dtype == torch.float32 and torch.equal(normalise(given), normalise(floats))
    assert from_zero_to_one(floats) is floats
    assert torch.equal(floats, from_zero_to_one(given)), "normalising wrote into what it was given"


def test_clips_are_written_where_they_are_wanted():
    room = torch.zeros(5, 3, 4, 6, 8)
    made = normalise(pixels(2, 3, 4, 6, 8), room[1:3])
    assert made.data_ptr() == room[1].data_ptr() and torch.equal(room[1:3], normalise(pixels(2, 3, 4, 6, 8)))
    assert not room[0].any() and not room[3:].any()


@pytest.mark.parametrize("size", [1, 3, 4, 100])
def test_batches_hold_all_clips_of_all_parts_in_their_order(size):
    parts = [pixels(count, 3, 2, 4, 4, seed=count) for count in (2, 5, 0, 1)]
    parts[1] = from_zero_to_one(parts[1])  # a video that was scaled among others
    batches = list(normalise.batches(parts, size, CPU))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1) and 0 < len(batches[-1]) <= size
    assert torch.equal(torch.cat(batches), torch.cat([normalise(part) for part in parts]))
    assert torch.equal(torch.cat(batches), normalise.joined(parts, CPU))
    assert list(normalise.batches([parts[2]], size, CPU)) == []


def test_stacking_keeps_the_order_of_the_bytes():
    clips = [pixels(3, 4, 6, 8, seed=seed) for seed in range(3)]
    batch = stacked(clips)
    assert batch.shape == (3, 3, 4, 6, 8) and batch.is_contiguous(memory_format=torch.channels_last_3d)
    assert all(torch.equal(one, clip) for one, clip in zip(batch, clips, strict=True))
    assert torch.equal(stacked([clip.float() for clip in clips]), torch.stack(clips).float())
    assert stacked([clips[0][None], clips[1][None]]).shape == (2, 1, 3, 4, 6, 8)


def erasing(seed, box=(1, 2, 3, 4), frames=4):
    return Erasing(box, np.random.default_rng(seed).bit_generator.state, frames)


def test_noise_follows_from_the_state_alone_also_when_it_is_drawn_ahead():
    noise = np.random.default_rng(7).standard_normal((3, 4, 3, 4), dtype=np.float32)
    travelled = copy.deepcopy(erasing(7))
    for one in (erasing(7), travelled, Erasing(travelled.box, travelled.state, 4, travelled.drawn())):
        clip = torch.zeros(3, 4, 6, 8)
        one.fill(clip)
        one.fill(clip)
        assert np.array_equal(clip[:, :, 1:4, 2:6].numpy(), noise)
        assert clip.count_nonzero() == noise.size


def test_a_step_of_several_parts_is_the_step_of_one():
    def sample(number):
        noise = erasing(number) if number % 2 else None
        return dict(video=pixels(3, 4, 6, 8, seed=number), erasing=noise, label=number, video_name=str(number))

    samples = [sample(number) for number in range(5)]
    whole = joined([collate(samples)], CPU, normalise)
    parts = joined([collate(samples[:2]), collate(samples[2:])], CPU, normalise)
    assert set(whole) == set(parts) == {"video", "label", "video_name", "bad"}
    assert torch.equal(whole["video"], parts["video"]) and whole["label"].tolist() == parts["label"].tolist()
    for number, clip in enumerate(whole["video"]):
        expected = normalise(samples[number]["video"][None])[0]
        if number % 2:
            samples[number]["erasing"].fill(expected)
        assert torch.equal(clip, expected)


def test_a_step_without_clips_is_joined_as_well():
    assert joined([collate([])], CPU, normalise) == {"bad": []}
