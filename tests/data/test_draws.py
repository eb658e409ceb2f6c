"""Every use of randomness has a stream of its own."""

import itertools

import numpy as np

from mvit_video.data.dataset import sample_generator
from mvit_video.data.draws import generator
from mvit_video.data.loader import StepSampler
from mvit_video.data.mixing import mix_generator


def first_draws(rng):
    return tuple(rng.random(4).tolist())


def test_no_two_uses_draw_the_same_numbers_however_their_keys_meet():
    """Seeds, epochs and steps that are equal, zero, or what another key would be padded to."""
    small = (0, 1, 2, 3, 2**32, 2**32 + 1)
    draws = [first_draws(mix_generator(*key)) for key in itertools.product(small, small)]
    draws += [first_draws(generator("order", *key)) for key in itertools.product(small, small)]
    videos = ("", "a", "0", "a/b.mp4")
    keys = itertools.product(small, small, videos, (0, 1))
    draws += [first_draws(sample_generator(*key)) for key in keys]
    assert len(set(draws)) == len(draws) == 2 * 36 + 36 * 8


def test_the_order_of_an_epoch_is_not_drawn_from_what_mixes_the_step_of_its_number():
    for seed, number in ((7, 3), (0, 0), (1, 5)):
        epoch = StepSampler(50, 50, seed, first_step=number, last_step=number + 1)
        order = [key.video for step in epoch for key in step]
        assert sorted(order) == list(range(50))
        assert order != mix_generator(seed, number).permutation(50).tolist()
        assert order != np.random.default_rng([seed, number]).permutation(50).tolist()


def test_videos_whose_checksums_meet_draw_apart():
    """`plumless` and `buckeroo` have the same CRC-32."""
    assert first_draws(sample_generator(0, 0, "plumless")) != first_draws(sample_generator(0, 0, "buckeroo"))


def test_a_key_draws_what_it_drew_in_another_process_and_version():
    """Recorded numbers: a change of them would make every resumed run draw otherwise."""
    assert generator("mix", 3, 4).random() == 0.6506302106414694
    assert generator("clip", 0, 1, "größe \udce9.mp4", 0).random() == 0.06302675935340474


def test_draws_are_uniform_over_steps_and_independent_between_neighbours():
    values = np.array([[mix_generator(5, step).random(), generator("order", 5, step).random()] for step in range(2000)])
    assert abs(values.mean() - 0.5) < 0.02 and abs(values.std() - 12**-0.5) < 0.01
    pairs = np.corrcoef(np.stack([values[:-1, 0], values[1:, 0], values[:-1, 1]]))
    assert np.abs(pairs - np.eye(3)).max() < 0.1
