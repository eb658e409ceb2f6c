import numpy as np
import pytest
from PIL import Image

from mvit_video.data.shifts import Shift, moves_along_one_axis

GREY = (128, 128, 128)


def pillows(image, matrix, shape):
    picture = Image.fromarray(image)
    bicubic = Image.Resampling.BICUBIC
    moved = picture.transform(shape[::-1], Image.Transform.AFFINE, matrix, resample=bicubic, fillcolor=GREY)
    return np.asarray(moved)


def image(rng, kind, height, width):
    noise = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    ramp = (np.arange(width) * 3 % 256).astype(np.uint8)
    return {
        "noise": noise,
        "black and white": (noise > 128).astype(np.uint8) * np.uint8(255),
        "ramp": np.broadcast_to(ramp[None, :, None], noise.shape).copy(),
        "flat": np.full_like(noise, 77),
        "nearly flat": noise // 128 + np.uint8(100),
    }[kind]


def matrices(rng):
    """Shears and translations by any numbers and by round ones, sideways and upright, at any whole place of the other axis."""
    shear = rng.choice([rng.uniform(-0.3, 0.3), *(-0.3, -0.25, -0.125, 0.0, 0.1, 0.2, 0.25)])
    far = rng.choice([rng.uniform(-60, 60), rng.integers(-40, 40) / rng.choice([1, 2, 4, 10])])
    whole = float(rng.integers(-10, 10))
    yield 1.0, float(shear), float(far), 0.0, 1.0, whole
    yield 1.0, 0.0, whole, float(shear), 1.0, float(far)


@pytest.mark.parametrize("kind", ["noise", "black and white", "ramp", "flat", "nearly flat"])
def test_shifts_are_pillows_to_the_last_bit(kind):
    rng = np.random.default_rng(0)
    for _ in range(150):
        height, width, *shape = (int(side) for side in rng.integers(1, 70, 4))
        given = image(rng, kind, height, width)
        for matrix in matrices(rng):
            assert moves_along_one_axis(matrix)
            shift, expected = Shift(matrix, (height, width), tuple(shape), 128), pillows(given, matrix, shape)
            assert np.array_equal(shift(given), expected), (matrix, given.shape, shape)
            assert np.array_equal(shift(given), expected), "a second image finds what the first has left"


def test_a_picture_of_a_usual_size_is_pillows_too():
    rng = np.random.default_rng(1)
    given = np.asarray(Image.fromarray(image(rng, "noise", 32, 43)).resize((340, 256), Image.Resampling.BICUBIC))
    for _ in range(5):
        for matrix in matrices(rng):
            assert np.array_equal(Shift(matrix, (256, 340), (180, 220), 128)(given), pillows(given, matrix, (180, 220)))


def test_rotations_and_moves_by_parts_of_both_axes_are_left_to_pillow():
    for matrix in ((0.9, 0.1, 0, -0.1, 0.9, 0), (1, 0.1, 0, 0, 1, 0.5), (1, 0, 0.5, 0.1, 1, 0), (2, 0, 0, 0, 1, 0)):
        assert not moves_along_one_axis(matrix)
