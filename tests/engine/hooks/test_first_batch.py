"""The image of a run's first batch."""

import numpy as np
import pytest
import torch

from mvit_video.config.schema import InputSettings, TrainSettings
from mvit_video.data.mixing import mix_generator, mixer_from
from mvit_video.engine.hooks import first_batch


def test_the_first_batch_s_frames_are_the_ones_before_normalising():
    frames = torch.randint(0, 256, (3, 5, 6, 7), dtype=torch.uint8)
    inputs = InputSettings(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (inputs.mean, inputs.std))
    found = first_batch.denormalised_frames((frames / 255 - mean) / std, inputs)
    assert np.array_equal(found, frames.permute(1, 2, 3, 0).numpy())


@pytest.mark.parametrize("batch", [3, 8, 11])
def test_clips_mixed_for_the_picture_are_those_of_the_step(batch):
    mixer = mixer_from(TrainSettings(mixup=0.8, label_smoothing=0.0), 4)
    clips, labels = torch.randn(batch, 3, 2, 4, 4), torch.arange(batch) % 4
    expected, targets = mixer(clips, labels, mix_generator(0, 1))
    actual = first_batch.mixed_ends(clips, labels, 3, lambda *pair: mixer(*pair, mix_generator(0, 1)))
    assert torch.equal(actual[0], expected[:3]) and torch.equal(actual[1], targets[:3])


def test_a_target_s_two_largest_parts_are_named():
    assert first_batch.target_text(torch.tensor([0.02, 0.63, 0.07, 0.28]), "abcd") == "0.63 b + 0.28 d"
    assert first_batch.target_text(torch.tensor([0.02, 0.94, 0.02, 0.02]), "abcd") == "0.94 b"
