import math

import numpy as np
import pytest
import torch

from mvit_video.config.schema import DataSettings
from mvit_video.data import transforms
from mvit_video.data.pixels import Erasing
from mvit_video.data.randaugment import RandAugment, augment
from mvit_video.errors import DecodeError


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


def per_channel(values):
    return torch.tensor(values).view(3, 1, 1, 1)


def levels(clip):
    """A clip from 0 to 1 in grey levels."""
    return (clip * 255).round()


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


@pytest.mark.parametrize(("height", "width"), [(20, 30), (61, 17), (1, 40), (40, 1)])
@pytest.mark.parametrize("size", [(11, 16), (40, 41), (20, 7), (1, 1), (90, 33)])
def test_levels_are_scaled_within_one_of_plain_bilinear_interpolation(height, width, size):
    for given in (frames(1, height, width), np.where(frames(1, height, width) > 127, np.uint8(255), np.uint8(0))):
        ours = transforms.resize_levels(transforms.as_pixels(given), *size)
        assert ours.shape == (3, 1, *size) and ours.dtype == torch.uint8
        for channel in range(3):
            plain = bilinear(given[0, ..., channel].astype(float), *size).round()
            assert np.abs(ours[channel, 0].numpy() - plain).max() <= 1


def test_scaled_levels_are_the_same_bits_for_any_number_of_threads_and_in_any_order_of_bytes():
    pixels, before = transforms.as_pixels(frames(8, 180, 240)), torch.get_num_threads()
    try:
        for size in ((72, 72), (224, 224), (48, 40)):
            results = []
            for threads in (1, 2, 4):
                torch.set_num_threads(threads)
                results += [transforms.resize_levels(given, *size) for given in (pixels, pixels.contiguous())]
            assert all(torch.equal(result, results[0]) for result in results)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("height", "width"), [(256, 340), (340, 256), (100, 100), (63, 117)])
def test_the_short_side_is_exact_and_the_long_side_is_rounded_down(height, width):
    scaled = transforms.scale_for_crop(torch.zeros(3, 1, height, width), 48, (48, 48))
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


SHAPES = [(120, 160), (160, 120), (90, 160), (160, 90), (64, 64), (1, 50), (50, 1), (333, 35), (7, 9)]
CROPS = [(16, 28), (28, 16), (12, 16), (16, 16), (8, 50), (50, 8), (1, 10)]


@pytest.mark.parametrize("crop", CROPS)
def test_a_crop_of_any_shape_lies_within_a_picture_of_any_shape_scaled_as_little_as_that_needs(crop):
    for height, width in SHAPES:
        short_side = 16
        tall, wide = transforms.scaled_size(height, width, short_side, crop)
        scale = max(short_side / min(height, width), crop[0] / height, crop[1] / width)
        assert (tall, wide) >= crop and wide >= crop[1]
        assert abs(tall - scale * height) <= 1 + 1e-9 and abs(wide - scale * width) <= 1 + 1e-9
        assert tall in (short_side, crop[0]) or wide in (short_side, crop[1]), "one side is exact"
        for position in (0, 1, 2):
            top, left, *size = transforms.crop_box(tall, wide, crop, position)
            assert top >= 0 and left >= 0 and top + crop[0] <= tall and left + crop[1] <= wide and tuple(size) == crop


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("crop", CROPS)
def test_no_pixel_of_a_view_or_a_training_clip_is_memory_that_nobody_wrote(crop):
    white = (1 - 0.45) / 0.225
    jitter = transforms.JitterCrop((16, 24))
    for height, width in SHAPES:
        given = np.full((2, height, width, 3), 255, np.uint8)
        np.empty(10**6, np.float32)[:] = 1e30  # what happens to lie in the memory
        views = transforms.ViewTransform(crop, (0.45,) * 3, (0.225,) * 3, 16, 3)(given)
        assert views.shape == (3, 3, 2, *crop) and (views - white).abs().max() < 1e-5
        for how in (jitter, transforms.ResizedCrop((0.08, 1.0), (0.75, 4 / 3))):
            train = train_transform(size=crop, mean=(0.45,) * 3, std=(0.225,) * 3, crop=how)
            clip = train(given, np.random.default_rng(0))
            assert clip.shape == (3, 2, *crop) and (clip - white).abs().max() < 1e-5


@pytest.mark.parametrize(("height", "width"), [(1, 600), (6000, 2), (1, 4000)])
def test_a_thread_of_a_picture_is_refused_before_memory_is_taken_for_it(height, width):
    given = np.zeros((1, height, width, 3), np.uint8)
    shapes = rf"its images of {width}×{height} pixels would be scaled to .* above the limit of 36,000,000 pixels"
    with pytest.raises(DecodeError, match=shapes):
        transforms.ViewTransform((300, 300), (0, 0, 0), (1, 1, 1), 300, 1)(given)
    with pytest.raises(DecodeError, match=shapes):
        train_transform(size=(300, 300), crop=transforms.JitterCrop((300, 300)))(given, np.random.default_rng(0))


def test_three_crops_of_a_wide_clip_lie_where_the_picture_has_room():
    """4:3 scaled to 84×112 for a crop of 64×112 has none to the left and right: three crops there would be one."""
    boxes = [transforms.crop_box(84, 112, (64, 112), position) for position in (0, 1, 2)]
    assert boxes == [(0, 0, 64, 112), (10, 0, 64, 112), (20, 0, 64, 112)]


def test_views_of_a_wide_crop_are_plain_bilinear_interpolation():
    given = frames(1, 12, 16)
    views = transforms.ViewTransform((9, 20), (0, 0, 0), (1, 1, 1), 10, 2)(given)
    whole = np.stack([bilinear(given[0, ..., channel] / 255.0, 15, 20) for channel in range(3)])
    assert np.allclose(views[0, :, 0].numpy(), whole[:, :9], atol=1e-6)
    assert np.allclose(views[1, :, 0].numpy(), whole[:, 6:], atol=1e-6)


@pytest.mark.parametrize("crop", [(224, 400), (400, 224), (224, 224), (160, 320)])
@pytest.mark.parametrize("how", [transforms.ResizedCrop((0.08, 1.0), (0.75, 4 / 3)), transforms.JitterCrop((256, 320))])
def test_training_stretches_pictures_no_more_for_a_wide_crop_than_for_a_square_one(crop, how):
    rng = np.random.default_rng(0)
    for height, width in ((360, 640), (480, 640), (640, 360)):
        places = [how.draw(rng, height, width, crop) for _ in range(1000)]
        stretched = np.array([(p.scaled[1] / p.scaled_box[3]) / (p.scaled[0] / p.scaled_box[2]) for p in places])
        assert stretched.min() > 0.7 and stretched.max() < 1.4
        assert 0.9 < np.median(stretched) < 1.1


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
        top, left, tall, wide = transforms.draw_crop_box(rng, height, width, crop.area, (0.8 * 20 / 24, 1.2 * 20 / 24))
        clip = transforms.resize(transforms.to_clip(given[:, top : top + tall, left : left + wide]), 24, 20)
        expected = clip.flip(-1) if rng.random() < 0.5 else clip
        actual = train_transform(size=(24, 20), mean=mean, std=std, crop=crop, flip=True)(
            given, np.random.default_rng(seed)
        )
        assert actual.is_contiguous() and actual.dtype == torch.float32
        shown = levels(actual * per_channel(std) + per_channel(mean))
        assert (shown - levels(expected)).abs().max() <= 1
        exactly = (shown / 255 - per_channel(mean)) / per_channel(std)
        assert torch.equal(actual, exactly), "whole levels, normalised"


def test_a_training_clip_that_is_not_scaled_is_the_decoded_frames_normalised_bit_for_bit():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    crop = transforms.ResizedCrop((1, 1), (1, 1))
    found = train_transform(size=(20, 20), mean=mean, std=std, crop=crop)(frames(4, 20, 20), np.random.default_rng(0))
    assert torch.equal(found, (transforms.to_clip(frames(4, 20, 20)) - per_channel(mean)) / per_channel(std))


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
    assert (levels(clip) - levels(transforms.resize(transforms.to_clip(frames()), 16, 16))).abs().max() <= 1


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
        scaled = transforms.resize_levels(transforms.as_pixels(jittered), *place.scaled)
        top, left = place.target[:2]
        assert torch.equal(levels(clip), scaled[..., top : top + 16, left : left + 16].float())
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
    expected = transforms.resize(transforms.to_clip(whole[:, top : top + height, left : left + width]), 16, 16)
    assert (levels(clip) - levels(expected)).abs().max() <= 2  # one level each: see randaugment.py, and scaling
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
    Erasing((0, 0, 32, 32), rng.bit_generator.state, 8).fill(clip)
    assert distance(clip.flatten(), lambda values: torch.special.ndtr(torch.from_numpy(values)).numpy()) < 0.01
    assert transforms.draw_erasing_box(rng, 1, 100) is None


def test_every_setting_of_the_training_transform_is_taken_over():
    data = DataSettings(
        crop_size=(32, 48), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop="jitter", jitter_scales=(50, 60),
        flip=True, randaugment="rand-m3-n2-mstd0.5-inc1", color_jitter=0.2, erasing=0.1,
    )  # fmt: skip
    assert transforms.train_transform_from(data, data) == transforms.TrainTransform(
        (32, 48), data.mean, data.std, transforms.JitterCrop((50, 60)), True, RandAugment(3, 2, 0.5), 0.2, 0.1
    )
    data = DataSettings(crop_area=(0.2, 0.9), crop_ratio=(0.5, 2))
    plain = transforms.train_transform_from(data.input, data.augmentation)
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
    expected = torch.cat([transform(given[row]) for row in clips])
    assert expected.shape == (9, 3, 3, 16, 16) and torch.equal(transform(given, clips), expected)


@pytest.mark.parametrize(("height", "width"), [(20, 30), (37, 22), (16, 16)])
def test_views_are_those_of_the_plain_steps_on_the_whole_clip(height, width):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    given = frames(4, height, width)
    clip = transforms.scale_for_crop(transforms.to_clip(given), 16, (14, 12))
    clip = (clip - per_channel(mean)) / per_channel(std)
    for view, position in zip(transforms.ViewTransform((14, 12), mean, std, 16, 3)(given), (0, 1, 2), strict=True):
        assert torch.equal(view, transforms.crop_at(clip, (14, 12), position))


@pytest.mark.parametrize(
    ("height", "width", "dtype"), [(16, 30, torch.uint8), (20, 16, torch.uint8), (20, 30, torch.float32)]
)
def test_views_travel_as_bytes_unless_they_are_scaled(height, width, dtype):
    transform = transforms.ViewTransform((16, 16), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), short_side=16, num_crops=3)
    clips = np.array([[0, 1, 2], [2, 2, 1]])
    pixels = transform.pixels(frames(3, height, width), clips)
    assert pixels.dtype == dtype and pixels.shape == (6, 3, 3, 16, 16)
    assert torch.equal(
        transform(frames(3, height, width), clips),
        (pixels.float() / (255 if dtype == torch.uint8 else 1) - per_channel((0.4, 0.5, 0.6)))
        / per_channel((0.2, 0.25, 0.3)),
    )


def test_the_training_transform_is_its_pixels_normalised_and_erased():
    changes = dict(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), flip=True, erasing=0.5, color_jitter=0.3)
    transform, erased = train_transform(**changes), 0
    for seed in range(20):
        pixels, erasing = transform.pixels(frames(), np.random.default_rng(seed))
        assert pixels.dtype == torch.uint8 and pixels.shape == (3, 3, 16, 16)
        clip = (pixels.float() / 255 - per_channel((0.4, 0.5, 0.6))) / per_channel((0.2, 0.25, 0.3))
        if erasing is not None:
            top, left, height, width = erasing.box
            clip[..., top : top + height, left : left + width] = erasing.drawn()
            erased += 1
        assert torch.equal(clip, transform(frames(), np.random.default_rng(seed)))
    assert 4 < erased < 16


def test_the_noise_of_erased_boxes_is_what_the_sample_s_generator_draws_next():
    transform = train_transform(erasing=1.0)
    _, erasing = transform.pixels(frames(), np.random.default_rng(3))
    rng = np.random.default_rng(3)
    transform.crop.draw(rng, 20, 30, (16, 16))
    rng.random(), rng.random()  # the flip, and whether to erase
    box = transforms.draw_erasing_box(rng, 16, 16)
    assert erasing.box == box
    noise = rng.standard_normal((3, 3, *box[2:]), dtype=np.float32)
    assert np.array_equal(erasing.drawn().numpy(), noise) and np.array_equal(erasing.drawn().numpy(), noise)
