"""Attention with decomposed relative positions: the plain formula, and an exact form without the N×M matrix.

softmax(q·kᵀ·scale + E)·v with E_ij = q_i · (R^t[t_i, t_j] + R^h[h_i, h_j] + R^w[w_i, w_j]); the class token's row and
column of E are 0.
"""

# B batch, h heads, d head dim, c class tokens (0 or 1), T/H/W query grid, Kt/Kh/Kw key grid,
# N = c + T*H*W queries, M = c + Kt*Kh*Kw keys

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from mvit_video.model.heads import Grid, Heads
from mvit_video.model.ops.attend import folded_attention
from mvit_video.model.relative_position import axis_terms

Tables = Sequence[Tensor | None]  # of t, h, w; None for an axis without positions


def reference_attention(q: Heads, k: Heads, v: Heads, tables: Tables, scale: float) -> Tensor:
    """The plain formula, which materialises the N×M matrix: (B, N, h, d)."""
    queries, keys, values = (part.joined().transpose(1, 2) for part in (q, k, v))  # (B, h, N, d)
    scores = (queries * scale) @ keys.transpose(-2, -1)
    bias = _position_bias(q, tables, k.thw)
    if bias is not None:
        scores = scores + F.pad(bias, (k.cls.shape[1], 0, q.cls.shape[1], 0))
    return (scores.softmax(-1) @ values).transpose(1, 2)


def _position_bias(q: Heads, tables: Tables, k_thw: Grid) -> Tensor | None:
    """E of the grid's tokens, (B, h, T·H·W, Kt·Kh·Kw): each axis' term broadcast over the key's other two axes."""
    bias, axes = None, [axis for axis in range(3) if tables[axis] is not None]
    terms = axis_terms(q.grid.unflatten(1, q.thw).permute(0, 4, 1, 2, 3, 5), tables, k_thw)
    for axis, term in zip(axes, terms, strict=True):
        shape = [1, 1, 1]
        shape[axis] = k_thw[axis]
        expanded = term.unflatten(-1, shape).expand(*term.shape[:-1], *k_thw)
        bias = expanded if bias is None else bias + expanded
    return None if bias is None else bias.flatten(5).flatten(2, 4)


def flash_attention(q: Heads, k: Heads, v: Heads, tables: Tables, scale: float) -> Tensor:
    """Equal to `reference_attention` up to rounding, without a mask or the N×M matrix: (B, N, h, d)."""
    return folded_attention(q, k, v, tables, scale, reference_attention)


ATTENTION = {"flash": flash_attention, "reference": reference_attention}
