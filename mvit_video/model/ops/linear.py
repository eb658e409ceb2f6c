"""Linear layers and the MLP, with backward passes that save and compute no more than needed.

The same results as `F.linear` and `fc2(gelu(fc1(x)))`. If x is the output of a norm, the norm's input, which is saved
anyway, is saved instead of x; the MLP saves its hidden values before the GELU. Norm and GELU are recomputed in backward.
On a CPU rows are processed in slices that fit into the cache, so that wide intermediates never go to memory. Frozen
weights cost no gradient computation.
"""

# N rows (tokens of all clips), C channels of x, O channels of one output, K hidden channels

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvit_video.model.ops import device
from mvit_video.model.ops.matmul import add_mm, linear, mm
from mvit_video.model.ops.norm import accumulator, norm_formula, norm_input, norm_rows, row_slices
from mvit_video.model.ops.operators import differentiable_grad, operator, pack_grads, register_autograd, unpack_grads


class Linear(nn.Linear):
    """nn.Linear with a bias. After a `norm.LayerNorm` it saves no activation for backward."""

    def forward(self, x: Tensor) -> Tensor:
        if device.skip_fusion() or is_small(x, self.out_features):
            return super().forward(x)
        return _linear(*_autocast(x, self.weight, self.bias), 1, *_norm_args(x))[0]


def linear_chunks(x: Tensor, layer: Any, parts: int) -> Iterator[Tensor]:
    """layer(x) with its output channels split into parts, such as q, k and v: (..., C) -> (..., p, O), `parts` in all.

    On a GPU, or if they are small, all parts come in one tensor. On a CPU each is a tensor of its own (p = 1), computed
    lazily when no gradients are recorded.
    """
    if device.skip_fusion() or not device.can_fuse(_FUSIBLE, layer) or is_small(x, layer.out_features):
        yield layer(x).unflatten(-1, (parts, -1))
    elif x.device.type != "cpu":
        yield _linear(*_autocast(x, layer.weight, layer.bias), 1, *_norm_args(x))[0].unflatten(-1, (parts, -1))
    elif torch.is_grad_enabled():
        for part in _linear(*_autocast(x, layer.weight, layer.bias), parts, *_norm_args(x)):
            yield part.unsqueeze(-2)
    else:
        for weight, bias in zip(layer.weight.chunk(parts), layer.bias.chunk(parts), strict=True):
            yield _linear(*_autocast(x, weight, bias), 1, *_norm_args(x))[0].unsqueeze(-2)


def mlp(x: Tensor, fc1: Any, fc2: Any) -> Tensor:
    """fc2(gelu(fc1(x))): x (..., C) -> (..., O)."""
    if device.skip_fusion() or not device.can_fuse(_FUSIBLE, fc1, fc2) or is_small(x, fc1.out_features):
        return fc2(F.gelu(fc1(x)))
    inputs = _autocast(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    save = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    return _mlp(*inputs, save, *_norm_args(x))[0]


def is_small(x: Tensor, width: int) -> bool:
    """Whether a CPU takes longer to call an operator than to run plain layers on x (..., C) with outputs that wide.

    What operators save in memory is then less than a megabyte a layer.
    """
    return x.device.type == "cpu" and x.numel() // x.shape[-1] * width <= SMALL


SMALL = 2**17  # values
_FUSIBLE = (Linear, nn.Linear)


def _autocast(x: Tensor, *parameters: Tensor) -> list[Tensor]:
    dtype = device.compute_dtype(x)
    return [tensor.to(dtype) for tensor in (x, *parameters)]


def _norm_args(x: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, float]:
    norm = norm_input(x)
    return (None, None, None, 0.0) if norm is None else (norm.x, norm.scale, norm.shift, norm.eps)


class _LayerInput:
    """A layer's input as rows (N, C): saved, or recomputed from the input of the norm before it."""

    def __init__(
        self, x: Tensor | None, norm_x: Tensor | None, scale: Tensor | None, shift: Tensor | None, eps: float,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        saved = norm_x if x is None else x
        assert saved is not None
        self.rows, self.recomputed = saved.reshape(-1, saved.shape[-1]), x is None
        self._norm: Any = scale, shift, eps, dtype

    def __getitem__(self, place: slice) -> Tensor:
        return norm_rows(self.rows[place], *self._norm) if self.recomputed else self.rows[place]


def _fake_linear(x, weight, bias, parts, norm_x, scale, shift, eps):
    return [weight.new_empty(*x.shape[:-1], weight.shape[0] // parts) for _ in range(parts)]


@operator(_fake_linear)
def _linear(
    x: Tensor, weight: Tensor, bias: Tensor, parts: int,
    norm_x: Tensor | None, scale: Tensor | None, shift: Tensor | None, eps: float,
) -> list[Tensor]:  # fmt: skip
    """`parts` tensors (..., O); the norm's inputs are used only in backward."""
    if parts == 1:
        return [linear(x, weight, bias)]
    layers = zip(weight.chunk(parts), bias.chunk(parts), strict=True)
    return [linear(x, weight_part, bias_part) for weight_part, bias_part in layers]


def _fake_linear_backward(gradients, x, weight, norm_x, scale, shift, eps, needs_grad):
    grad_x = weight.new_empty(*gradients[0].shape[:-1], weight.shape[1])
    return pack_grads([grad_x, weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])], needs_grad)


@operator(_fake_linear_backward)
def _linear_backward(
    gradients: Sequence[Tensor], x: Tensor | None, weight: Tensor,
    norm_x: Tensor | None, scale: Tensor | None, shift: Tensor | None, eps: float, needs_grad: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    grad_outs = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]
    grads = []
    if needs_grad[0]:
        weights = weight.chunk(len(grad_outs))
        grad_x = mm(grad_outs[0], weights[0])
        for grad_out, part in zip(grad_outs[1:], weights[1:], strict=True):
            add_mm(grad_x, grad_out, part)
        grads.append(grad_x.view(*gradients[0].shape[:-1], weight.shape[1]))
    if needs_grad[1]:
        grads.append(_weight_grads(grad_outs, _LayerInput(x, norm_x, scale, shift, eps, weight.dtype)))
    if needs_grad[2]:
        sums = [column_sums(grad_out, weight.dtype) for grad_out in grad_outs]
        grads.append(torch.cat(sums) if len(sums) > 1 else sums[0])
    return grads


def _weight_grads(grad_outs: Sequence[Tensor], rows: _LayerInput) -> Tensor:
    """Gradient w.r.t. the weights of all parts, concatenated; in slices if the rows are recomputed."""
    if not rows.recomputed or rows.rows.device.type != "cpu":
        values = rows[:]
        grads = [mm(grad_out.t(), values) for grad_out in grad_outs]
        return torch.cat(grads) if len(grads) > 1 else grads[0]
    totals = accumulator(len(grad_outs), grad_outs[0].shape[1], rows.rows.shape[1], like=grad_outs[0])
    for place in row_slices(rows.rows, rows.rows.shape[1]):
        values = rows[place]
        for grad_out, total in zip(grad_outs, totals, strict=True):
            add_mm(total, grad_out[place].t(), values)
    return totals.flatten(0, 1).to(grad_outs[0].dtype)


def column_sums(grad_out: Tensor, dtype: torch.dtype) -> Tensor:
    """Gradient w.r.t. a bias: the sum over rows (N, O)."""
    kernels = device.kernels_for(grad_out)
    return kernels.column_sums(grad_out.contiguous()).to(dtype) if kernels else grad_out.sum(0, dtype=dtype)


def _setup_linear(ctx, inputs, output) -> None:
    x, weight, _, _, norm_x, scale, shift, ctx.eps = inputs
    ctx.save_for_backward(None if norm_x is not None else x, weight, norm_x, scale, shift)


def _grad_linear(ctx, *gradients):
    (x, weight, *norm), needs_grad = ctx.saved_tensors, ctx.needs_input_grad[1:4]
    no_grads = (None,) * 5
    if not torch.is_grad_enabled():
        return *unpack_grads(_linear_backward(gradients, x, weight, *norm, ctx.eps, needs_grad), needs_grad), *no_grads
    grad_out = torch.cat(gradients, -1)
    values = norm_formula(norm[0], norm[1], norm[2], ctx.eps, weight.dtype) if x is None else x
    grad_weight = grad_out.flatten(0, -2).t() @ values.flatten(0, -2)
    return grad_out @ weight, grad_weight, grad_out.flatten(0, -2).sum(0), *no_grads


register_autograd(_linear, _setup_linear, _grad_linear)


def _fake_mlp(x, w1, b1, w2, b2, save, norm_x, scale, shift, eps):
    out = w2.new_empty(*x.shape[:-1], w2.shape[0])
    return out, w1.new_empty(out.shape[:-1].numel() if save else 0, w1.shape[0])


@operator(_fake_mlp)
def _mlp(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, save: bool,
    norm_x: Tensor | None, scale: Tensor | None, shift: Tensor | None, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The output (..., O), and the hidden values before the GELU: (N, K), or (0, K) unless `save`."""
    rows = x.reshape(-1, x.shape[-1])
    out, hidden = w2.new_empty(len(rows), len(w2)), w1.new_empty(len(rows) if save else 0, len(w1))
    for place in row_slices(rows, len(w1)):
        values = mm(rows[place], w1.t(), b1, out=hidden[place] if save else None)
        mm(F.gelu(values), w2.t(), b2, out=out[place])
    return out.view(*x.shape[:-1], len(w2)), hidden


def _fake_mlp_backward(gradient, hidden, x, w1, w2, norm_x, scale, shift, eps, needs_grad):
    sizes = ((*gradient.shape[:-1], w1.shape[1]), w1.shape, w1.shape[:1], w2.shape, w2.shape[:1])
    return pack_grads([w1.new_empty(size) for size in sizes], needs_grad)


@operator(_fake_mlp_backward)
def _mlp_backward(
    gradient: Tensor, hidden: Tensor, x: Tensor | None, w1: Tensor, w2: Tensor,
    norm_x: Tensor | None, scale: Tensor | None, shift: Tensor | None, eps: float, needs_grad: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    grad_out, rows = gradient.reshape(-1, gradient.shape[-1]), _LayerInput(x, norm_x, scale, shift, eps, w1.dtype)
    grad_x = w1.new_empty(len(grad_out), w1.shape[1]) if needs_grad[0] else None
    grad_w1, grad_b1, grad_w2 = (
        accumulator(*size, like=w1) if needed else None
        for size, needed in zip((w1.shape, w1.shape[:1], w2.shape), needs_grad[1:4], strict=True)
    )
    for place in row_slices(hidden, len(w1)):
        if grad_w2 is not None:
            add_mm(grad_w2, grad_out[place].t(), F.gelu(hidden[place]))
        if not any(needs_grad[:3]):
            continue
        grad_hidden = torch.ops.aten.gelu_backward(mm(grad_out[place], w2), hidden[place])
        if grad_w1 is not None:
            add_mm(grad_w1, grad_hidden.t(), rows[place])
        if grad_b1 is not None:
            grad_b1 += column_sums(grad_hidden, grad_b1.dtype)
        if grad_x is not None:
            mm(grad_hidden, w1, out=grad_x[place])
    grad_x = None if grad_x is None else grad_x.view(*gradient.shape[:-1], w1.shape[1])
    grad_layers = (None if total is None else total.to(w1.dtype) for total in (grad_w1, grad_b1, grad_w2))
    return pack_grads([grad_x, *grad_layers, column_sums(grad_out, w2.dtype) if needs_grad[4] else None], needs_grad)


def _setup_mlp(ctx, inputs, output) -> None:
    x, w1, b1, w2, b2, _, norm_x, scale, shift, ctx.eps = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(None if norm_x is not None else x, w1, b1, w2, b2, output[1], norm_x, scale, shift)


def _grad_mlp(ctx, gradient, _):
    (x, w1, b1, w2, b2, hidden, *norm), needs_grad = ctx.saved_tensors, ctx.needs_input_grad[1:6]
    no_grads = (None,) * 5
    if not torch.is_grad_enabled():
        grads = _mlp_backward(gradient, hidden, x, w1, w2, *norm, ctx.eps, needs_grad)
        return *unpack_grads(grads, needs_grad), *no_grads
    values = norm_formula(norm[0], norm[1], norm[2], ctx.eps, w1.dtype) if x is None else x
    return *differentiable_grad(_mlp_formula, (values, w1, b1, w2, b2), needs_grad, [gradient]), *no_grads


def _mlp_formula(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


register_autograd(_mlp, _setup_mlp, _grad_mlp)
