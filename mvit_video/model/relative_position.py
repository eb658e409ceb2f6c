"""Decomposed relative positions (MViTv2 paper §4.1): one table per axis, added to the attention scores.

E_ij = q_i · (R^t[t_i, t_j] + R^h[h_i, h_j] + R^w[w_i, w_j]), where R^a[i, j] is the row of axis a's table that stands
for the distance between query position i and key position j on that axis.
"""

# B batch, h heads, d head dim, T/H/W query grid, Q/K query and key positions on one axis

import torch
import torch.nn.functional as F
from torch import Tensor


def table_rows(q_size: int, k_size: int) -> int:
    """Rows of a table that holds every distance between `q_size` query and `k_size` key positions."""
    return 2 * max(q_size, k_size) - 1


def distance_rows(q_size: int, k_size: int, device: torch.device | None = None) -> Tensor:
    """Row of the table for each (query, key) pair on one axis: (Q, K) int64.

    Where the grids differ the coarser one is stretched to the finer one and the distance is cut to a whole row, in
    float32 and in this order of operations, because the published weights were trained with exactly these rows.

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
    """A table (rows_before, d) read at `rows` rows, linearly interpolated; the table itself where nothing changes."""
    if table.shape[0] == rows:
        return table
    return F.interpolate(table.t()[None], size=rows, mode="linear")[0].t()


def axis_embedding(table: Tensor, q_size: int, k_size: int) -> Tensor:
    """R of one axis: (Q, K, d), for any sizes."""
    resampled = resample_table(table, table_rows(q_size, k_size))
    return resampled[distance_rows(q_size, k_size, table.device)]


def axis_terms(
    q: Tensor, tables: tuple[Tensor | None, Tensor, Tensor], k_thw: tuple[int, int, int]
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The query's score with each key coordinate: q (B, h, T, H, W, d) -> (B, h, T, H, W, K) for t, h and w.

    The sum of the three, read at a key's three coordinates, is E_ij. `tables` are (t, h, w); t is None in image models.
    """
    table_t, table_h, table_w = tables
    size_t, size_h, size_w = q.shape[2:5]
    term_h = torch.einsum("bnthwd,hkd->bnthwk", q, axis_embedding(table_h, size_h, k_thw[1]))
    term_w = torch.einsum("bnthwd,wkd->bnthwk", q, axis_embedding(table_w, size_w, k_thw[2]))
    if table_t is None:
        return None, term_h, term_w
    term_t = torch.einsum("bnthwd,tkd->bnthwk", q, axis_embedding(table_t, size_t, k_thw[0]))
    return term_t, term_h, term_w
