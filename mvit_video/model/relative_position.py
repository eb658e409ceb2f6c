"""Decomposed relative positions (MViTv2 paper §4.1): one table per axis, added to the attention scores.

E_ij = q_i · (R^t[t_i, t_j] + R^h[h_i, h_j] + R^w[w_i, w_j]), where R^a[i, j] is the row of axis a's table for the
distance between query position i and key position j on that axis.
"""

# B batch, h heads, d head dim, T/H/W query grid, Q/K query and key positions on one axis

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def table_rows(q_size: int, k_size: int) -> int:
    """Number of distances between `q_size` query and `k_size` key positions: the rows of a table."""
    return 2 * max(q_size, k_size) - 1


def distance_rows(q_size: int, k_size: int, device: torch.device | None = None) -> Tensor:
    """Row of the table for each (query, key) pair on one axis: (Q, K) int64.

    The coarser grid is stretched to the finer one, and distances are truncated to whole rows. In float32 and in this order
    of operations: the published weights were trained with exactly these rows.

    >>> distance_rows(4, 2)
    tensor([[2, 0],
            [3, 1],
            [4, 2],
            [5, 3]])
    """
    q_step = max(k_size / q_size, 1.0)
    k_step = max(q_size / k_size, 1.0)
    q_at = torch.arange(q_size, device=device)[:, None] * q_step
    k_at = torch.arange(k_size, device=device)[None, :] * k_step
    return (q_at - k_at + (k_size - 1) * k_step).long()


def resample_table(table: Tensor, rows: int) -> Tensor:
    """A table (R, d) linearly interpolated to `rows` rows; the table itself if it has as many."""
    if table.shape[0] == rows:
        return table
    return F.interpolate(table.t()[None], size=rows, mode="linear")[0].t()


def axis_embedding(table: Tensor, q_size: int, k_size: int) -> Tensor:
    """R of one axis for any sizes: (Q, K, d); the table is interpolated if its rows do not fit."""
    return resample_table(table, table_rows(q_size, k_size))[distance_rows(q_size, k_size, table.device)]


def resampling(q_size: int, k_size: int, rows: int, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """The linear map (Q, K, rows) from a table of `rows` rows to R of one axis."""
    eye = torch.eye(rows, dtype=dtype, device=device)
    return resample_table(eye, table_rows(q_size, k_size))[distance_rows(q_size, k_size, device)]


def axis_terms(q: Tensor, tables: Sequence[Tensor | None], k_thw: Sequence[int]) -> list[Tensor]:
    """The query's score with each key coordinate: q (B, h, T, H, W, d) -> (B, h, T, H, W, K) per axis with a table.

    E_ij is the sum of the axes' terms at the key's coordinates. `tables` are those of t, h and w.
    """
    equations = ("bnthwd,tkd->bnthwk", "bnthwd,hkd->bnthwk", "bnthwd,wkd->bnthwk")
    return [
        torch.einsum(equation, q, axis_embedding(table, q_size, k_size))
        for equation, table, q_size, k_size in zip(equations, tables, q.shape[2:5], k_thw, strict=True)
        if table is not None
    ]
