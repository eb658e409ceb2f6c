import doctest
import math

import pytest
import torch

from mvit_video.model import relative_position as positions


def test_the_drawing_in_the_docstring_is_right():
    assert doctest.testmod(positions) == (1, 0) or doctest.testmod(positions).failed == 0
    assert doctest.testmod(positions).attempted == 1


@pytest.mark.parametrize(("q", "k"), [(1, 1), (56, 7), (7, 7), (4, 16), (39, 20), (20, 7), (5, 3), (1, 8)])
def test_rows_are_distances_on_the_finer_grid(q, k):
    rows = positions.distance_rows(q, k)
    q_step, k_step = max(k / q, 1.0), max(q / k, 1.0)
    for i in range(q):
        for j in range(k):
            distance = i * q_step - j * k_step + (k - 1) * k_step
            assert rows[i, j] in (math.floor(distance), round(distance))  # float32 may fall to either side of a whole
    assert rows.min() >= 0 and rows.max() < positions.table_rows(q, k)


def test_equal_grids_use_each_distance_by_its_own_row():
    rows = positions.distance_rows(5, 5)
    assert all(rows[i, j] == i - j + 4 for i in range(5) for j in range(5))


@pytest.mark.parametrize(("q", "k"), [(6, 6), (6, 3), (2, 5), (4, 4)])
def test_a_table_of_other_rows_is_interpolated_between_row_centres(q, k):
    table, wanted_rows = torch.randn(7, 3, dtype=torch.float64), positions.table_rows(q, k)
    resampled = torch.empty(wanted_rows, 3, dtype=torch.float64)
    for row in range(wanted_rows):
        at = min(max((row + 0.5) * 7 / wanted_rows - 0.5, 0.0), 6.0)
        low, high = int(at), min(int(at) + 1, 6)
        resampled[row] = table[low] * (1 - at + low) + table[high] * (at - low)
    embedding = positions.axis_embedding(table, q, k)
    assert torch.allclose(embedding, resampled[positions.distance_rows(q, k)])


def test_terms_are_products_of_queries_and_table_rows():
    q = torch.randn(2, 3, 2, 3, 4, 5, dtype=torch.float64)
    tables = [
        torch.randn(positions.table_rows(size, key), 5, dtype=torch.float64) for size, key in ((2, 2), (3, 5), (4, 2))
    ]
    terms = positions.axis_terms(q, tables, (2, 5, 2))
    for axis, (term, table, size, key) in enumerate(zip(terms, tables, (2, 3, 4), (2, 5, 2), strict=True)):
        rows = positions.distance_rows(size, key)
        for place in range(size):
            for other in range(key):
                expected = q.select(2 + axis, place) @ table[rows[place, other]]
                assert torch.allclose(term.select(2 + axis, place)[..., other], expected)
    assert len(positions.axis_terms(q, [None, *tables[1:]], (2, 5, 2))) == 2
