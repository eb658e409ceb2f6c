import math

import numpy as np
import pytest
import torch

from mvit_video.config.schema import DataSettings
from mvit_video.data import transforms
from mvit_video.data.randaugment import RandAugment, augment


def distance(values, distribution):
    """Kolmogorov–Smirnov: the largest distance of the values' cumulative distribution from the one given."""
    values = np.sort(np.asarray(values))
    return np.abs(distribution(values) - (np.arange(len(values)) + 0.5) / len(values)).max()


def uniform(low, high):
    return lambda values: (values - low) / (high - low)


def frames(count=3, height=20, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_a_clip_is_rgb_from_zero_to_one():
    clip = transforms.to_clip(frames())
    assert clip.shape == (3, 3, 20, 30) and clip.dtype == torch.float32
    assert clip[1, 2, 4, 5].item() == pytest.approx(frames()[2, 4, 5, 1] / 255)


def test_normalising_is_done_per_channel():
    clip = transforms.normalize_(torch.ones(3, 2, 4, 4), (0.1, 0.2, 0.3), (0.5, 0.25, 0.1))
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


def test_resizing_gives_the_same_bits_for_any_number_of_threads_and_alone():
    clip, before = transforms.to_clip(frames(8, 180, 240)), torch.get_num_threads()
    try:
        for size in ((72, 72), (224, 224), (48, 40)):
            results = []
            for threads in (1, 2, 4):
                torch.set_num_threads(threads)
                results.append(transforms.resize(clip, *size))
            alone = torch.cat([transforms.resize(clip[:, [frame]], *size) for frame in range(8)], dim=1)
            assert all(torch.equal(result, alone) for result in results)
    finally:
        torch.set_num_threads(before)


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
        size=(16, 16), mean=(0, 0, 0), std=(1, 1, 1), crop=transforms.ResizedCrop((0.3, 0.9), (0.8, 1.2)), flip=False
    )
    return transforms.TrainTransform(**(arguments | changes))


def test_all_frames_of_a_clip_get_the_same_draw():
    same = np.repeat(frames(1), 5, axis=0)
    for crop in (transforms.ResizedCrop((0.3, 0.9), (0.8, 1.2)), transforms.JitterCrop((16, 20))):
        transform = train_transform(crop=crop, flip=True, randaugment=RandAugment(7, 4, 0.5), color_jitter=0.4)
        for seed in range(20):
            clip = transform(same, np.random.default_rng(seed))
            assert clip.shape == (3, 5, 16, 16) and torch.equal(clip, clip[:, :1].expand(-1, 5, -1, -1))


@pytest.mark.parametrize(("height", "width"), [(20, 30), (45, 33), (24, 24)])
def test_training_clips_are_those_of_the_plain_steps_on_the_whole_clip(height, width):
    mean, std, crop = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), transforms.ResizedCrop((0.2, 1), (0.8, 1.2))
    for seed in range(8):
        given, rng = frames(4, height, width, seed), np.random.default_rng(seed)
        top, left, tall, wide = transforms.draw_crop_box(rng, height, width, crop.area, crop.ratio)
        clip = transforms.resize(transforms.to_clip(given[:, top : top + tall, left : left + wide]), 24, 20)
        wanted = transforms.normalize_(clip.flip(-1) if rng.random() < 0.5 else clip, mean, std)
        found = train_transform(size=(24, 20), mean=mean, std=std, crop=crop, flip=True)(
            given, np.random.default_rng(seed)
        )
        assert found.is_contiguous() and torch.equal(found, wanted)


def test_the_flip_happens_only_where_it_is_allowed_and_then_half_the_time():
    flips = 0
    for seed in range(200):
        plain = train_transform()(frames(), np.random.default_rng(seed))
        allowed = train_transform(flip=True)(frames(), np.random.default_rng(seed))
        assert torch.equal(allowed, plain) or torch.equal(allowed, plain.flip(-1))
        flips += not torch.equal(allowed, plain)
    assert 75 < flips < 125


def test_a_whole_picture_crop_is_a_resize():
    clip = train_transform(crop=transforms.ResizedCrop((1, 1), (1.5, 1.5)))(frames(), np.random.default_rng(0))
    assert torch.allclose(clip, transforms.resize(transforms.to_clip(frames()), 16, 16))


def test_jitter_crops_have_short_sides_whose_inverse_is_uniform_and_lie_anywhere():
    rng = np.random.default_rng(0)
    placements = [transforms.JitterCrop((256, 320)).draw(rng, 240, 320, (224, 200)) for _ in range(3000)]
    sides = np.array([place.scaled for place in placements])
    assert sides[:, 0].min() == 256 and sides[:, 0].max() == 320
    assert (sides[:, 1] == sides[:, 0] * 320 // 240).all()
    assert distance(1 / sides[:, 0], uniform(1 / 320, 1 / 256)) < 0.04
    assert all(place.scaled_box == (0, 0, 240, 320) and place.target[2:] == (224, 200) for place in placements)
    for axis in (0, 1):
        room = sides[:, axis] - (224, 200)[axis]
        offsets = np.array([place.target[axis] for place in placements])
        assert (offsets >= 0).all() and (offsets <= room).all() and (offsets == 0).any() and (offsets == room).any()
        assert abs((offsets / room).mean() - 0.5) < 0.02


@pytest.mark.parametrize(("height", "width"), [(20, 30), (50, 41), (9, 16)])
def test_a_jitter_crop_is_cut_out_of_the_scaled_picture_though_only_the_part_it_shows_is_augmented(height, width):
    crop = transforms.JitterCrop((18, 40))
    smaller = 0
    for seed in range(40):
        clip = train_transform(crop=crop, color_jitter=0.4)(frames(2, height, width), np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        place = crop.draw(rng, height, width, (16, 16))
        rng.random()  # the flip
        jittered = augment(frames(2, height, width), transforms.draw_color_jitter(0.4, rng), (0, 0, height, width))
        scaled = transforms.resize(transforms.to_clip(jittered), *place.scaled)
        top, left = place.target[:2]
        assert torch.equal(clip, scaled[..., top : top + 16, left : left + 16])
        smaller += place.source[2] * place.source[3] < height * width
    assert smaller > 20


def test_randaugment_and_jitter_come_before_the_crop_on_the_decoded_frames():
    seed, randaugment = 5, RandAugment(7, 4, 0.5)
    clip = train_transform(randaugment=randaugment, color_jitter=0.3)(frames(), np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    place = transforms.ResizedCrop((0.3, 0.9), (0.8, 1.2)).draw(rng, 20, 30, (16, 16))
    rng.random()  # the flip
    steps = randaugment.draw(rng) + transforms.draw_color_jitter(0.3, rng)
    assert len(steps) > 4
    whole = augment(frames(), steps, (0, 0, 20, 30))
    top, left, height, width = place.source
    wanted = transforms.resize(transforms.to_clip(whole[:, top : top + height, left : left + width]), 16, 16)
    assert torch.allclose(clip, wanted, atol=1.5 / 255)  # one level: see randaugment.py
    assert not torch.equal(clip, train_transform()(frames(), np.random.default_rng(seed)))


def test_erasing_puts_fresh_noise_into_one_box_after_the_normalisation():
    erased = 0
    for seed in range(200):
        plain = train_transform(mean=(0.5,) * 3, std=(0.25,) * 3)(frames(4), np.random.default_rng(seed))
        clip = train_transform(mean=(0.5,) * 3, std=(0.25,) * 3, erasing=0.25)(frames(4), np.random.default_rng(seed))
        changed = clip != plain
        if not changed.any():
            continue
        erased += 1
        rows, columns = changed[0, 0].any(1).nonzero().flatten(), changed[0, 0].any(0).nonzero().flatten()
        box = changed[..., rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.all() and changed.sum() == box.sum()
        noise = clip[..., rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert not torch.equal(noise[:, 0], noise[:, 1]) and not torch.equal(noise[0], noise[1])
    assert 32 < erased < 70


def test_erasing_boxes_have_the_published_areas_and_shapes_and_the_noise_is_standard_normal():
    rng = np.random.default_rng(0)
    boxes = np.array([transforms.draw_erasing_box(rng, 224, 224) for _ in range(3000)])
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 224).all() and (left + width <= 224).all()
    assert distance(height * width / 224**2, uniform(0.02, 1 / 3)) < 0.05
    ratio = np.log(height / width) / np.log(1 / 0.3)
    assert distance(ratio[height * width < 224**2 * 0.2], uniform(-1, 1)) < 0.05
    clip = torch.zeros(3, 8, 32, 32)
    transforms.erase(clip, (0, 0, 32, 32), rng)
    assert distance(clip.flatten(), lambda values: torch.special.ndtr(torch.from_numpy(values)).numpy()) < 0.01
    assert transforms.draw_erasing_box(rng, 1, 100) is None


def test_every_setting_of_the_training_transform_is_taken_over():
    data = DataSettings(
        crop_size=(32, 48), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop="jitter", jitter_scales=(50, 60),
        flip=True, randaugment="rand-m3-n2-mstd0.5-inc1", color_jitter=0.2, erasing=0.1,
    )  # fmt: skip
    assert transforms.TrainTransform.from_settings(data) == transforms.TrainTransform(
        (32, 48), data.mean, data.std, transforms.JitterCrop((50, 60)), True, RandAugment(3, 2, 0.5), 0.2, 0.1
    )
    plain = transforms.TrainTransform.from_settings(DataSettings(crop_area=(0.2, 0.9), crop_ratio=(0.5, 2)))
    assert plain.crop == transforms.ResizedCrop((0.2, 0.9), (0.5, 2)) and plain.randaugment is None
    assert not (plain.flip or plain.color_jitter or plain.erasing)


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
    clip = transforms.normalize_(transforms.scale_short_side(transforms.to_clip(given), 16), mean, std)
    for view, position in zip(transforms.ViewTransform((14, 12), mean, std, 16, 3)(given), (0, 1, 2), strict=True):
        assert torch.equal(view, transforms.crop_at(clip, (14, 12), position))
