"""LayerNorm whose output need not be saved: the layers after it save the norm's input and recompute the output.

The norm saves its input anyway; saving its output too would store the activation once more for every linear layer that
follows. `LayerNorm` records the inputs of each live output, and `norm_input` looks them up for the next operator.
"""

# N rows (tokens of all clips), C channels

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from mvit_video.model.ops import device
from mvit_video.model.ops.operators import differentiable_grad, operator, pack_grads, register_autograd, unpack_grads

MIN_ROWS, SLICE_BYTES = 512, 6 * 2**20  # of a slice, per thread


class NormInput(NamedTuple):
    """A norm's inputs: x (..., C), scale and shift (C,); and its output's version counter at that time."""

    x: Tensor
    scale: Tensor
    shift: Tensor
    eps: float
    version: int


_NORM_INPUTS = WeakTensorKeyDictionary()  # output of a `LayerNorm` -> NormInput, while the output is alive


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm over channels, computed in the dtype of its weights and returned in that of matrix products."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = device.compute_dtype(x)
        if device.skip_fusion():
            return super().forward(x).to(dtype)
        use_kernels = device.kernels_for(x) is not None
        inputs = (x, self.weight, self.bias, self.eps, dtype)
        out = _layer_norm(*inputs) if use_kernels else super().forward(x).to(dtype)
        if out.requires_grad:
            _NORM_INPUTS[out] = NormInput(x, self.weight, self.bias, self.eps, out._version)
        return out


def norm_input(x: Tensor) -> NormInput | None:
    """The inputs of the `LayerNorm` whose output x is; None if there is none, or x was modified in place since."""
    if not x.requires_grad or device.skip_fusion():
        return None
    inputs = _NORM_INPUTS.get(x)
    return inputs if inputs is not None and inputs.version == x._version else None


def row_slices(rows: Tensor, width: int) -> Iterator[slice]:
    """Slices of rows that fit into the cache on a CPU; all rows at once on a GPU.

    `width` is the number of channels of the widest intermediate tensor, in the dtype of the rows.
    """
    step = len(rows)
    if rows.device.type == "cpu":
        step = max(MIN_ROWS, SLICE_BYTES // (width * rows.element_size())) * torch.get_num_threads()
    return (slice(start, start + step) for start in range(0, len(rows), max(step, 1)))


def accumulator(*size: int, like: Tensor) -> Tensor:
    """Zeros of at least single precision: in half precision every slice would round the whole sum again."""
    return like.new_zeros(size, dtype=torch.promote_types(like.dtype, torch.float32))


def norm_rows(rows: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """The norm of rows (N, C), computed in the dtype of `scale`, returned in `dtype`."""
    kernels = device.kernels_for(rows)
    if kernels:
        return kernels.layer_norm(rows.contiguous(), scale, shift, eps, dtype)
    return F.layer_norm(rows.to(scale.dtype), scale.shape, scale, shift, eps).to(dtype)


def norm_rows_backward(
    rows: Tensor, scale: Tensor, shift: Tensor, eps: float, gradient: Tensor, needs_grad: Sequence[bool],
    statistics: Sequence[Tensor] = (),
) -> list[Tensor | None]:  # fmt: skip
    """Gradients w.r.t. rows (N, C), scale and shift, as far as needed.

    `statistics` are the mean and 1 / standard deviation of each row; recomputed if not given.
    """
    kernels = device.kernels_for(rows)
    if kernels:
        return list(kernels.layer_norm_backward(rows.contiguous(), scale, eps, gradient.contiguous()))
    wide, gradient = rows.to(scale.dtype), gradient.to(scale.dtype)
    mean, rstd = statistics or torch.native_layer_norm(wide, scale.shape, scale, shift, eps)[1:]
    arguments = (gradient, wide, scale.shape, mean, rstd, scale, shift, list(needs_grad))
    grad_rows, grad_scale, grad_shift = torch.ops.aten.native_layer_norm_backward(*arguments)
    return [grad_rows.to(rows.dtype) if needs_grad[0] else None, grad_scale, grad_shift]


def _fake_layer_norm(x, scale, shift, eps, dtype):
    return x.new_empty(x.shape, dtype=dtype)


@operator(_fake_layer_norm)
def _layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    return norm_rows(x.reshape(-1, x.shape[-1]), scale, shift, eps, dtype).view(x.shape)


def _fake_layer_norm_backward(gradient, x, scale, shift, eps, needs_grad):
    return pack_grads([part.new_empty(part.shape) for part in (x, scale, shift)], needs_grad)


@operator(_fake_layer_norm_backward)
def _layer_norm_backward(
    gradient: Tensor, x: Tensor, scale: Tensor, shift: Tensor, eps: float, needs_grad: Sequence[bool]
) -> list[Tensor]:
    rows, grad_out = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (x, gradient))
    grad_x, grad_scale, grad_shift = norm_rows_backward(rows, scale, shift, eps, grad_out, needs_grad)
    grads = [None if grad_x is None else grad_x.view(x.shape), grad_scale, grad_shift]
    return pack_grads(grads, needs_grad)


def _setup_context(ctx, inputs, output) -> None:
    x, scale, shift, ctx.eps, ctx.dtype = inputs
    ctx.save_for_backward(x, scale, shift)


def _backward(ctx, gradient):
    inputs, needs_grad = ctx.saved_tensors, ctx.needs_input_grad[1:4]
    if torch.is_grad_enabled():
        formula = partial(norm_formula, eps=ctx.eps, dtype=ctx.dtype)
        return *differentiable_grad(formula, inputs, needs_grad, [gradient]), None, None
    return *unpack_grads(_layer_norm_backward(gradient, *inputs, ctx.eps, needs_grad), needs_grad), None, None


def norm_formula(x: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """The norm in plain operations."""
    return F.layer_norm(x.to(scale.dtype), scale.shape, scale, shift, eps).to(dtype)


register_autograd(_layer_norm, _setup_context, _backward)
