import itertools

import pytest
import torch

from mvit_video.model.attention import flash_attention, reference_attention
from mvit_video.model.heads import Heads
from mvit_video.model.ops.attend import add_to_grid
from mvit_video.model.ops.folding import key_coordinates, position_terms
from mvit_video.model.relative_position import axis_terms, distance_rows

Q_THW, K_THW, HEADS, D = (2, 3, 2), (2, 2, 1), 2, 4


def tokens(thw, num_cls, batch=2):
    cells = thw[0] * thw[1] * thw[2]
    return Heads(
        *(torch.randn(batch, n, HEADS, D, dtype=torch.float64, requires_grad=True) for n in (num_cls, cells)), thw
    )


def position_tables(axes="thw"):
    torch.manual_seed(1)
    rows = [2 * max(q, k) - 1 for q, k in zip(Q_THW, K_THW, strict=True)]
    tables = [torch.randn(count, D, dtype=torch.float64, requires_grad=True) for count in rows]
    return [table if axis in axes else None for axis, table in zip("thw", tables, strict=True)]


def attention_by_loop(q, k, v, tables, scale):
    """One query, one key at a time."""
    num_cls, rows = q.cls.shape[1], [distance_rows(a, b) for a, b in zip(Q_THW, K_THW, strict=True)]
    queries, keys, values = (part.joined() for part in (q, k, v))
    q_places, k_places = (list(itertools.product(*map(range, thw))) for thw in (Q_THW, K_THW))
    out = torch.empty_like(queries)
    for batch, head, i in itertools.product(range(queries.shape[0]), range(HEADS), range(queries.shape[1])):
        scores = []
        for j in range(keys.shape[1]):
            score = (queries[batch, i, head] @ keys[batch, j, head]) * scale
            for axis in range(3):
                if i >= num_cls and j >= num_cls and tables[axis] is not None:
                    row = rows[axis][q_places[i - num_cls][axis], k_places[j - num_cls][axis]]
                    score = score + queries[batch, i, head] @ tables[axis][row]
            scores.append(score)
        out[batch, i, head] = torch.stack(scores).softmax(0) @ values[batch, :, head]
    return out


@pytest.mark.parametrize("num_cls", [0, 1])
@pytest.mark.parametrize("axes", ["thw", "hw", ""])
@pytest.mark.parametrize("attend", [reference_attention, flash_attention])
def test_attention_is_a_softmax_of_products_and_position_terms(num_cls, axes, attend):
    torch.manual_seed(0)
    q, k, v = tokens(Q_THW, num_cls), tokens(K_THW, num_cls), tokens(K_THW, num_cls)
    tables = position_tables(axes)
    expected = attention_by_loop(q, k, v, tables, 0.37)
    ours = attend(q, k, v, tables, 0.37)
    assert torch.allclose(ours, expected, atol=1e-12)
    given = [part for heads in (q, k, v) for part in heads[: 1 + 1] if part.numel()]
    given += [table for table in tables if table is not None]
    back = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(ours, given, back), torch.autograd.grad(expected, given, back), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-11)


def test_terms_over_views_are_those_of_the_plain_product():
    torch.manual_seed(0)
    q, tables = tokens(Q_THW, 1), position_tables()
    plain = axis_terms(q.grid.unflatten(1, Q_THW).permute(0, 4, 1, 2, 3, 5), tables, K_THW)
    for ours, expected in zip(position_terms(q, tables, K_THW), plain, strict=True):
        assert torch.allclose(ours.permute(0, 4, 1, 2, 3, 5), expected, atol=1e-12)


def test_key_coordinates_are_one_hot_per_axis():
    table = key_coordinates((2, 3, 2), (2, 3, 2), torch.zeros(1))
    for row, (t, h, w) in zip(table, itertools.product(range(2), range(3), range(2)), strict=True):
        assert row.nonzero().flatten().tolist() == [t, 2 + h, 5 + w]
    assert torch.equal(key_coordinates((2, 3, 2), (0, 4, 2), torch.zeros(1))[:, [0, 1, 2, 4, 5]], table[:, 2:])


@pytest.mark.parametrize("num_cls", [0, 1])
def test_the_residual_leaves_the_class_token_out(num_cls):
    q = tokens(Q_THW, num_cls)
    out = torch.randn(2, num_cls + 12, HEADS, D, dtype=torch.float64, requires_grad=True)
    total = add_to_grid(out, q)
    expected = torch.cat([out[:, :num_cls], out[:, num_cls:] + q.grid], 1)
    assert torch.equal(total, expected)
    back = torch.randn_like(total)
    for one, other in zip(
        *(torch.autograd.grad(value, (out, q.grid), back) for value in (total, expected)), strict=True
    ):
        assert torch.equal(one, other)
