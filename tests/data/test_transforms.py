import math

import numpy as np
import pytest
import torch

from mvit_video.data import transforms


def frames(count=3, height=20, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_a_clip_is_rgb_from_zero_to_one():
    clip = transforms.to_clip(frames())
    assert clip.shape == (3, 3, 20, 30) and clip.dtype == torch.float32
    assert clip[1, 2, 4, 5].item() == pytest.approx(frames()[2, 4, 5, 1] / 255)


def test_normalising_is_done_per_channel():
    clip = transforms.normalize(torch.ones(3, 2, 4, 4), (0.1, 0.2, 0.3), (0.5, 0.25, 0.1))
    assert torch.allclose(clip[:, 0, 0, 0], torch.tensor([1.8, 3.2, 7.0]))


def bilinear(picture, height, width):
    """Half-pixel centres, edges repeated, written as a loop."""
    out = np.empty((height, width))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * picture.shape[0] / height - 0.5, 0), picture.shape[0] - 1)
            x = min(max((j + 0.5) * picture.shape[1] / width - 0.5, 0), picture.shape[1] - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, picture.shape[0] - 1), min(x0 + 1, picture.shape[1] - 1)
            top = picture[y0, x0] * (1 - x + x0) + picture[y0, x1] * (x - x0)
            low = picture[y1, x0] * (1 - x + x0) + picture[y1, x1] * (x - x0)
            out[i, j] = top * (1 - y + y0) + low * (y - y0)
    return out


@pytest.mark.parametrize("size", [(11, 16), (40, 41), (20, 7)])
def test_resizing_is_plain_bilinear_interpolation(size):
    clip = transforms.to_clip(frames())
    ours = transforms.resize(clip, *size)
    assert ours.shape == (3, 3, *size)
    assert np.allclose(ours[2, 1].numpy(), bilinear(clip[2, 1].double().numpy(), *size), atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(256, 340), (340, 256), (100, 100), (63, 117)])
def test_the_short_side_is_exact_and_the_long_side_is_rounded_down(height, width):
    scaled = transforms.scale_short_side(torch.zeros(3, 1, height, width), 48)
    assert min(scaled.shape[-2:]) == 48
    assert max(scaled.shape[-2:]) == math.floor(max(height, width) / min(height, width) * 48)


@pytest.mark.parametrize(
    ("height", "width", "position", "top", "left"),
    [
        (48, 65, 0, 0, 0),
        (48, 65, 1, 0, 9),
        (48, 65, 2, 0, 17),
        (65, 48, 0, 0, 0),
        (65, 48, 1, 9, 0),
        (65, 48, 2, 17, 0),
        (64, 64, 1, 8, 8),
        (64, 64, 0, 8, 0),
        (64, 64, 2, 8, 16),
    ],
)
def test_crops_lie_along_the_longer_side(height, width, position, top, left):
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    clip = torch.stack([rows, columns])[:, None]
    crop = transforms.crop_at(clip, (48, 48), position)
    assert crop.shape == (2, 1, 48, 48)
    assert crop[:, 0, 0, 0].tolist() == [top, left]


def test_one_two_or_three_crops_are_centre_ends_or_all():
    assert [transforms.crop_positions(count) for count in (1, 2, 3)] == [[1], [0, 2], [0, 1, 2]]


def test_crop_boxes_have_the_drawn_areas_and_shapes():
    rng = np.random.default_rng(0)
    boxes = np.array([transforms.draw_crop_box(rng, 240, 320, (0.08, 1.0), (0.75, 4 / 3)) for _ in range(3000)])
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 240).all() and (left + width <= 320).all()
    area, ratio = height * width / (240 * 320), width / height
    assert area.min() < 0.1 and area.max() > 0.9
    assert ratio.min() > 0.74 and ratio.max() < 1.36
    small = area < 0.5  # large boxes with extreme shapes do not fit and are drawn again
    assert abs(np.log(ratio[small]).mean()) < 0.02


def test_a_box_that_never_fits_becomes_the_centre():
    box = transforms.draw_crop_box(np.random.default_rng(0), 10, 100, (1.0, 1.0), (0.75, 4 / 3))
    assert box == (0, 43, 10, 13)


def train_transform(**changes):
    arguments = dict(
        size=(16, 16), mean=(0, 0, 0), std=(1, 1, 1), crop_area=(0.3, 0.9), crop_ratio=(0.8, 1.2), flip=False
    )
    return transforms.TrainTransform(**(arguments | changes))


def test_all_frames_of_a_clip_get_the_same_draw():
    same = np.repeat(frames(1), 5, axis=0)
    for seed in range(20):
        clip = train_transform(flip=True)(same, np.random.default_rng(seed))
        assert torch.equal(clip, clip[:, :1].expand(-1, 5, -1, -1))


@pytest.mark.parametrize(("height", "width"), [(20, 30), (45, 33), (24, 24)])
def test_training_clips_are_those_of_the_plain_steps_on_the_whole_clip(height, width):
    settings = dict(size=(24, 20), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), crop_area=(0.2, 1), flip=True)
    for seed in range(8):
        given, rng = frames(4, height, width, seed), np.random.default_rng(seed)
        top, left, tall, wide = transforms.draw_crop_box(rng, height, width, (0.2, 1), (0.8, 1.2))
        clip = transforms.to_clip(given[:, top : top + tall, left : left + wide].copy())
        clip = transforms.normalize(transforms.resize(clip, 24, 20), settings["mean"], settings["std"])
        wanted = clip.flip(-1) if rng.random() < 0.5 else clip
        found = train_transform(**settings)(given, np.random.default_rng(seed))
        assert found.is_contiguous()
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)


def test_the_flip_happens_only_where_it_is_allowed_and_then_half_the_time():
    flips = 0
    for seed in range(200):
        plain = train_transform()(frames(), np.random.default_rng(seed))
        allowed = train_transform(flip=True)(frames(), np.random.default_rng(seed))
        assert torch.equal(allowed, plain) or torch.equal(allowed, plain.flip(-1))
        flips += not torch.equal(allowed, plain)
    assert 75 < flips < 125


def test_a_whole_picture_crop_is_a_resize():
    clip = train_transform(crop_area=(1, 1), crop_ratio=(1.5, 1.5))(frames(), np.random.default_rng(0))
    assert torch.allclose(clip, transforms.resize(transforms.to_clip(frames()), 16, 16))


def test_views_are_the_crops_of_the_scaled_clip():
    views = transforms.ViewTransform((16, 16), (0.5,) * 3, (0.25,) * 3, short_side=16, num_crops=3)(frames())
    scaled = (transforms.resize(transforms.to_clip(frames()), 16, 24) - 0.5) / 0.25
    assert views.shape == (3, 3, 3, 16, 16)
    for view, left in zip(views, (0, 4, 8), strict=True):
        assert torch.allclose(view, scaled[..., left : left + 16], atol=1e-6)


def test_clips_that_share_frames_are_the_same_as_one_by_one():
    transform = transforms.ViewTransform((16, 16), (0.5, 0.4, 0.3), (0.25, 0.2, 0.3), short_side=18, num_crops=3)
    clips = np.array([[0, 1, 2], [1, 2, 2], [4, 4, 4]])
    given = frames(5)
    wanted = torch.cat([transform(given[row]) for row in clips])
    assert wanted.shape == (9, 3, 3, 16, 16) and torch.equal(transform(given, clips), wanted)


@pytest.mark.parametrize(("height", "width"), [(20, 30), (37, 22), (16, 16)])
def test_views_are_those_of_the_plain_steps_on_the_whole_clip(height, width):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    given = frames(4, height, width)
    clip = transforms.normalize(transforms.scale_short_side(transforms.to_clip(given), 16), mean, std)
    for view, position in zip(transforms.ViewTransform((14, 12), mean, std, 16, 3)(given), (0, 1, 2), strict=True):
        torch.testing.assert_close(view, transforms.crop_at(clip, (14, 12), position), rtol=0, atol=2e-6)
