"""Depth-wise filters of token grids, alone or with a norm behind them, max pooling, and the filter that makes patches.

On a GPU Triton kernels pool and norm in one pass (`triton/pool.py`). PyTorch's own backward of a depth-wise Conv3d takes
a slow path on CPUs; here are the same sums, exactly, by faster functions: the gradient of the input is a depth-wise
convolution of the (zero-spread) gradient with the turned filter, and the gradient of the filter is, for each temporal
tap, that of a 2D depth-wise convolution. docs/performance.md has the times.
"""

# B batch, N = c + T*H*W tokens (class token first), P tensors that are pooled together, h heads, d channels of a head,
# C = h*d channels. Grids are (B, C, T, H, W) with channels last in memory.

from collections.abc import Iterable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvit_video.model.heads import Grid, Heads
from mvit_video.model.ops import device
from mvit_video.model.ops.linear import linear_in_parts
from mvit_video.model.ops.norm import norm_rows, norm_rows_backward
from mvit_video.model.ops.operators import autograd_rule, by_formula, in_place, operator, wanted_only

Pool = tuple[Any, Any]  # a depth-wise filter that all heads share, and the norm behind it


def project_and_pool(
    x: Tensor, thw: Grid, layer: nn.Module, pools: Sequence[Pool], num_heads: int, beside: Any = None
) -> list[Heads]:
    """The parts of layer(x), such as q, k and v, cut into heads, each through its filter and its norm: x (B, N, C).

    All heads of a part share its filter; class tokens are normed only. A part without a filter is left as it is. `beside` is a
    depth-wise filter with a weight for each channel of each head: what it makes of the last part before that is pooled is
    given behind the others.
    """
    found: list[Heads] = []
    for parts in linear_in_parts(x, layer, len(pools)):
        parts = parts.unflatten(-1, (num_heads, -1))  # (B, N, P, h, d)
        found += _pool_parts(parts, thw, pools[len(found) : len(found) + parts.shape[2]])
        last = parts[:, :, -1]
    return found if beside is None else [*found, _filter_part(last, thw, beside)]


def _pool_parts(x: Tensor, thw: Grid, pools: Sequence[Pool]) -> list[Heads]:
    """P tensors of tokens x (B, N, P, h, d), each through its filter and its norm."""
    if not all(_is_usual(*pool) for pool in pools) or len({conv.weight.shape for conv, _ in pools}) > 1:
        return [_pool_part(part, thw, *pool) for part, pool in zip(x.unbind(2), pools, strict=True)]
    strides = [_grid(conv.stride) for conv, _ in pools]
    parameters = [tensor for conv, norm in pools for tensor in (conv.weight, norm.weight, norm.bias)]
    if device.is_decomposed():
        found = _formula(pools[0][1].eps, thw, strides, x, *parameters)
    else:
        keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *parameters))
        found = _pool_norms(x, parameters, pools[0][1].eps, thw, [step for stride in strides for step in stride], keep)
    each = len(found) // len(pools)  # class tokens, grid, and what is kept for the backward pass
    firsts = range(0, len(found), each)
    return [Heads(found[at], found[at + 1], _pooled_size(thw, by)) for at, by in zip(firsts, strides, strict=True)]


def _is_usual(conv: Any, norm: Any) -> bool:
    """Whether these are a filter and a norm as a network makes them, with nothing of other people's on them."""
    return conv is not None and norm is not None and device.is_plain((nn.LayerNorm,), norm) and _is_depthwise(conv)


def _is_depthwise(conv: Any) -> bool:
    """Whether this is a depth-wise filter without a bias that keeps grids as large as they are where it is not strided."""
    if not device.is_plain((nn.Conv3d,), conv):
        return False
    middle = tuple(size // 2 for size in conv.kernel_size)
    depthwise = conv.bias is None and conv.groups == conv.out_channels == conv.in_channels
    return depthwise and conv.padding == middle and conv.dilation == (1, 1, 1) and conv.padding_mode == "zeros"


def _pool_part(x: Tensor, thw: Grid, conv: nn.Module | None, norm: nn.Module | None) -> Heads:
    """One tensor (B, N, h, d), by calls of the filter and the norm themselves, heads as samples."""
    cls, cells = x.split([x.shape[1] - prod(thw), prod(thw)], 1)
    if conv is None or norm is None:
        return Heads(cls, cells, thw)
    samples = cells.transpose(1, 2).flatten(0, 1)  # (B·h, T·H·W, d)
    grid = conv(samples.unflatten(1, thw).permute(0, 4, 1, 2, 3))
    tokens = grid.permute(0, 2, 3, 4, 1).flatten(1, 3).unflatten(0, (cells.shape[0], cells.shape[2])).transpose(1, 2)
    normed = norm(torch.cat([cls, tokens], 1)).to(x.dtype)
    return Heads(normed[:, : cls.shape[1]], normed[:, cls.shape[1] :], _grid(grid.shape[2:]))


def _filter_part(x: Tensor, thw: Grid, conv: Any) -> Heads:
    """What a depth-wise filter of all channels makes of the grid of x (B, N, h, d); class tokens are left as they are."""
    cls, cells = x.split([x.shape[1] - prod(thw), prod(thw)], 1)
    if _is_depthwise(conv) and not device.is_decomposed():
        grid = _filter_cells(cells.flatten(2), conv.weight, thw, conv.stride)
    else:
        grid = conv(_as_grid(cells, thw)).permute(0, 2, 3, 4, 1).flatten(1, 3).to(x.dtype)
    return Heads(cls, grid.unflatten(-1, cells.shape[2:]), _pooled_size(thw, conv.stride))


def _pooled_size(thw: Sequence[int], stride: Sequence[int]) -> Grid:
    return _grid((size - 1) // step + 1 for size, step in zip(thw, stride, strict=True))


def _fake_pool_norms(x, parameters, eps, thw, strides, keep):
    found, num_cls = [], x.shape[1] - prod(thw)
    for stride in _by_three(strides):
        cells = x.new_empty(x.shape[0], prod(_pooled_size(thw, stride)), *x.shape[3:])
        found += [x.new_empty(x.shape[0], num_cls, *x.shape[3:]), cells]
        if _keeps_pooled(x, keep):
            sums = parameters[1].new_empty(cells.shape[:-1].numel(), 1)
            found += [torch.empty_like(cells), sums, torch.empty_like(sums)]
    return found


def _keeps_pooled(x: Tensor, keep: bool) -> bool:
    """On a CPU to convolve again would cost more than it saves."""
    return keep and x.device.type == "cpu"


@operator(_fake_pool_norms)
def _pool_norms(
    x: Tensor, parameters: Sequence[Tensor], eps: float, thw: Sequence[int], strides: Sequence[int], keep: bool
) -> list[Tensor]:
    """Class tokens and grid, and where they are kept the grid before its norm, its means and 1 / deviations: of each of P.

    `parameters` are weight (d, 1, t, h, w), scale and shift of each tensor, `strides` three numbers of each.
    """
    kernels = _pool_kernels(x, parameters)
    if kernels:
        found = kernels.pool_norms(x, parameters, eps, tuple(thw), _by_three(strides))
        return [tensor for pair in found for tensor in pair]
    found, num_cls = [], x.shape[1] - prod(thw)
    for place, stride in enumerate(_by_three(strides)):
        weight, scale, shift = parameters[3 * place : 3 * place + 3]
        cls, pooled = x[:, :num_cls, place], _pool(x[:, num_cls:, place], weight, thw, stride).contiguous()
        found.append(norm_rows(cls.flatten(0, -2), scale, shift, eps, x.dtype).view(cls.shape))
        grid, *statistics = torch.native_layer_norm(
            pooled.flatten(0, -2).to(scale.dtype), scale.shape, scale, shift, eps
        )
        found.append(grid.to(x.dtype).view(pooled.shape))
        if _keeps_pooled(x, keep):
            found += [pooled, *statistics]
    return found


def _pool_kernels(x: Tensor, parameters: Sequence[Tensor]):
    """The Triton kernels where they can pool x by all these filters."""
    kernels = device.kernels_for(x)
    return kernels if kernels and all(kernels.can_pool(weight) for weight in parameters[::3]) else None


def _fake_pool_norms_backward(gradients, x, parameters, kept, eps, thw, strides, wanted):
    weight, scale = parameters[:2]
    of_norms = scale.new_empty(len(parameters) // 3, 2, scale.shape[0])
    return wanted_only([x.new_empty(x.shape), weight.new_empty(len(of_norms), *weight.shape), of_norms], wanted)


@operator(_fake_pool_norms_backward)
def _pool_norms_backward(
    gradients: Sequence[Tensor], x: Tensor, parameters: Sequence[Tensor], kept: Sequence[Tensor],
    eps: float, thw: Sequence[int], strides: Sequence[int], wanted: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    """Gradients of x, of the filters (P, d, 1, t, h, w), and of scale and shift (P, 2, d), those that are wanted.

    `gradients` are those of class tokens and grid of each tensor; all filters have one size.
    """
    kernels = _pool_kernels(x, parameters)
    if kernels:
        found = kernels.pool_norms_backward(gradients, x, parameters, eps, tuple(thw), _by_three(strides), wanted)
        return wanted_only(found, wanted)
    of_x, found, num_cls = x.new_empty(x.shape) if wanted[0] else None, [], x.shape[1] - prod(thw)
    for place, stride in enumerate(_by_three(strides)):
        given, back = parameters[3 * place : 3 * place + 3], gradients[2 * place : 2 * place + 2]
        of_part, *of_given = _pool_norm_backward(
            x[:, :, place], given, kept[3 * place : 3 * place + 3], eps, thw, stride, back, wanted
        )
        found.append(of_given)
        if of_x is not None:
            of_x[:, :num_cls, place], of_x[:, num_cls:, place] = of_part
    of_filters, of_norms = (
        torch.stack([part[which] for part in found]) if want else None for which, want in enumerate(wanted[1:])
    )
    return wanted_only([of_x, of_filters, of_norms], wanted)


def _pool_norm_backward(x: Tensor, given, kept: Sequence[Tensor], eps: float, thw, stride: Grid, back, wanted) -> Any:
    """Of one tensor (B, N, h, d): gradients of its class tokens and of its cells, and those of its three parameters."""
    weight, scale, shift = given
    cls, cells = x.split([x.shape[1] - prod(thw), prod(thw)], 1)
    pooled, *statistics = kept or [_pool(cells, weight, thw, stride)]
    of_x, of_filter, of_norm = wanted
    wants = [of_x or of_filter, of_norm, of_norm]
    back_cls, back_pooled = (  # of the rows, of scale and of shift
        norm_rows_backward(part.flatten(0, -2), scale, shift, eps, of_part.flatten(0, -2), wants, stats)
        for part, of_part, stats in zip((cls, pooled), back, ((), statistics), strict=True)
    )
    of_parts = of_weight = of_norms = None
    if back_cls[0] is not None and back_pooled[0] is not None:
        of_grid = _as_grid(back_pooled[0].view(pooled.shape), _pooled_size(thw, stride))
        filters, grid = _of_all_heads(weight, x), _as_grid(cells, thw)
        if of_x:
            of_cells = input_gradient(of_grid, filters, stride, grid.shape).permute(0, 2, 3, 4, 1)
            of_parts = back_cls[0].view(cls.shape), of_cells.reshape(cells.shape)
        if of_filter:
            of_heads = filter_gradient(of_grid, grid, filters, stride).unflatten(0, (x.shape[2], -1))
            of_weight = of_heads.sum(0, dtype=weight.dtype)
    if of_norm:
        of_norms = torch.stack([part for part in back_cls[1:] if part is not None])
        of_norms += torch.stack([part for part in back_pooled[1:] if part is not None])
    return of_parts, of_weight, of_norms


def _keep(ctx, inputs, output) -> None:
    x, parameters, ctx.eps, ctx.thw, ctx.strides, _ = inputs
    ctx.count, ctx.each = len(parameters), 3 * len(output) // len(parameters)
    kept = [tensor for place, tensor in enumerate(output) if place % ctx.each >= 2]
    ctx.mark_non_differentiable(*kept)
    ctx.save_for_backward(x, *parameters, *kept)


def _backward(ctx, *gradients):
    (x, *rest), (_, of_x, *needed) = ctx.saved_tensors, ctx.needs_input_grad
    parameters, kept, of_parameters = rest[: ctx.count], rest[ctx.count :], needed[: ctx.count]
    wanted = [of_x, *of_parameters]
    backs = [gradient for place, gradient in enumerate(gradients) if place % ctx.each < 2]
    if torch.is_grad_enabled():
        formula = partial(_formula, ctx.eps, ctx.thw, _by_three(ctx.strides))
        found = by_formula(formula, [x, *parameters], wanted, backs)
    else:
        wants = [of_x, any(of_parameters[::3]), any(of_parameters[1::3]) or any(of_parameters[2::3])]
        found = _pool_norms_backward(backs, x, parameters, kept, ctx.eps, ctx.thw, ctx.strides, wants)
        of_x, of_filters, of_norms = in_place(found, wants)
        found = _by_parameter(of_x, of_filters, of_norms, parameters, of_parameters)
    return *found, None, None, None, None


def _by_parameter(of_x, of_filters, of_norms, parameters: Sequence[Tensor], wanted: Sequence[bool]) -> list:
    """Of x and of each parameter, views of what was found for all of them; None where it is not wanted."""
    found: list[Tensor | None] = [of_x]
    for place, (parameter, want) in enumerate(zip(parameters, wanted, strict=True)):
        part, which = divmod(place, 3)
        if want:
            gradient = of_filters[part] if which == 0 else of_norms[part, which - 1]
            found.append(gradient.to(parameter.dtype))
        else:
            found.append(None)
    return found


def _formula(eps: float, thw: Sequence[int], strides: Sequence[Grid], x: Tensor, *parameters: Tensor) -> list[Tensor]:
    found, num_cls = [], x.shape[1] - prod(thw)
    for place, stride in enumerate(strides):
        weight, scale, shift = parameters[3 * place : 3 * place + 3]
        for part in (x[:, :num_cls, place], _pool(x[:, num_cls:, place], weight, thw, stride)):
            found.append(F.layer_norm(part.to(scale.dtype), scale.shape, scale, shift, eps).to(x.dtype))
    return found


autograd_rule(_pool_norms, _keep, _backward)


def _fake_filter_cells(cells, weight, thw, stride):
    return cells.new_empty(cells.shape[0], prod(_pooled_size(thw, stride)), cells.shape[2])


@operator(_fake_filter_cells)
def _filter_cells(cells: Tensor, weight: Tensor, thw: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Cells (B, T·H·W, C) through a depth-wise filter (C, 1, t, h, w): (B, T·H·W after it, C)."""
    return _filter_formula(thw, stride, cells, weight).contiguous()


def _fake_filter_cells_backward(gradient, cells, weight, thw, stride, wanted):
    return wanted_only([cells.new_empty(cells.shape), weight.new_empty(weight.shape)], wanted)


@operator(_fake_filter_cells_backward)
def _filter_cells_backward(
    gradient: Tensor, cells: Tensor, weight: Tensor, thw: Sequence[int], stride: Sequence[int], wanted: Sequence[bool]
) -> list[Tensor]:
    """Gradients of the cells and of the filter, those that are wanted."""
    of_grid = _as_grid(gradient.unsqueeze(2), _pooled_size(thw, stride))
    grid, same, of_cells, of_weight = _as_grid(cells.unsqueeze(2), thw), weight.to(cells.dtype), None, None
    if wanted[0]:
        back = input_gradient(of_grid, same, _grid(stride), grid.shape)
        of_cells = back.permute(0, 2, 3, 4, 1).reshape(cells.shape).contiguous()
    if wanted[1]:
        of_weight = filter_gradient(of_grid, grid, same, _grid(stride)).to(weight.dtype).contiguous()
    return wanted_only([of_cells, of_weight], wanted)


def _filter_formula(thw: Sequence[int], stride: Sequence[int], cells: Tensor, weight: Tensor) -> Tensor:
    return _pool(cells.unsqueeze(2), weight, thw, _grid(stride)).flatten(2)


def _keep_cells(ctx, inputs, output) -> None:
    cells, weight, ctx.thw, ctx.stride = inputs
    ctx.save_for_backward(cells, weight)


def _back_through_filter(ctx, gradient):
    wanted = ctx.needs_input_grad[1:3]
    if torch.is_grad_enabled():
        found = by_formula(partial(_filter_formula, ctx.thw, ctx.stride), ctx.saved_tensors, wanted, [gradient])
    else:
        given = (*ctx.saved_tensors, ctx.thw, ctx.stride)
        found = in_place(_filter_cells_backward(gradient, *given, wanted), wanted)
    return *found, None, None


autograd_rule(_filter_cells, _keep_cells, _back_through_filter)


def _pool(cells: Tensor, weight: Tensor, thw: Sequence[int], stride: Grid) -> Tensor:
    """Cells (B, T·H·W, h, d) of all heads as channels of one convolution: (B, T·H·W after it, h, d)."""
    grid = _convolve(_as_grid(cells, thw), _of_all_heads(weight, cells), stride)
    return grid.permute(0, 2, 3, 4, 1).flatten(1, 3).unflatten(-1, cells.shape[2:])


def _as_grid(cells: Tensor, thw: Sequence[int]) -> Tensor:
    """(B, T·H·W, h, d) -> (B, h·d, T, H, W), channels last in memory."""
    return cells.flatten(2).unflatten(1, tuple(thw)).permute(0, 4, 1, 2, 3)


def _of_all_heads(weight: Tensor, like: Tensor) -> Tensor:
    """The filter (d, 1, t, h, w) that the heads of `like` (B, N, h, d) share, for each of them: (h·d, 1, t, h, w)."""
    weight, heads = weight.to(like.dtype), like.shape[2]
    return weight.repeat(heads, 1, 1, 1, 1) if heads > 1 else weight


def _convolve(grid: Tensor, weight: Tensor, stride: Sequence[int]) -> Tensor:
    """Depth-wise 3D convolution with padding kernel // 2: grid (B, C, T, H, W), weight (C, 1, t, h, w), odd kernels."""
    return F.conv3d(grid, weight, None, tuple(stride), _padding(weight), groups=weight.shape[0])


def input_gradient(gradient: Tensor, weight: Tensor, stride: Grid, shape: torch.Size) -> Tensor:
    """Each input cell collects, through the turned filter, from the outputs that looked at it."""
    if stride != (1, 1, 1):
        batch, channels, *sizes = shape
        spread = gradient.new_zeros(batch, *sizes, channels).permute(0, 4, 1, 2, 3)
        spread[:, :, :: stride[0], :: stride[1], :: stride[2]] = gradient
        gradient = spread
    return _convolve(gradient, weight.flip(2, 3, 4), (1, 1, 1))


def filter_gradient(gradient: Tensor, grid: Tensor, weight: Tensor, stride: Grid) -> Tensor:
    """For temporal tap a, output frame t looked at input frame t·stride + a − padding: pair these and go on in 2D.

    On CPUs half precision is widened first: oneDNN takes twice as long over bf16 here.
    """
    if gradient.device.type == "cpu":
        gradient, grid, weight = (widened(part) for part in (gradient, grid, weight))
    padding, taps = _padding(weight), []
    frames_in, frames_out, step = grid.shape[2], gradient.shape[2], stride[0]
    for tap in range(weight.shape[2]):
        shift = tap - padding[0]
        first = max(0, -(shift // step))
        last = min(frames_out, (frames_in - 1 - shift) // step + 1)
        if last <= first:
            taps.append(torch.zeros_like(weight[:, :, tap]))
            continue
        seen = _as_pictures(grid[:, :, first * step + shift : (last - 1) * step + shift + 1 : step])
        back = _as_pictures(gradient[:, :, first:last])
        taps.append(_filter_gradient_2d(back, seen, weight[:, :, tap], stride[1:], padding[1:]))
    return torch.stack(taps, 2)


def widened(x: Tensor) -> Tensor:
    """x in single precision at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _filter_gradient_2d(gradient: Tensor, pictures: Tensor, weight: Tensor, stride, padding) -> Tensor:
    mask = (False, True, False)  # of input, weight, bias
    arguments = (None, stride, padding, (1, 1), False, (0, 0), weight.shape[0], mask)
    return torch.ops.aten.convolution_backward(gradient, pictures, weight, *arguments)[1]


def max_pool(grid: Tensor, stride: Grid) -> Tensor:
    """Maximum over windows of stride + 1 cells (1 where the stride is 1) that overlap: the shortcut of a stage start.

    Where time is not strided the images are pooled in 2D, which has a backward pass for channels-last memory.
    """
    kernel = tuple(step + 1 if step > 1 else 1 for step in stride)
    padding = tuple(length // 2 for length in kernel)
    if stride[0] > 1:
        return F.max_pool3d(grid, kernel, stride, padding)
    pictures = F.max_pool2d(_as_pictures(grid), kernel[1:], stride[1:], padding[1:])
    return pictures.unflatten(0, (grid.shape[0], grid.shape[2])).transpose(1, 2)


def patch_conv(clips: Tensor, conv: nn.Conv3d) -> Tensor:
    """A 3D convolution of clips (B, c, T, H, W) with few channels.

    Where Triton runs, the filter's taps in time become channels of images: GPUs lack a fast 3D convolution of so few.
    """
    if device.is_fused_anyway() or not device.kernels_for(clips):
        return nn.Conv3d.forward(conv, clips)
    return conv_of_pictures(clips, conv)


def conv_of_pictures(clips: Tensor, conv: nn.Conv3d) -> Tensor:
    """The same as a 2D convolution over channels × taps in time."""
    taps, step, padding = conv.kernel_size[0], conv.stride[0], conv.kernel_size[0] // 2
    clips = F.pad(clips.to(device.compute_dtype(clips)), (0, 0, 0, 0, padding, padding))
    frames = clips.unfold(2, taps, step)
    pictures = frames.permute(0, 2, 1, 5, 3, 4).flatten(2, 3)  # (B, T, c · taps, H, W)
    pictures = pictures.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    found = F.conv2d(pictures, conv.weight.flatten(1, 2), conv.bias, conv.stride[1:], conv.padding[1:])
    return found.unflatten(0, (clips.shape[0], frames.shape[2])).transpose(1, 2)


def _as_pictures(grid: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B·T, C, H, W), channels last in memory; a view where possible, else copied in that order."""
    return grid.permute(0, 2, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2)


def _by_three(strides: Sequence[int]) -> list[Grid]:
    return [_grid(strides[place : place + 3]) for place in range(0, len(strides), 3)]


def _grid(values: Iterable[int]) -> Grid:
    t, h, w = values
    return (t, h, w)


def _padding(weight: Tensor) -> Grid:
    t, h, w = weight.shape[2:]
    return (t // 2, h // 2, w // 2)
