"""LayerNorm whose output need not be kept: layers behind it keep what it was made from, and make it again.

A norm's input is kept by the norm itself, and its output would be kept a second time by each linear layer behind it.
`LayerNorm` notes what its output was made from while the output lives; `made_from` tells it to the next operator.
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
from mvit_video.model.ops.operators import autograd_rule, by_formula, in_place, operator, wanted_only

ROWS, BYTES = 512, 6 * 2**20  # of a slice and thread: rows at least, and bytes where rows are short


class NormInput(NamedTuple):
    """What a norm's output is made from: x (..., C), scale and shift (C,); and the output's version when it was made."""

    x: Tensor
    scale: Tensor
    shift: Tensor
    eps: float
    version: int


_NORM_INPUTS = WeakTensorKeyDictionary()  # the output of a `LayerNorm` -> its NormInput, while the output lives


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm over channels, computed in the type of its weights, given in that of matrix products."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = device.compute_dtype(x)
        if device.is_fused_anyway():
            return super().forward(x).to(dtype)
        by_kernels = device.kernels_for(x) is not None
        given = (x, self.weight, self.bias, self.eps, dtype)
        out = _layer_norm(*given) if by_kernels else super().forward(x).to(dtype)
        if out.requires_grad:
            _NORM_INPUTS[out] = NormInput(x, self.weight, self.bias, self.eps, out._version)
        return out


def made_from(x: Tensor) -> NormInput | None:
    """What x was made from where a `LayerNorm` has made it and nobody has changed it since."""
    if not x.requires_grad or device.is_fused_anyway():
        return None
    found = _NORM_INPUTS.get(x)
    return found if found is not None and found.version == x._version else None


def slices(rows: Tensor, width: int) -> Iterator[slice]:
    """All rows at once on a GPU, which hides its memory's latency otherwise; on a CPU as many as stay in the cache.

    `width` is the widest of the tensors that are worked on, in the type of the rows.
    """
    step = len(rows)
    if rows.device.type == "cpu":
        step = max(ROWS, BYTES // (width * rows.element_size())) * torch.get_num_threads()
    return (slice(start, start + step) for start in range(0, len(rows), max(step, 1)))


def zeros(*size: int, like: Tensor) -> Tensor:
    """Where a sum over slices starts: in single precision at least, or each slice would round the whole sum again."""
    return like.new_zeros(size, dtype=torch.promote_types(like.dtype, torch.float32))


def norm_rows(rows: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """The norm of rows (N, C), computed in the type of `scale`, in `dtype`."""
    kernels = device.kernels_for(rows)
    if kernels:
        return kernels.layer_norm(rows.contiguous(), scale, shift, eps, dtype)
    return F.layer_norm(rows.to(scale.dtype), scale.shape, scale, shift, eps).to(dtype)


def norm_rows_backward(
    rows: Tensor, scale: Tensor, shift: Tensor, eps: float, gradient: Tensor, wanted: Sequence[bool],
    statistics: Sequence[Tensor] = (),
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of rows (N, C), scale and shift, those that are wanted, from that of the output.

    `statistics` are mean and 1 / deviation of each row, made again where they are not given.
    """
    kernels = device.kernels_for(rows)
    if kernels:
        return list(kernels.layer_norm_backward(rows.contiguous(), scale, eps, gradient.contiguous()))
    given, gradient = rows.to(scale.dtype), gradient.to(scale.dtype)
    mean, rstd = statistics or torch.native_layer_norm(given, scale.shape, scale, shift, eps)[1:]
    arguments = (gradient, given, scale.shape, mean, rstd, scale, shift, list(wanted))
    of_rows, of_scale, of_shift = torch.ops.aten.native_layer_norm_backward(*arguments)
    return [of_rows.to(rows.dtype) if wanted[0] else None, of_scale, of_shift]


def _fake_layer_norm(x, scale, shift, eps, dtype):
    return x.new_empty(x.shape, dtype=dtype)


@operator(_fake_layer_norm)
def _layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    return norm_rows(x.reshape(-1, x.shape[-1]), scale, shift, eps, dtype).view(x.shape)


def _fake_layer_norm_backward(gradient, x, scale, shift, eps, wanted):
    return wanted_only([part.new_empty(part.shape) for part in (x, scale, shift)], wanted)


@operator(_fake_layer_norm_backward)
def _layer_norm_backward(
    gradient: Tensor, x: Tensor, scale: Tensor, shift: Tensor, eps: float, wanted: Sequence[bool]
) -> list[Tensor]:
    rows, back = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (x, gradient))
    of_x, of_scale, of_shift = norm_rows_backward(rows, scale, shift, eps, back, wanted)
    found = [None if of_x is None else of_x.view(x.shape), of_scale, of_shift]
    return wanted_only(found, wanted)


def _keep(ctx, inputs, output) -> None:
    x, scale, shift, ctx.eps, ctx.dtype = inputs
    ctx.save_for_backward(x, scale, shift)


def _backward(ctx, gradient):
    given, wanted = ctx.saved_tensors, ctx.needs_input_grad[1:4]
    if torch.is_grad_enabled():
        formula = partial(norm_formula, eps=ctx.eps, dtype=ctx.dtype)
        return *by_formula(formula, given, wanted, [gradient]), None, None
    return *in_place(_layer_norm_backward(gradient, *given, ctx.eps, wanted), wanted), None, None


def norm_formula(x: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """The norm in plain operations."""
    return F.layer_norm(x.to(scale.dtype), scale.shape, scale, shift, eps).to(dtype)


autograd_rule(_layer_norm, _keep, _backward)
