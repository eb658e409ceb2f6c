"""Triton kernels for GPUs. Each is the same sum as the plain functions beside this folder, which are the tests' reference.

Sums over tokens are taken in a fixed order: results do not change from run to run.
"""

from mvit_video.model.ops.triton.fold import fold_keys, fold_queries, read_tables, tables_gradient
from mvit_video.model.ops.triton.norm import column_sums, layer_norm, layer_norm_backward
from mvit_video.model.ops.triton.pool import can_pool, pool_norms, pool_norms_backward

__all__ = [
    "can_pool",
    "column_sums",
    "fold_keys",
    "fold_queries",
    "layer_norm",
    "layer_norm_backward",
    "pool_norms",
    "pool_norms_backward",
    "read_tables",
    "tables_gradient",
]
