"""Depth-wise filters of token grids, with or without a norm, max pooling, and the patch convolution.

On a GPU Triton kernels pool and norm in one pass (`triton/pool.py`). PyTorch's backward of a depth-wise Conv3d is slow on
CPUs; here the same sums are computed by faster functions: the gradient w.r.t. the input is a depth-wise convolution of the
(zero-spread) gradient with the flipped filter, and the gradient w.r.t. the filter is, for each temporal tap, that of a 2D
depth-wise convolution. docs/performance.md has the times.
"""

# B batch, N = c + T*H*W tokens (class token first), P tensors pooled together, h heads, d channels of a head,
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
from mvit_video.model.ops.convolution import Conv3d, depthwise_conv
from mvit_video.model.ops.linear import linear_chunks
from mvit_video.model.ops.norm import norm_rows, norm_rows_backward
from mvit_video.model.ops.operators import differentiable_grad, operator, pack_grads, register_autograd, unpack_grads

Pool = tuple[Any, Any]  # a depth-wise filter shared by all heads, and the norm after it


def project_and_pool(
    x: Tensor, thw: Grid, layer: nn.Module, pools: Sequence[Pool], num_heads: int, value_filter: Any = None
) -> list[Heads]:
    """The parts of layer(x), such as q, k and v, split into heads, pooled and normed: x (B, N, C).

    All heads of a part share its filter; class tokens are only normed. A part without a filter is returned unchanged.
    `value_filter` is a depth-wise filter with weights per channel and head: its output for the last part, before that is
    pooled, is returned as an additional last item.
    """
    pooled: list[Heads] = []
    for parts in linear_chunks(x, layer, len(pools)):
        parts = parts.unflatten(-1, (num_heads, -1))  # (B, N, P, h, d)
        pooled += _pool_parts(parts, thw, pools[len(pooled) : len(pooled) + parts.shape[2]])
        last = parts[:, :, -1]
    return pooled if value_filter is None else [*pooled, _filter_part(last, thw, value_filter)]


def _pool_parts(x: Tensor, thw: Grid, pools: Sequence[Pool]) -> list[Heads]:
    """P tensors of tokens x (B, N, P, h, d), each pooled and normed."""
    if not all(_can_fuse(*pool) for pool in pools) or len({conv.weight.shape for conv, _ in pools}) > 1:
        return [_pool_part(part, thw, *pool) for part, pool in zip(x.unbind(2), pools, strict=True)]
    strides = [_grid(conv.stride) for conv, _ in pools]
    parameters = [tensor for conv, norm in pools for tensor in (conv.weight, norm.weight, norm.bias)]
    if device.must_decompose():
        outs = _formula(pools[0][1].eps, thw, strides, x, *parameters)
    else:
        save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *parameters))
        outs = _pool_norms(x, parameters, pools[0][1].eps, thw, [step for stride in strides for step in stride], save)
    each = len(outs) // len(pools)  # class tokens, grid, and what is saved for backward
    firsts = range(0, len(outs), each)
    return [Heads(outs[at], outs[at + 1], _pooled_size(thw, by)) for at, by in zip(firsts, strides, strict=True)]


def _can_fuse(conv: Any, norm: Any) -> bool:
    """Whether these are a plain filter and norm without hooks, which one operator can compute."""
    return conv is not None and norm is not None and device.can_fuse((nn.LayerNorm,), norm) and _is_depthwise(conv)


def _is_depthwise(conv: Any) -> bool:
    """Whether this is a plain depth-wise filter without bias, with "same" padding."""
    if not device.can_fuse((Conv3d, nn.Conv3d), conv):
        return False
    middle = tuple(size // 2 for size in conv.kernel_size)
    depthwise = conv.bias is None and conv.groups == conv.out_channels == conv.in_channels
    return depthwise and conv.padding == middle and conv.dilation == (1, 1, 1) and conv.padding_mode == "zeros"


def _pool_part(x: Tensor, thw: Grid, conv: nn.Module | None, norm: nn.Module | None) -> Heads:
    """One tensor (B, N, h, d), by calling the filter and norm modules, with heads as samples."""
    cls, cells = _split_cls(x, thw)
    if conv is None or norm is None:
        return Heads(cls, cells, thw)
    samples = cells.transpose(1, 2).flatten(0, 1)  # (B·h, T·H·W, d)
    grid = conv(samples.unflatten(1, thw).permute(0, 4, 1, 2, 3))
    tokens = grid.permute(0, 2, 3, 4, 1).flatten(1, 3).unflatten(0, (cells.shape[0], cells.shape[2])).transpose(1, 2)
    normed = norm(torch.cat([cls, tokens], 1)).to(x.dtype)
    return Heads(normed[:, : cls.shape[1]], normed[:, cls.shape[1] :], _grid(grid.shape[2:]))


def _filter_part(x: Tensor, thw: Grid, conv: Any) -> Heads:
    """A depth-wise filter of all channels applied to the grid of x (B, N, h, d); class tokens are unchanged."""
    cls, cells = _split_cls(x, thw)
    if _is_depthwise(conv) and not device.must_decompose():
        grid = _filter_cells(cells.flatten(2), conv.weight, thw, conv.stride)
    else:
        grid = conv(_as_grid(cells, thw)).permute(0, 2, 3, 4, 1).flatten(1, 3).to(x.dtype)
    return Heads(cls, grid.unflatten(-1, cells.shape[2:]), _pooled_size(thw, conv.stride))


def _split_cls(x: Tensor, thw: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The class tokens and the grid of x (B, N, ...)."""
    cells = prod(thw)
    cls, grid = x.split_with_sizes([x.shape[1] - cells, cells], 1)
    return cls, grid


def _pooled_size(thw: Sequence[int], stride: Sequence[int]) -> Grid:
    return _grid((size - 1) // step + 1 for size, step in zip(thw, stride, strict=True))


def _fake_pool_norms(x, parameters, eps, thw, strides, save):
    outs, num_cls = [], x.shape[1] - prod(thw)
    for stride in _triples(strides):
        cells = x.new_empty(x.shape[0], prod(_pooled_size(thw, stride)), *x.shape[3:])
        outs += [x.new_empty(x.shape[0], num_cls, *x.shape[3:]), cells]
        if _saves_pooled(x, save):
            sums = parameters[1].new_empty(cells.shape[:-1].numel(), 1)
            outs += [torch.empty_like(cells), sums, torch.empty_like(sums)]
    return outs


def _saves_pooled(x: Tensor, save: bool) -> bool:
    """On a CPU recomputing the convolution would cost more than it saves."""
    return save and x.device.type == "cpu"


@operator(_fake_pool_norms)
def _pool_norms(
    x: Tensor, parameters: Sequence[Tensor], eps: float, thw: Sequence[int], strides: Sequence[int], save: bool
) -> list[Tensor]:
    """For each of P: class tokens and grid, and if saved the grid before its norm, its means and 1 / standard deviations.

    `parameters` are weight (d, 1, t, h, w), scale and shift of each tensor, `strides` three numbers of each.
    """
    kernels = _pool_kernels(x, parameters)
    if kernels:
        pairs = kernels.pool_norms(x, parameters, eps, tuple(thw), _triples(strides))
        return [tensor for pair in pairs for tensor in pair]
    outs: list[Tensor] = []
    for place, (part, stride) in enumerate(zip(x.unbind(2), _triples(strides), strict=True)):
        weight, scale, shift = parameters[3 * place : 3 * place + 3]
        cls, cells = _split_cls(part, thw)
        pooled = _pool(cells, weight, thw, stride).contiguous()
        outs.append(norm_rows(cls.flatten(0, -2), scale, shift, eps, x.dtype).view(cls.shape))
        grid, *statistics = torch.native_layer_norm(
            pooled.flatten(0, -2).to(scale.dtype), scale.shape, scale, shift, eps
        )
        outs.append(grid.to(x.dtype).view(pooled.shape))
        if _saves_pooled(x, save):
            outs += [pooled, *statistics]
    return outs


def _pool_kernels(x: Tensor, parameters: Sequence[Tensor]):
    """The Triton kernels if they support x and all these filters, else None."""
    kernels = device.kernels_for(x)
    return kernels if kernels and all(kernels.can_pool(weight) for weight in parameters[::3]) else None


def _fake_pool_norms_backward(gradients, x, parameters, saved, eps, thw, strides, needs_grad):
    weight, scale = parameters[:2]
    grad_norms = scale.new_empty(len(parameters) // 3, 2, scale.shape[0])
    return pack_grads([x.new_empty(x.shape), weight.new_empty(len(grad_norms), *weight.shape), grad_norms], needs_grad)


@operator(_fake_pool_norms_backward)
def _pool_norms_backward(
    gradients: Sequence[Tensor], x: Tensor, parameters: Sequence[Tensor], saved: Sequence[Tensor],
    eps: float, thw: Sequence[int], strides: Sequence[int], needs_grad: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    """Gradients w.r.t. x, the filters (P, d, 1, t, h, w), and scale and shift (P, 2, d), as far as needed.

    `gradients` are those w.r.t. class tokens and grid of each tensor; all filters have the same size.
    """
    kernels = _pool_kernels(x, parameters)
    if kernels:
        grads = kernels.pool_norms_backward(gradients, x, parameters, eps, tuple(thw), _triples(strides), needs_grad)
        return pack_grads(grads, needs_grad)
    grad_x, grads = x.new_empty(x.shape) if needs_grad[0] else None, []
    for place, (part, stride) in enumerate(zip(x.unbind(2), _triples(strides), strict=True)):
        own, grad_outs = parameters[3 * place : 3 * place + 3], gradients[2 * place : 2 * place + 2]
        saved_own = saved[3 * place : 3 * place + 3]
        grad_part, *grad_own = _pool_norm_backward(part, own, saved_own, eps, thw, stride, grad_outs, needs_grad)
        grads.append(grad_own)
        if grad_x is not None:
            target, num_cls = grad_x.select(2, place), grad_part[0].shape[1]
            target[:, :num_cls], target[:, num_cls:] = grad_part  # torch.cat(out=) may write nothing: PyTorch 2.13
    grad_filters, grad_norms = (
        _stack([part[kind] for part in grads]) if needed else None for kind, needed in enumerate(needs_grad[1:])
    )
    return pack_grads([grad_x, grad_filters, grad_norms], needs_grad)


def _pool_norm_backward(
    x: Tensor, parameters, saved: Sequence[Tensor], eps: float, thw, stride: Grid, grad_outs, needs_grad
) -> Any:
    """For one tensor (B, N, h, d): gradients w.r.t. class tokens and cells, filter, and scale and shift (2, d)."""
    weight, scale, shift = parameters
    cls, cells = _split_cls(x, thw)
    pooled, *statistics = saved or [_pool(cells, weight, thw, stride)]
    needs_x, needs_filter, needs_norm = needs_grad
    needs = [needs_x or needs_filter, needs_norm, needs_norm]
    grads_cls, grads_pooled = (  # each w.r.t. rows, scale and shift
        norm_rows_backward(part.flatten(0, -2), scale, shift, eps, grad_part.flatten(0, -2), needs, stats)
        for part, grad_part, stats in zip((cls, pooled), grad_outs, ((), statistics), strict=True)
    )
    grad_parts = grad_weight = grad_norms = None
    if grads_cls[0] is not None and grads_pooled[0] is not None:
        grad_grid = _as_grid(grads_pooled[0].view(pooled.shape), _pooled_size(thw, stride))
        filters, grid = _repeat_for_heads(weight, x), _as_grid(cells, thw)
        if needs_x:
            grad_cells = input_gradient(grad_grid, filters, stride, grid.shape).permute(0, 2, 3, 4, 1)
            grad_parts = grads_cls[0].view(cls.shape), grad_cells.reshape(cells.shape)
        if needs_filter:
            grad_heads = filter_gradient(grad_grid, grid, filters, stride).unflatten(0, (x.shape[2], -1))
            grad_weight = grad_heads.sum(0, dtype=weight.dtype)
    if needs_norm:
        pairs = zip(grads_cls[1:], grads_pooled[1:], strict=True)
        grad_norms = torch.stack([one + other for one, other in pairs if one is not None and other is not None])
    return grad_parts, grad_weight, grad_norms


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """As torch.stack; a view of a single tensor."""
    return torch.stack(list(tensors)) if len(tensors) > 1 else tensors[0].unsqueeze(0)


def _setup_context(ctx, inputs, output) -> None:
    x, parameters, ctx.eps, ctx.thw, ctx.strides, _ = inputs
    ctx.count, ctx.each = len(parameters), 3 * len(output) // len(parameters)
    saved = [tensor for place, tensor in enumerate(output) if place % ctx.each >= 2]
    ctx.mark_non_differentiable(*saved)
    ctx.set_materialize_grads(False)  # which would fill zeros for the saved ones
    ctx.shapes = [tensor.shape for place, tensor in enumerate(output) if place % ctx.each < 2]
    ctx.save_for_backward(x, *parameters, *saved)


def _backward(ctx, *gradients):
    (x, *rest), (_, needs_x, *needed) = ctx.saved_tensors, ctx.needs_input_grad
    parameters, saved, needs_parameters = rest[: ctx.count], rest[ctx.count :], needed[: ctx.count]
    needs_grad = [needs_x, *needs_parameters]
    given = [gradient for place, gradient in enumerate(gradients) if place % ctx.each < 2]
    grad_outs = [x.new_zeros(shape) if part is None else part for part, shape in zip(given, ctx.shapes, strict=True)]
    if torch.is_grad_enabled():
        formula = partial(_formula, ctx.eps, ctx.thw, _triples(ctx.strides))
        grads = differentiable_grad(formula, [x, *parameters], needs_grad, grad_outs)
    else:
        needs = [needs_x, any(needs_parameters[::3]), any(needs_parameters[1::3]) or any(needs_parameters[2::3])]
        grads = _pool_norms_backward(grad_outs, x, parameters, saved, ctx.eps, ctx.thw, ctx.strides, needs)
        grad_x, grad_filters, grad_norms = unpack_grads(grads, needs)
        grads = _split_grads(grad_x, grad_filters, grad_norms, parameters, needs_parameters)
    return *grads, None, None, None, None


def _split_grads(grad_x, grad_filters, grad_norms, parameters: Sequence[Tensor], needs_grad: Sequence[bool]) -> list:
    """Gradients w.r.t. x and each parameter, as views of the stacked ones; None where none is needed."""
    grads: list[Tensor | None] = [grad_x]
    for place, (parameter, needed) in enumerate(zip(parameters, needs_grad, strict=True)):
        part, kind = divmod(place, 3)
        if needed:
            gradient = grad_filters[part] if kind == 0 else grad_norms[part, kind - 1]
            grads.append(gradient.to(parameter.dtype))
        else:
            grads.append(None)
    return grads


def _formula(eps: float, thw: Sequence[int], strides: Sequence[Grid], x: Tensor, *parameters: Tensor) -> list[Tensor]:
    outs = []
    for place, (tokens, stride) in enumerate(zip(x.unbind(2), strides, strict=True)):
        weight, scale, shift = parameters[3 * place : 3 * place + 3]
        cls, cells = _split_cls(tokens, thw)
        for part in (cls, _pool(cells, weight, thw, stride)):
            outs.append(F.layer_norm(part.to(scale.dtype), scale.shape, scale, shift, eps).to(x.dtype))
    return outs


register_autograd(_pool_norms, _setup_context, _backward)


def _fake_filter_cells(cells, weight, thw, stride):
    return cells.new_empty(cells.shape[0], prod(_pooled_size(thw, stride)), cells.shape[2])


@operator(_fake_filter_cells)
def _filter_cells(cells: Tensor, weight: Tensor, thw: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Apply a depth-wise filter (C, 1, t, h, w) to cells (B, T·H·W, C): (B, T'·H'·W', C)."""
    return _filter_formula(thw, stride, cells, weight).contiguous()


def _fake_filter_cells_backward(gradient, cells, weight, thw, stride, needs_grad):
    return pack_grads([cells.new_empty(cells.shape), weight.new_empty(weight.shape)], needs_grad)


@operator(_fake_filter_cells_backward)
def _filter_cells_backward(
    gradient: Tensor,
    cells: Tensor,
    weight: Tensor,
    thw: Sequence[int],
    stride: Sequence[int],
    needs_grad: Sequence[bool],
) -> list[Tensor]:
    """Gradients w.r.t. the cells and the filter, as far as needed."""
    grad_grid = _as_grid(gradient.unsqueeze(2), _pooled_size(thw, stride))
    grid, filters, grad_cells, grad_weight = _as_grid(cells.unsqueeze(2), thw), weight.to(cells.dtype), None, None
    if needs_grad[0]:
        grad_in = input_gradient(grad_grid, filters, _grid(stride), grid.shape)
        grad_cells = grad_in.permute(0, 2, 3, 4, 1).reshape(cells.shape).contiguous()
    if needs_grad[1]:
        grad_weight = filter_gradient(grad_grid, grid, filters, _grid(stride)).to(weight.dtype).contiguous()
    return pack_grads([grad_cells, grad_weight], needs_grad)


def _filter_formula(thw: Sequence[int], stride: Sequence[int], cells: Tensor, weight: Tensor) -> Tensor:
    return _pool(cells.unsqueeze(2), weight, thw, _grid(stride)).flatten(2)


def _setup_filter(ctx, inputs, output) -> None:
    cells, weight, ctx.thw, ctx.stride = inputs
    ctx.save_for_backward(cells, weight)


def _grad_filter(ctx, gradient):
    needs_grad = ctx.needs_input_grad[1:3]
    if torch.is_grad_enabled():
        formula = partial(_filter_formula, ctx.thw, ctx.stride)
        grads = differentiable_grad(formula, ctx.saved_tensors, needs_grad, [gradient])
    else:
        inputs = (*ctx.saved_tensors, ctx.thw, ctx.stride)
        grads = unpack_grads(_filter_cells_backward(gradient, *inputs, needs_grad), needs_grad)
    return *grads, None, None


register_autograd(_filter_cells, _setup_filter, _grad_filter)


def _pool(cells: Tensor, weight: Tensor, thw: Sequence[int], stride: Grid) -> Tensor:
    """Convolve cells (B, T·H·W, h, d) with all heads as channels: (B, T'·H'·W', h, d)."""
    grid = _convolve(_as_grid(cells, thw), _repeat_for_heads(weight, cells), stride)
    return grid.permute(0, 2, 3, 4, 1).reshape(cells.shape[0], prod(grid.shape[2:]), *cells.shape[2:])


def _as_grid(cells: Tensor, thw: Sequence[int]) -> Tensor:
    """(B, T·H·W, h, d) -> (B, h·d, T, H, W), channels last in memory."""
    return cells.reshape(cells.shape[0], *thw, prod(cells.shape[2:])).permute(0, 4, 1, 2, 3)


def _repeat_for_heads(weight: Tensor, like: Tensor) -> Tensor:
    """The shared filter (d, 1, t, h, w) repeated for each head of `like` (B, N, h, d): (h·d, 1, t, h, w)."""
    weight, heads = weight.to(like.dtype), like.shape[2]
    return torch.cat([weight] * heads) if heads > 1 else weight


def _convolve(grid: Tensor, weight: Tensor, stride: Sequence[int]) -> Tensor:
    """Depth-wise 3D convolution with padding kernel // 2: grid (B, C, T, H, W), weight (C, 1, t, h, w), odd kernels."""
    return depthwise_conv(grid, weight, tuple(stride), _padding(weight))


def input_gradient(gradient: Tensor, weight: Tensor, stride: Grid, shape: torch.Size) -> Tensor:
    """Gradient w.r.t. the input: the zero-spread gradient convolved with the flipped filter."""
    if stride != (1, 1, 1):
        batch, channels, *sizes = shape
        spread = gradient.new_zeros(batch, *sizes, channels).permute(0, 4, 1, 2, 3)
        spread[:, :, :: stride[0], :: stride[1], :: stride[2]] = gradient
        gradient = spread
    return _convolve(gradient, weight.flip(2, 3, 4), (1, 1, 1))


def filter_gradient(gradient: Tensor, grid: Tensor, weight: Tensor, stride: Grid) -> Tensor:
    """Gradient w.r.t. the filter, one temporal tap at a time as a 2D convolution's.

    At tap a, output frame t reads input frame t·stride + a − padding. On CPUs half precision is upcast to fp32 first:
    oneDNN's bf16 kernel takes twice as long here.
    """
    if gradient.device.type == "cpu":
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        gradient, grid, weight = (part.to(dtype) for part in (gradient, grid, weight))
    gradient, grid = (part.permute(0, 2, 3, 4, 1) for part in (gradient, grid))  # (B, T, H, W, C)
    padding, taps = _padding(weight), []
    frames_in, frames_out, step = grid.shape[1], gradient.shape[1], stride[0]
    for tap, weight_2d in enumerate(weight.unbind(2)):
        shift = tap - padding[0]
        first = max(0, -(shift // step))
        last = min(frames_out, (frames_in - 1 - shift) // step + 1)
        if last <= first:
            taps.append(torch.zeros_like(weight_2d))
            continue
        inputs = _as_images(grid[:, first * step + shift : (last - 1) * step + shift + 1 : step])
        grad_out = _as_images(gradient[:, first:last])
        taps.append(_filter_gradient_2d(grad_out, inputs, weight_2d, stride[1:], padding[1:]))
    return torch.stack(taps, 2)


def _filter_gradient_2d(gradient: Tensor, images: Tensor, weight: Tensor, stride, padding) -> Tensor:
    mask = (False, True, False)  # of input, weight, bias
    arguments = (None, stride, padding, (1, 1), False, (0, 0), weight.shape[0], mask)
    return torch.ops.aten.convolution_backward(gradient, images, weight, *arguments)[1]


def max_pool(grid: Tensor, stride: Grid) -> Tensor:
    """Max pooling over overlapping windows of stride + 1 cells (1 where the stride is 1): the shortcut of a stage start.

    Without a temporal stride frames are pooled in 2D, whose backward pass supports channels-last memory.
    """
    kernel = tuple(step + 1 if step > 1 else 1 for step in stride)
    padding = tuple(length // 2 for length in kernel)
    if stride[0] > 1:
        return F.max_pool3d(grid, kernel, stride, padding)
    images = _as_images(grid.permute(0, 2, 3, 4, 1))
    pooled = F.max_pool2d(images, kernel[1:], stride[1:], padding[1:])
    return pooled.unflatten(0, (grid.shape[0], grid.shape[2])).transpose(1, 2)


def patch_conv(clips: Tensor, conv: Conv3d) -> Tensor:
    """A 3D convolution of clips (B, c, T, H, W) with few channels.

    With Triton it runs as a 2D convolution: GPUs have no fast 3D convolution of so few channels.
    """
    if device.skip_fusion() or not device.kernels_for(clips):
        return Conv3d.forward(conv, clips)
    return conv3d_as_2d(clips, conv)


def conv3d_as_2d(clips: Tensor, conv: nn.Conv3d) -> Tensor:
    """The same, as a 2D convolution over channels × temporal taps."""
    taps, step, padding = conv.kernel_size[0], conv.stride[0], conv.kernel_size[0] // 2
    clips = F.pad(clips.to(device.compute_dtype(clips)), (0, 0, 0, 0, padding, padding))
    frames = clips.unfold(2, taps, step)
    images = frames.permute(0, 2, 1, 5, 3, 4).flatten(2, 3)  # (B, T, c · taps, H, W)
    images = images.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    out = F.conv2d(images, conv.weight.flatten(1, 2), conv.bias, conv.stride[1:], conv.padding[1:])
    return out.unflatten(0, (clips.shape[0], frames.shape[2])).transpose(1, 2)


def _as_images(frames: Tensor) -> Tensor:
    """(B, T, H, W, C) -> (B·T, C, H, W), channels last in memory; a view if possible, else a copy."""
    return frames.flatten(0, 1).permute(0, 3, 1, 2)


def _triples(strides: Sequence[int]) -> list[Grid]:
    return [_grid(strides[place : place + 3]) for place in range(0, len(strides), 3)]


def _grid(values: Iterable[int]) -> Grid:
    t, h, w = values
    return (t, h, w)


def _padding(weight: Tensor) -> Grid:
    t, h, w = weight.shape[2:]
    return (t // 2, h // 2, w // 2)
