"""Groups of a token grid: the drawings of the docstrings, round trips, and shifts against rolling with a mask."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from mvit_video.model.partition import (
    axis_windows,
    from_grids,
    from_shifted_windows,
    from_windows,
    grids,
    largest_divisor,
    padded,
    shifted_windows,
    unpadded,
    windows,
)


def numbered(*thw: int, batch: int = 2) -> torch.Tensor:
    """Tokens (B, T, H, W, 1) that each hold a number of their own."""
    count = batch * thw[0] * thw[1] * thw[2]
    return torch.arange(count, dtype=torch.float64).reshape(batch, *thw, 1)


def drawn(groups: list[torch.Tensor]) -> list[str]:
    """The 4×4 grid of one frame with a letter for each group, in the order in which the grid's rows meet them."""
    of_token = {
        int(value): number for number, group in enumerate(part for each in groups for part in each) for value in group
    }
    letters: dict[int, str] = {}
    cells = [letters.setdefault(of_token[token], "abcdefghi"[len(letters)]) for token in range(16)]
    return [" ".join(cells[row : row + 4]) for row in range(0, 16, 4)]


def test_a_window_holds_neighbours():
    assert drawn([windows(numbered(1, 4, 4, batch=1), (1, 2, 2))]) == ["a a b b", "a a b b", "c c d d", "c c d d"]


def test_a_stripe_is_a_window_as_long_as_the_grid():
    assert drawn([windows(numbered(1, 4, 4, batch=1), (1, 4, 2))]) == ["a a b b"] * 4
    assert drawn([windows(numbered(1, 4, 4, batch=1), (1, 2, 4))]) == ["a a a a"] * 2 + ["b b b b"] * 2


def test_a_grid_holds_tokens_that_lie_equally_far_apart():
    assert drawn([grids(numbered(1, 4, 4, batch=1), (1, 2, 2))]) == ["a b a b", "c d c d"] * 2


def test_a_shift_moves_the_borders_and_cuts_the_windows_at_the_ends():
    groups = [group for group, _ in shifted_windows(numbered(1, 4, 4, batch=1), (1, 2, 2), (0, 1, 1))]
    assert drawn(groups) == ["a b b c", "d e e f", "d e e f", "g h h i"]


def test_pieces_of_an_axis():
    assert axis_windows(8, 4, 0) == [(0, 8, 4)]
    assert axis_windows(8, 4, 2) == [(0, 2, 2), (2, 6, 4), (6, 8, 2)]
    assert axis_windows(4, 4, 2) == [(0, 4, 4)], "an axis of one window is not shifted"
    assert axis_windows(7, 7, 3) == [(0, 7, 7)]


SIZES = [((4, 6, 8), (2, 3, 2)), ((1, 4, 4), (1, 2, 4)), ((2, 6, 6), (2, 6, 1)), ((8, 14, 7), (4, 7, 7))]


@pytest.mark.parametrize(("thw", "size"), SIZES)
def test_what_is_cut_is_put_together_again(thw, size):
    x = torch.randn(2, *thw, 3)
    assert torch.equal(from_windows(windows(x, size), size, thw), x)
    assert torch.equal(from_grids(grids(x, size), size, thw), x)
    for shift in product(*({0, side // 2, max(side - 1, 0)} for side in size)):
        groups = [group for group, _ in shifted_windows(x, size, shift)]
        assert torch.equal(from_shifted_windows(groups, size, shift, thw), x), shift


@pytest.mark.parametrize(("thw", "size"), SIZES)
def test_a_groups_tokens_are_those_that_a_loop_finds(thw, size):
    x = numbered(*thw, batch=1)
    counts = [length // side for length, side in zip(thw, size, strict=True)]
    near, far = {}, {}
    for t, h, w in product(*map(range, thw)):
        token = int(x[0, t, h, w])
        near.setdefault((t // size[0], h // size[1], w // size[2]), []).append(token)
        far.setdefault((t % counts[0], h % counts[1], w % counts[2]), []).append(token)
    assert windows(x, size).squeeze(-1).tolist() == [near[place] for place in sorted(near)]
    assert grids(x, size).squeeze(-1).tolist() == [far[place] for place in sorted(far)]


def attention(x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    return F.scaled_dot_product_attention(x, 2 * x, x + 1, attn_mask=mask)


@pytest.mark.parametrize(
    ("thw", "size", "shift"), [((4, 6, 8), (2, 3, 4), (1, 1, 2)), ((1, 8, 8), (1, 4, 4), (0, 2, 2))]
)
def test_cutting_at_the_shift_is_rolling_with_a_mask(thw, size, shift):
    """Swin rolls the grid and keeps tokens of different regions of a window apart by −∞."""
    x = torch.randn(2, *thw, 8, dtype=torch.float64)
    cut = [attention(group) for group, _ in shifted_windows(x, size, shift)]
    ours = from_shifted_windows(cut, size, shift, thw)
    regions = torch.zeros(1, *thw, 1)
    for axis, (side, moved) in enumerate(zip(size, shift, strict=True), start=1):
        places = torch.arange(thw[axis - 1])
        region = (places >= thw[axis - 1] - side).long() + (places >= thw[axis - 1] - moved).long() * (moved > 0)
        regions = 3 * regions + region.reshape([-1 if k == axis else 1 for k in range(5)])
    labels = windows(regions, size).squeeze(-1)
    mask = (labels[:, :, None] == labels[:, None, :]).repeat(2, 1, 1)
    rolled = windows(x.roll([-moved for moved in shift], (1, 2, 3)), size)
    theirs = from_windows(attention(rolled, mask), size, thw).roll(shift, (1, 2, 3))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("both_sides", [False, True])
def test_zeros_fill_the_last_window_and_are_cut_again(both_sides):
    x = torch.randn(2, 3, 5, 7, 4)
    filled = padded(x, (1, 4, 4), both_sides)
    assert filled.shape[1:4] == (3, 8, 8)
    assert torch.equal(unpadded(filled, (3, 5, 7), both_sides), x)
    assert filled.count_nonzero() == x.count_nonzero()
    first_row_is_zero = not filled[:, :, 0].any()
    assert first_row_is_zero == both_sides


def test_time_is_cut_into_the_largest_window_that_divides_it():
    assert [largest_divisor(length, 8) for length in (8, 16, 20, 10, 7, 5)] == [8, 8, 5, 5, 7, 5]
