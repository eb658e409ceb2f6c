"""Triton kernels for GPUs. Each computes the same as the plain functions in `ops`, which are the tests' reference.

Sums over tokens are taken in a fixed order: results are the same from run to run.
"""

from mvit_video.model.ops.triton.fold import fold_keys, fold_queries, gather_tables, tables_gradient
from mvit_video.model.ops.triton.norm import column_sums, layer_norm, layer_norm_backward
from mvit_video.model.ops.triton.pool import can_pool, pool_norms, pool_norms_backward

__all__ = [
    "can_pool",
    "column_sums",
    "fold_keys",
    "fold_queries",
    "gather_tables",
    "layer_norm",
    "layer_norm_backward",
    "pool_norms",
    "pool_norms_backward",
    "tables_gradient",
]
