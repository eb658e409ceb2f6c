"""Triton kernels for GPUs. Each is the same sum as the plain functions beside this folder, which are the tests' reference.

Sums over tokens are taken in a fixed order: results do not change from run to run.
"""

from mvit_video.model.ops.triton.fold import fold_keys, fold_queries, fold_queries_and_read_tables, reads_whole_tables
from mvit_video.model.ops.triton.norm import column_sums, layer_norm, layer_norm_backward
from mvit_video.model.ops.triton.pool import can_pool, pool_norm, pool_norms

__all__ = [
    "can_pool",
    "column_sums",
    "fold_keys",
    "fold_queries",
    "fold_queries_and_read_tables",
    "layer_norm",
    "layer_norm_backward",
    "pool_norm",
    "pool_norms",
    "reads_whole_tables",
]
