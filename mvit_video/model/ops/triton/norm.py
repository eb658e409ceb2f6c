"""LayerNorm in single precision from and to any dtype, and column sums."""

# N rows, C channels

import torch
import triton
import triton.language as tl
from torch import Tensor

from mvit_video.model.ops.triton.device import on_tensor_device

SLOTS = 1024  # programs of a sum over rows; each writes a partial sum


@triton.jit
def standardise(z, c_ok, eps, D: tl.constexpr):
    """(z − mean) / standard deviation over channels, and 1 / standard deviation."""
    mean = tl.sum(z, 1) / D
    centred = tl.where(c_ok[None, :], z - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / D + eps)
    return centred * rstd[:, None], rstd


@triton.jit
def norm_backward(grad_y, normed, rstd, gain, D: tl.constexpr):
    """Gradient w.r.t. the norm's input, given that w.r.t. y."""
    grad = grad_y * gain[None, :]
    projection = tl.sum(grad * normed, 1) / D
    return (grad - normed * projection[:, None] - (tl.sum(grad, 1) / D)[:, None]) * rstd[:, None]


@triton.jit
def _norm_kernel(x, scale, shift, y, rows, eps, C: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK)
    ok = (row < rows)[:, None] & (c < C)[None, :]
    place = row.to(tl.int64)[:, None] * C + c[None, :]
    normed, _ = standardise(tl.load(x + place, mask=ok, other=0.0).to(tl.float32), c < C, eps, C)
    gain = tl.load(scale + c, mask=c < C, other=0.0).to(tl.float32)
    offset = tl.load(shift + c, mask=c < C, other=0.0).to(tl.float32)
    tl.store(y + place, (normed * gain[None, :] + offset[None, :]).to(y.dtype.element_ty), mask=ok)


@triton.jit
def _norm_gradient_kernel(
    x, scale, grad_y, grad_x, sums, rows, eps, C: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    c = tl.arange(0, BLOCK)
    gain = tl.load(scale + c, mask=c < C, other=0.0).to(tl.float32)
    sum_scale = tl.zeros((ROWS, BLOCK), tl.float32)
    sum_shift = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        ok = (row < rows)[:, None] & (c < C)[None, :]
        place = row.to(tl.int64)[:, None] * C + c[None, :]
        normed, rstd = standardise(tl.load(x + place, mask=ok, other=0.0).to(tl.float32), c < C, eps, C)
        grad = tl.load(grad_y + place, mask=ok, other=0.0).to(tl.float32)
        sum_scale += grad * normed
        sum_shift += grad
        grad = norm_backward(grad, normed, rstd, gain, C)
        tl.store(grad_x + place, grad.to(grad_x.dtype.element_ty), mask=ok)
    tl.store(sums + tl.program_id(0) * 2 * C + c, tl.sum(sum_scale, 0), mask=c < C)
    tl.store(sums + tl.program_id(0) * 2 * C + C + c, tl.sum(sum_shift, 0), mask=c < C)


@triton.jit
def _column_sums_kernel(x, sums, rows, C, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        ok = (row < rows)[:, None] & (c < C)[None, :]
        total += tl.load(x + row.to(tl.int64)[:, None] * C + c[None, :], mask=ok, other=0.0).to(tl.float32)
    tl.store(sums + tl.program_id(0) * C + c, tl.sum(total, 0), mask=c < C)


@on_tensor_device
def layer_norm(rows: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """LayerNorm of rows (N, C), contiguous, in single precision, returned in `dtype`."""
    out = rows.new_empty(rows.shape, dtype=dtype)
    tile, block = _norm_tile(rows)
    _norm_kernel[(triton.cdiv(len(rows), tile),)](
        rows, scale, shift, out, len(rows), eps, C=rows.shape[1], ROWS=tile, BLOCK=block
    )
    return out


@on_tensor_device
def layer_norm_backward(rows: Tensor, scale: Tensor, eps: float, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients w.r.t. rows, scale and shift; the statistics are recomputed."""
    grad_rows = torch.empty_like(rows)
    tile, block = _norm_tile(rows)
    sums = rows.new_empty(min(SLOTS, triton.cdiv(len(rows), tile)), 2, rows.shape[1], dtype=torch.float32)
    _norm_gradient_kernel[(len(sums),)](
        rows, scale, grad_out, grad_rows, sums, len(rows), eps, C=rows.shape[1], ROWS=tile, BLOCK=block
    )
    grad_scale, grad_shift = sums.sum(0).to(scale.dtype)
    return grad_rows, grad_scale, grad_shift


@on_tensor_device
def column_sums(rows: Tensor) -> Tensor:
    """Sum over rows (N, C), contiguous, in single precision: (C,)."""
    count, columns = rows.shape
    sums = rows.new_empty(min(SLOTS // 2, triton.cdiv(count, 16)), columns, dtype=torch.float32)
    _column_sums_kernel[(len(sums), triton.cdiv(columns, 256))](rows, sums, count, columns, ROWS=16, BLOCK=256)
    return sums.sum(0)


def _norm_tile(rows: Tensor) -> tuple[int, int]:
    """Rows and channels of a tile of about 2048 values."""
    block = triton.next_power_of_2(rows.shape[1])
    return max(1, 2048 // block), block
