"""Depth-wise pooling of tokens and its norm in one pass.

PyTorch's depth-wise 3D convolution is slow on GPUs, above all in backward, and needs channels first. Here tokens are read
where the linear layer wrote them, convolved, normed in single precision and written once; the backward pass recomputes the
convolution.
"""

# B batch, N = c + T*H*W tokens, h heads, d channels of a head; TO/HO/WO the pooled grid; z = conv(x), y = norm(z).
# A tile is up to BLOCK_W cells of one row of the grid (or the class token) of one head.

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from mvit_video.model.ops.triton.device import on_tensor_device
from mvit_video.model.ops.triton.norm import SLOTS, norm_backward, standardise

Grid = tuple[int, int, int]
SIZES = ("T", "H", "W", "TO", "HO", "WO", "heads", "tiles")  # not specialised: one kernel for all sizes


@triton.jit
def _tile_position(tile, TO, HO, WO, heads, CLS: tl.constexpr, BLOCK_W: tl.constexpr):
    """Batch, head, frame, row and first column of a tile, and whether it is the class token (the last tile of its clip)."""
    blocks = tl.cdiv(WO, BLOCK_W)
    per_clip = TO * HO * blocks + CLS
    head, rest = tile % heads, tile // heads
    index, batch = rest % per_clip, rest // per_clip
    is_cls = index == TO * HO * blocks
    t = index // (HO * blocks)
    h = (index // blocks) % HO
    return batch.to(tl.int64), head, t, h, (index % blocks) * BLOCK_W, is_cls


@triton.jit
def _convolve(
    x, weight, t_out, h_out, w_out, c, c_ok, T, H, W, row, D: tl.constexpr,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """z at (t_out, h_out, w_out): (BLOCK_W, BLOCK_C) float32. `x` points at the first cell, weight is (taps, d)."""
    z = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    for row_of_taps in range(KT * KH):  # not unrolled: registers would spill
        t = t_out * ST + row_of_taps // KH - KT // 2
        h = h_out * SH + row_of_taps % KH - KH // 2
        width = tl.where((t >= 0) & (t < T) & (h >= 0) & (h < H), W, 0)
        for dw in tl.static_range(KW):
            w = w_out * SW + dw - KW // 2
            ok = ((w >= 0) & (w < width))[:, None] & c_ok[None, :]
            cells = tl.load(x + ((t * H + h) * W + w)[:, None] * row + c[None, :], mask=ok, other=0.0)
            taps = tl.load(weight + (row_of_taps * KW + dw) * D + c, mask=c_ok, other=0.0)
            z += cells.to(tl.float32) * taps.to(tl.float32)[None, :]
    return z


@triton.jit
def _pre_norm(
    x, weight, tile, x_batch, x_row, T, H, W, TO, HO, WO, heads, D: tl.constexpr,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    CLS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """z of a tile (the class token itself), its position, the cells' numbers among TO·HO·WO, and masks."""
    batch, head, t, h, first, is_cls = _tile_position(tile, TO, HO, WO, heads, CLS, BLOCK_W)
    c = tl.arange(0, BLOCK_C)
    w = first + tl.arange(0, BLOCK_W)
    c_ok = c < D
    x += batch * x_batch + head * D
    if is_cls:
        w_ok = tl.arange(0, BLOCK_W) == 0
        number = tl.zeros((BLOCK_W,), tl.int32)
        token = tl.load(x + number[:, None] * x_row + c[None, :], mask=w_ok[:, None] & c_ok[None, :], other=0.0)
        z = token.to(tl.float32)
    else:
        w_ok = w < WO
        number = (t * HO + h) * WO + w
        z = _convolve(
            x + CLS * x_row, weight, t, h, w, c, c_ok, T, H, W, x_row, D, KT, KH, KW, ST, SH, SW, BLOCK_W, BLOCK_C
        )  # fmt: skip
    return z, batch, head, number, is_cls, w_ok, c, c_ok


@triton.jit(do_not_specialize=SIZES)
def _pool_norm_kernel(
    x, weight, scale, shift, y_cls, y_grid, x_batch, x_row, T, H, W, TO, HO, WO, heads, eps, D: tl.constexpr,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    CLS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    z, batch, head, number, is_cls, w_ok, c, c_ok = _pre_norm(
        x, weight, tl.program_id(0), x_batch, x_row, T, H, W, TO, HO, WO, heads, D,
        KT, KH, KW, ST, SH, SW, CLS, BLOCK_W, BLOCK_C,
    )  # fmt: skip
    normed, _ = standardise(z, c_ok, eps, D)
    gain = tl.load(scale + c, mask=c_ok, other=0.0).to(tl.float32)
    offset = tl.load(shift + c, mask=c_ok, other=0.0).to(tl.float32)
    y = (normed * gain[None, :] + offset[None, :]).to(y_grid.dtype.element_ty)
    ok = w_ok[:, None] & c_ok[None, :]
    if is_cls:
        tl.store(y_cls + ((batch + number) * heads + head)[:, None] * D + c[None, :], y, mask=ok)
    else:
        tl.store(y_grid + ((batch * TO * HO * WO + number) * heads + head)[:, None] * D + c[None, :], y, mask=ok)


@triton.jit(do_not_specialize=SIZES)
def _norm_backward_kernel(
    x, weight, scale, grad_cls, grad_grid, grad_z, sums, sums_row, x_batch, x_row,
    cls_batch, cls_head, grid_batch, grid_row, grid_head, T, H, W, TO, HO, WO, heads, eps, tiles, D: tl.constexpr,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    CLS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradient w.r.t. z (for the class token, x), and each program's partial sums of those w.r.t. scale and shift."""
    tokens = CLS + TO * HO * WO
    c = tl.arange(0, BLOCK_C)
    gain = tl.load(scale + c, mask=c < D, other=0.0).to(tl.float32)
    sum_scale = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    sum_shift = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        z, batch, head, number, is_cls, w_ok, c, c_ok = _pre_norm(
            x, weight, tile, x_batch, x_row, T, H, W, TO, HO, WO, heads, D,
            KT, KH, KW, ST, SH, SW, CLS, BLOCK_W, BLOCK_C,
        )  # fmt: skip
        normed, rstd = standardise(z, c_ok, eps, D)
        ok = w_ok[:, None] & c_ok[None, :]
        if is_cls:
            grad = tl.load(
                grad_cls + batch * cls_batch + head * cls_head + number[:, None] + c[None, :], mask=ok, other=0.0
            )
        else:
            start = grad_grid + batch * grid_batch + head * grid_head
            grad = tl.load(start + number[:, None] * grid_row + c[None, :], mask=ok, other=0.0)
            number += CLS
        grad = grad.to(tl.float32)
        sum_scale += grad * normed
        sum_shift += grad
        grad = norm_backward(grad, normed, rstd, gain, D)
        out = grad_z + ((batch * tokens + number) * heads + head)[:, None] * D + c[None, :]
        tl.store(out, grad.to(grad_z.dtype.element_ty), mask=ok)
    sums += tl.program_id(0) * sums_row + c
    tl.store(sums, tl.sum(sum_scale, 0), mask=c < D)
    tl.store(sums + D, tl.sum(sum_shift, 0), mask=c < D)


@triton.jit(do_not_specialize=SIZES)
def _input_gradient_kernel(
    grad_z, weight, grad_x, grad_x_batch, grad_x_row, T, H, W, TO, HO, WO, heads, D: tl.constexpr,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    CLS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradient w.r.t. x: each cell gathers from the outputs that read it; a class token's gradient is copied."""
    batch, head, t, h, first, is_cls = _tile_position(tl.program_id(0), T, H, W, heads, CLS, BLOCK_W)
    c = tl.arange(0, BLOCK_C)
    c_ok = c < D
    row = heads * D
    grad_z += batch * (CLS + TO * HO * WO) * row + head * D
    grad_x += batch * grad_x_batch + head * D
    total = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    if is_cls:
        w_ok = tl.arange(0, BLOCK_W) == 0
        number = tl.zeros((BLOCK_W,), tl.int32)
        total += tl.load(grad_z + number[:, None] * row + c[None, :], mask=w_ok[:, None] & c_ok[None, :], other=0.0)
    else:
        w = first + tl.arange(0, BLOCK_W)
        w_ok = w < W
        number = CLS + (t * H + h) * W + w
        for row_of_taps in range(KT * KH):
            t_up = t + KT // 2 - row_of_taps // KH
            h_up = h + KH // 2 - row_of_taps % KH
            t_ok = (t_up >= 0) & (t_up % ST == 0) & (t_up // ST < TO)
            if t_ok & (h_up >= 0) & (h_up % SH == 0) & (h_up // SH < HO):
                for dw in tl.static_range(KW):
                    w_up = w + KW // 2 - dw
                    ok = ((w_up >= 0) & (w_up % SW == 0) & (w_up // SW < WO))[:, None] & c_ok[None, :]
                    source = CLS + (t_up // ST * HO + h_up // SH) * WO + w_up // SW
                    grad = tl.load(grad_z + source[:, None] * row + c[None, :], mask=ok, other=0.0)
                    taps = tl.load(weight + (row_of_taps * KW + dw) * D + c, mask=c_ok, other=0.0)
                    total += grad.to(tl.float32) * taps.to(tl.float32)[None, :]
    out = grad_x + number[:, None] * grad_x_row + c[None, :]
    tl.store(out, total.to(grad_x.dtype.element_ty), mask=w_ok[:, None] & c_ok[None, :])


@triton.jit(do_not_specialize=SIZES)
def _filter_gradient_kernel(
    x, grad_z, sums, sums_row, x_batch, x_row, T, H, W, TO, HO, WO, heads, tiles, D: tl.constexpr,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    CLS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Partial sums of the gradient w.r.t. the three taps (dt, dh, ·): one row (d, taps) of `sums` per program."""
    dt, dh = tl.program_id(1) // KH, tl.program_id(1) % KH
    c = tl.arange(0, BLOCK_C)
    c_ok = c < D
    left = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    middle = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    right = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        batch, head, t_out, h_out, first, _ = _tile_position(tile, TO, HO, WO, heads, 0, BLOCK_W)
        w_out = first + tl.arange(0, BLOCK_W)
        t, h, w = t_out * ST + dt - KT // 2, h_out * SH + dh - KH // 2, w_out * SW
        width = tl.where((t >= 0) & (t < T) & (h >= 0) & (h < H), W, 0)
        number = batch * (CLS + TO * HO * WO) + CLS + (t_out * HO + h_out) * WO + w_out
        ok = (w_out < WO)[:, None] & c_ok[None, :]
        grad = tl.load(grad_z + (number * heads + head)[:, None] * D + c[None, :], mask=ok, other=0.0).to(tl.float32)
        cells = x + batch * x_batch + head * D + (CLS + (t * H + h) * W + w)[:, None] * x_row + c[None, :]
        middle += grad * tl.load(cells, mask=ok & (w < width)[:, None], other=0.0).to(tl.float32)
        left += grad * tl.load(cells - x_row, mask=ok & ((w >= 1) & (w <= width))[:, None], other=0.0).to(tl.float32)
        right += grad * tl.load(cells + x_row, mask=ok & (w + 1 < width)[:, None], other=0.0).to(tl.float32)
    out = sums + tl.program_id(0) * sums_row + c * (KT * KH * KW) + (dt * KH + dh) * KW
    tl.store(out, tl.sum(left, 0), mask=c_ok)
    tl.store(out + 1, tl.sum(middle, 0), mask=c_ok)
    tl.store(out + 2, tl.sum(right, 0), mask=c_ok)


def can_pool(weight: Tensor) -> bool:
    """Whether the kernels support a filter: 3 cells wide, heads of up to 256 channels."""
    return weight.shape[4] == 3 and weight.shape[0] <= 256


def pool_norms(
    x: Tensor, parameters: Sequence[Tensor], eps: float, thw: Sequence[int], strides: Sequence[Sequence[int]]
) -> list[tuple[Tensor, Tensor]]:
    """For each of P tensors x (B, N, P, h, d): norm(x) of its class tokens (B, c, h, d), norm(conv(x)) of its grid.

    `parameters` are the shared weight (d, 1, t, h, 3), scale and shift of each. The c = 0 or 1 class tokens are those
    beyond `thw`.
    """
    return _pool_norms(_dense_rows(x), parameters, eps, tuple(thw), strides)


def pool_norms_backward(
    gradients: Sequence[Tensor], x: Tensor, parameters: Sequence[Tensor], eps: float, thw: Sequence[int],
    strides: Sequence[Sequence[int]], needs_grad: Sequence[bool],
) -> list[Tensor | None]:  # fmt: skip
    """Gradients w.r.t. x, the filters (P, d, 1, t, h, 3), and scale and shift (P, 2, d), the last two in single precision.

    `gradients` are those w.r.t. class tokens and grid of each tensor. The first two are None unless needed.
    """
    return _pool_norms_backward(_dense_rows(x), parameters, eps, tuple(thw), strides, gradients, needs_grad)


def _dense_rows(x: Tensor) -> Tensor:
    """x (B, N, P, h, d) with the heads of a token contiguous."""
    return x if x.stride()[3:] == (x.shape[4], 1) else x.contiguous()


def _taps(weight: Tensor) -> Tensor:
    """(d, 1, t, h, w) -> (taps, d)."""
    return weight.flatten(1).t().contiguous()


@on_tensor_device
def _pool_norms(x: Tensor, parameters: Sequence[Tensor], eps: float, thw, strides) -> list[tuple[Tensor, Tensor]]:
    outs: list[tuple[Tensor, Tensor]] = []
    for place, stride in enumerate(strides):
        weight, scale, shift = parameters[3 * place : 3 * place + 3]
        part, plan = x[:, :, place], _plan(x.shape, weight.shape[2:], thw, stride)
        cls, grid = (x.new_empty(x.shape[0], count, *x.shape[3:]) for count in (plan.num_cls, plan.cells_out))
        _pool_norm_kernel[(plan.tiles_out,)](
            part,
            _taps(weight),
            scale,
            shift,
            cls,
            grid,
            part.stride(0),
            part.stride(1),
            *plan.sizes,
            eps,
            **plan.constants,
        )
        outs.append((cls, grid))
    return outs


@on_tensor_device
def _pool_norms_backward(
    x, parameters, eps: float, thw, strides, gradients: Sequence[Tensor], needs_grad: Sequence[bool]
):
    parts, channels = len(strides), x.shape[4]
    taps = [_taps(weight) for weight in parameters[::3]]
    grad_x = x.new_empty(x.shape) if needs_grad[0] else None
    norm_sums = x.new_empty(SLOTS, parts, 2, channels, dtype=torch.float32)
    filter_sums = None
    if needs_grad[1]:
        filter_sums = x.new_empty(SLOTS // 8, parts, channels, len(taps[0]), dtype=torch.float32)
    for place, stride in enumerate(strides):
        weight, scale = parameters[3 * place : 3 * place + 2]
        _pool_norm_backward(
            _plan(x.shape, weight.shape[2:], thw, stride), x[:, :, place], taps[place], scale, eps,
            gradients[2 * place], gradients[2 * place + 1], None if grad_x is None else grad_x[:, :, place],
            norm_sums[:, place], None if filter_sums is None else filter_sums[:, place],
        )  # fmt: skip
    grad_filters = None if filter_sums is None else filter_sums.sum(0).view(parts, *parameters[0].shape)
    return [grad_x, grad_filters, norm_sums.sum(0)]


def _pool_norm_backward(
    plan: "_Plan", x: Tensor, taps: Tensor, scale: Tensor, eps: float, grad_cls: Tensor, grad_grid: Tensor,
    grad_x: Tensor | None, norm_sums: Tensor, filter_sums: Tensor | None,
) -> None:  # fmt: skip
    """Fill the gradient w.r.t. x, and the programs' partial sums for scale and shift, and for the filter."""
    grad_cls, grad_grid = (part if part.stride(-1) == 1 else part.contiguous() for part in (grad_cls, grad_grid))
    grad_z = x.new_empty(x.shape[0], plan.num_cls + plan.cells_out, *x.shape[2:])
    strides = (x.stride(0), x.stride(1))
    _norm_backward_kernel[(len(norm_sums),)](
        x, taps, scale, grad_cls, grad_grid, grad_z, norm_sums, norm_sums.stride(0), *strides,
        grad_cls.stride(0), grad_cls.stride(2), *grad_grid.stride()[:3], *plan.sizes, eps, plan.tiles_out, **plan.constants,
    )  # fmt: skip
    if grad_x is not None:
        _input_gradient_kernel[(plan.tiles_in,)](
            grad_z, taps, grad_x, grad_x.stride(0), grad_x.stride(1), *plan.sizes, **plan.constants_in
        )
    if filter_sums is not None:
        _filter_gradient_kernel[(len(filter_sums), len(taps) // 3)](
            x, grad_z, filter_sums, filter_sums.stride(0), *strides, *plan.sizes, plan.cell_tiles, **plan.constants
        )


class _Plan:
    """Sizes of one pooling of tokens (B, N, ·, h, d), and its tiles."""

    def __init__(self, shape: Sequence[int], kernel: Sequence[int], thw: Sequence[int], stride: Sequence[int]) -> None:
        batch, tokens, _, heads, channels = shape
        thw_out = tuple((size - 1) // step + 1 for size, step in zip(thw, stride, strict=True))
        self.num_cls, self.cells_out = tokens - prod(thw), prod(thw_out)
        self.sizes = (*thw, *thw_out, heads)
        self.rows = batch * heads
        constants = dict(D=channels, CLS=self.num_cls, BLOCK_C=triton.next_power_of_2(channels))
        constants |= zip(("KT", "KH", "KW", "ST", "SH", "SW"), (*kernel, *stride), strict=True)
        self.tiles_out, self.constants = self._tiles(thw_out, constants)
        self.tiles_in, self.constants_in = self._tiles(thw, constants)
        self.cell_tiles = self.tiles_out - self.rows * self.num_cls

    def _tiles(self, thw: Sequence[int], constants: dict[str, int]) -> tuple[int, dict[str, int]]:
        """The number of tiles of a grid, and the kernel's constants including their width."""
        width = min(16, triton.next_power_of_2(thw[2]))
        tiles = self.rows * (thw[0] * thw[1] * triton.cdiv(thw[2], width) + self.num_cls)
        return tiles, constants | dict(BLOCK_W=width)


_plan = lru_cache(maxsize=1024)(_Plan)  # a network uses only a few
