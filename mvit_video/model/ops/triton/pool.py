"""Depth-wise pooling of tokens with its norm in one pass.

PyTorch's depth-wise 3D convolution is slow on GPUs, most of all backwards, and reads tokens channels first. Here tokens
are read where the linear layer left them, convolved, normed in single precision and written once; the backward pass
makes the convolution again instead of keeping it.
"""

# B batch, N = c + T*H*W tokens, h heads, d channels of a head; TO/HO/WO the pooled grid; z convolved, y = norm(z).
# One program works on up to BLOCK_W cells of one row of the grid (or on the class token) and one head.

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from mvit_video.model.ops.triton.device import on_its_device
from mvit_video.model.ops.triton.norm import SLOTS, norm_back, standardised

Grid = tuple[int, int, int]
SIZES = ("T", "H", "W", "TO", "HO", "WO", "heads", "tiles")  # one kernel serves all of them


@triton.jit
def _place(tile, TO, HO, WO, heads, CLS: tl.constexpr, BLOCK_W: tl.constexpr):
    """Of a tile: batch, head, frame, row, first column, and whether it is a class token (the last tile of its clip)."""
    blocks = tl.cdiv(WO, BLOCK_W)
    per_clip = TO * HO * blocks + CLS
    head, rest = tile % heads, tile // heads
    place, batch = rest % per_clip, rest // per_clip
    is_cls = place == TO * HO * blocks
    t = place // (HO * blocks)
    h = (place // blocks) % HO
    return batch.to(tl.int64), head, t, h, (place % blocks) * BLOCK_W, is_cls


@triton.jit
def _convolve(
    x, weight, t_out, h_out, w_out, c, c_ok, T, H, W, row, D: tl.constexpr,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """z of the cells (t_out, h_out, w_out): (BLOCK_W, BLOCK_C) float32. `x` points at the first cell, weight is (taps, d)."""
    z = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    for row_of_taps in range(KT * KH):  # not unrolled: all taps at once would not fit into registers
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
def _unnormed(
    x, weight, tile, x_batch, x_row, T, H, W, TO, HO, WO, heads, D: tl.constexpr,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    CLS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """z of a tile, or the class token itself; with it the cell's number among TO·HO·WO, and which rows are real."""
    batch, head, t, h, first, is_cls = _place(tile, TO, HO, WO, heads, CLS, BLOCK_W)
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
    z, batch, head, number, is_cls, w_ok, c, c_ok = _unnormed(
        x, weight, tl.program_id(0), x_batch, x_row, T, H, W, TO, HO, WO, heads, D,
        KT, KH, KW, ST, SH, SW, CLS, BLOCK_W, BLOCK_C,
    )  # fmt: skip
    normed, _ = standardised(z, c_ok, eps, D)
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
    x, weight, scale, of_cls, of_grid, of_z, sums, sums_row, x_batch, x_row,
    cls_batch, cls_head, grid_batch, grid_row, grid_head, T, H, W, TO, HO, WO, heads, eps, tiles, D: tl.constexpr,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    CLS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradient of z (of the class token too, which has no filter), and each program's share of those of scale and shift."""
    tokens = CLS + TO * HO * WO
    c = tl.arange(0, BLOCK_C)
    gain = tl.load(scale + c, mask=c < D, other=0.0).to(tl.float32)
    sum_scale = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    sum_shift = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        z, batch, head, number, is_cls, w_ok, c, c_ok = _unnormed(
            x, weight, tile, x_batch, x_row, T, H, W, TO, HO, WO, heads, D,
            KT, KH, KW, ST, SH, SW, CLS, BLOCK_W, BLOCK_C,
        )  # fmt: skip
        normed, rstd = standardised(z, c_ok, eps, D)
        ok = w_ok[:, None] & c_ok[None, :]
        if is_cls:
            back = tl.load(
                of_cls + batch * cls_batch + head * cls_head + number[:, None] + c[None, :], mask=ok, other=0.0
            )
        else:
            start = of_grid + batch * grid_batch + head * grid_head
            back = tl.load(start + number[:, None] * grid_row + c[None, :], mask=ok, other=0.0)
            number += CLS
        back = back.to(tl.float32)
        sum_scale += back * normed
        sum_shift += back
        back = norm_back(back, normed, rstd, gain, D)
        out = of_z + ((batch * tokens + number) * heads + head)[:, None] * D + c[None, :]
        tl.store(out, back.to(of_z.dtype.element_ty), mask=ok)
    sums += tl.program_id(0) * sums_row + c
    tl.store(sums, tl.sum(sum_scale, 0), mask=c < D)
    tl.store(sums + D, tl.sum(sum_shift, 0), mask=c < D)


@triton.jit(do_not_specialize=SIZES)
def _input_gradient_kernel(
    of_z, weight, of_x, of_x_batch, of_x_row, T, H, W, TO, HO, WO, heads, D: tl.constexpr,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    CLS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Each input cell collects from the outputs that looked at it; a class token's gradient is handed on."""
    batch, head, t, h, first, is_cls = _place(tl.program_id(0), T, H, W, heads, CLS, BLOCK_W)
    c = tl.arange(0, BLOCK_C)
    c_ok = c < D
    row = heads * D
    of_z += batch * (CLS + TO * HO * WO) * row + head * D
    of_x += batch * of_x_batch + head * D
    total = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    if is_cls:
        w_ok = tl.arange(0, BLOCK_W) == 0
        number = tl.zeros((BLOCK_W,), tl.int32)
        total += tl.load(of_z + number[:, None] * row + c[None, :], mask=w_ok[:, None] & c_ok[None, :], other=0.0)
    else:
        w = first + tl.arange(0, BLOCK_W)
        w_ok = w < W
        number = CLS + (t * H + h) * W + w
        for row_of_taps in range(KT * KH):
            t_far = t + KT // 2 - row_of_taps // KH
            h_far = h + KH // 2 - row_of_taps % KH
            t_seen = (t_far >= 0) & (t_far % ST == 0) & (t_far // ST < TO)
            if t_seen & (h_far >= 0) & (h_far % SH == 0) & (h_far // SH < HO):
                for dw in tl.static_range(KW):
                    w_far = w + KW // 2 - dw
                    ok = ((w_far >= 0) & (w_far % SW == 0) & (w_far // SW < WO))[:, None] & c_ok[None, :]
                    seen = CLS + (t_far // ST * HO + h_far // SH) * WO + w_far // SW
                    back = tl.load(of_z + seen[:, None] * row + c[None, :], mask=ok, other=0.0)
                    taps = tl.load(weight + (row_of_taps * KW + dw) * D + c, mask=c_ok, other=0.0)
                    total += back.to(tl.float32) * taps.to(tl.float32)[None, :]
    out = of_x + number[:, None] * of_x_row + c[None, :]
    tl.store(out, total.to(of_x.dtype.element_ty), mask=w_ok[:, None] & c_ok[None, :])


@triton.jit(do_not_specialize=SIZES)
def _filter_gradient_kernel(
    x, of_z, sums, sums_row, x_batch, x_row, T, H, W, TO, HO, WO, heads, tiles, D: tl.constexpr,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    CLS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program's share of the gradient of the taps (dt, dh, ·), three of them: a row (d, taps) of `sums`."""
    dt, dh = tl.program_id(1) // KH, tl.program_id(1) % KH
    c = tl.arange(0, BLOCK_C)
    c_ok = c < D
    left = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    middle = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    right = tl.zeros((BLOCK_W, BLOCK_C), tl.float32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        batch, head, t_out, h_out, first, _ = _place(tile, TO, HO, WO, heads, 0, BLOCK_W)
        w_out = first + tl.arange(0, BLOCK_W)
        t, h, w = t_out * ST + dt - KT // 2, h_out * SH + dh - KH // 2, w_out * SW
        width = tl.where((t >= 0) & (t < T) & (h >= 0) & (h < H), W, 0)
        number = batch * (CLS + TO * HO * WO) + CLS + (t_out * HO + h_out) * WO + w_out
        ok = (w_out < WO)[:, None] & c_ok[None, :]
        back = tl.load(of_z + (number * heads + head)[:, None] * D + c[None, :], mask=ok, other=0.0).to(tl.float32)
        cells = x + batch * x_batch + head * D + (CLS + (t * H + h) * W + w)[:, None] * x_row + c[None, :]
        middle += back * tl.load(cells, mask=ok & (w < width)[:, None], other=0.0).to(tl.float32)
        left += back * tl.load(cells - x_row, mask=ok & ((w >= 1) & (w <= width))[:, None], other=0.0).to(tl.float32)
        right += back * tl.load(cells + x_row, mask=ok & (w + 1 < width)[:, None], other=0.0).to(tl.float32)
    out = sums + tl.program_id(0) * sums_row + c * (KT * KH * KW) + (dt * KH + dh) * KW
    tl.store(out, tl.sum(left, 0), mask=c_ok)
    tl.store(out + 1, tl.sum(middle, 0), mask=c_ok)
    tl.store(out + 2, tl.sum(right, 0), mask=c_ok)


def can_pool(weight: Tensor) -> bool:
    """Whether `pool_norm` takes such filters: 3 cells wide, heads of up to 256 channels."""
    return weight.shape[4] == 3 and weight.shape[0] <= 256


def pool_norms(
    x: Tensor, parameters: Sequence[Tensor], eps: float, thw: Sequence[int], strides: Sequence[Sequence[int]]
) -> list[tuple[Tensor, Tensor]]:
    """Of each of P tensors x (B, N, P, h, d): norm(x) of its class tokens (B, c, h, d), norm(convolve(x)) of its grid.

    `parameters` are weight (d, 1, t, h, 3), which the heads share, scale and shift of each; class tokens are those that
    `thw` does not account for, none or one.
    """
    return _pool_norms(_by_rows(x), parameters, eps, tuple(thw), strides)


def pool_norms_backward(
    gradients: Sequence[Tensor], x: Tensor, parameters: Sequence[Tensor], eps: float, thw: Sequence[int],
    strides: Sequence[Sequence[int]], wanted: Sequence[bool],
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of x, of the filters (P, d, 1, t, h, 3), and of scale and shift (P, 2, d), the last two in single precision.

    `gradients` are those of class tokens and grid of each tensor. What is not `wanted` of x and filters is None.
    """
    return _pool_norms_backward(_by_rows(x), parameters, eps, tuple(thw), strides, gradients, wanted)


def _by_rows(x: Tensor) -> Tensor:
    """x (B, N, P, h, d) with the heads of a token beside each other."""
    return x if x.stride()[3:] == (x.shape[4], 1) else x.contiguous()


def _taps(weight: Tensor) -> Tensor:
    """(d, 1, t, h, w) -> (taps, d)."""
    return weight.flatten(1).t().contiguous()


@on_its_device
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


@on_its_device
def _pool_norms_backward(x, parameters, eps: float, thw, strides, gradients: Sequence[Tensor], wanted: Sequence[bool]):
    parts, channels = len(strides), x.shape[4]
    taps = [_taps(weight) for weight in parameters[::3]]
    of_x = x.new_empty(x.shape) if wanted[0] else None
    norm_sums = x.new_empty(SLOTS, parts, 2, channels, dtype=torch.float32)
    filter_sums = None
    if wanted[1]:
        filter_sums = x.new_empty(SLOTS // 8, parts, channels, len(taps[0]), dtype=torch.float32)
    for place, stride in enumerate(strides):
        weight, scale = parameters[3 * place : 3 * place + 2]
        _pool_norm_backward(
            _plan(x.shape, weight.shape[2:], thw, stride), x[:, :, place], taps[place], scale, eps,
            gradients[2 * place], gradients[2 * place + 1], None if of_x is None else of_x[:, :, place],
            norm_sums[:, place], None if filter_sums is None else filter_sums[:, place],
        )  # fmt: skip
    of_filters = None if filter_sums is None else filter_sums.sum(0).view(parts, *parameters[0].shape)
    return [of_x, of_filters, norm_sums.sum(0)]


def _pool_norm_backward(
    plan: "_Plan", x: Tensor, taps: Tensor, scale: Tensor, eps: float, of_cls: Tensor, of_grid: Tensor,
    of_x: Tensor | None, norm_sums: Tensor, filter_sums: Tensor | None,
) -> None:  # fmt: skip
    """Fill the gradient of x, and what all programs together find for scale and shift, and for the filter."""
    of_cls, of_grid = (part if part.stride(-1) == 1 else part.contiguous() for part in (of_cls, of_grid))
    of_z = x.new_empty(x.shape[0], plan.num_cls + plan.cells_out, *x.shape[2:])
    strides = (x.stride(0), x.stride(1))
    _norm_backward_kernel[(len(norm_sums),)](
        x, taps, scale, of_cls, of_grid, of_z, norm_sums, norm_sums.stride(0), *strides,
        of_cls.stride(0), of_cls.stride(2), *of_grid.stride()[:3], *plan.sizes, eps, plan.tiles_out, **plan.constants,
    )  # fmt: skip
    if of_x is not None:
        _input_gradient_kernel[(plan.tiles_in,)](
            of_z, taps, of_x, of_x.stride(0), of_x.stride(1), *plan.sizes, **plan.constants_in
        )
    if filter_sums is not None:
        _filter_gradient_kernel[(len(filter_sums), len(taps) // 3)](
            x, of_z, filter_sums, filter_sums.stride(0), *strides, *plan.sizes, plan.cell_tiles, **plan.constants
        )


class _Plan:
    """Sizes of one pooling of tokens (B, N, ·, h, d), and how its cells are cut into tiles."""

    def __init__(self, shape: Sequence[int], kernel: Sequence[int], thw: Sequence[int], stride: Sequence[int]) -> None:
        batch, tokens, _, heads, channels = shape
        thw_out = tuple((size - 1) // step + 1 for size, step in zip(thw, stride, strict=True))
        self.num_cls, self.cells_out = tokens - prod(thw), prod(thw_out)
        self.sizes = (*thw, *thw_out, heads)
        self.rows = batch * heads
        constants = dict(D=channels, CLS=self.num_cls, BLOCK_C=triton.next_power_of_2(channels))
        constants |= zip(("KT", "KH", "KW", "ST", "SH", "SW"), (*kernel, *stride), strict=True)
        self.tiles_out, self.constants = self._cut(thw_out, constants)
        self.tiles_in, self.constants_in = self._cut(thw, constants)
        self.cell_tiles = self.tiles_out - self.rows * self.num_cls

    def _cut(self, thw: Sequence[int], constants: dict[str, int]) -> tuple[int, dict[str, int]]:
        """How many tiles a grid makes, and the kernel's constants with their width."""
        width = min(16, triton.next_power_of_2(thw[2]))
        tiles = self.rows * (thw[0] * thw[1] * triton.cdiv(thw[2], width) + self.num_cls)
        return tiles, constants | dict(BLOCK_W=width)


_plan = lru_cache(maxsize=1024)(_Plan)  # a network asks for the same few again and again
