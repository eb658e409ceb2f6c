"""Linear layers and the MLP, whose backward passes keep and compute no more than is needed.

The same sums as `F.linear` and `fc2(gelu(fc1(x)))`. Where x is the output of a norm, what the norm was made from is kept
in its place, which the norm keeps anyway; the MLP keeps its hidden values before the GELU; the norm and the GELU are made
again. On a CPU rows go through in slices small enough for its cache, so that wide tensors are not written to memory.
Nothing is computed for frozen weights.
"""

# N rows (tokens of all clips), C channels of x, O channels of one output, K hidden channels

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvit_video.model.ops import device
from mvit_video.model.ops.norm import made_from, norm_formula, norm_rows, slices, zeros
from mvit_video.model.ops.operators import autograd_rule, by_formula, in_place, operator, wanted_only
from mvit_video.model.ops.products import add_product, linear, product


class Linear(nn.Linear):
    """nn.Linear with a bias. Behind a `norm.LayerNorm` it keeps nothing for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        if device.is_fused_anyway():
            return super().forward(x)
        return _linear(*_in_compute_dtype(x, self.weight, self.bias), 1, *_norm_input(x))[0]


def linear_in_parts(x: Tensor, layer: Any, parts: int) -> Iterator[Tensor]:
    """layer(x) with its channels cut into parts, such as q, k and v: (..., C) -> some (..., p, O) with `parts` p in all.

    On a GPU all come together; on a CPU each is a tensor of its own, and where no gradient is wanted only made when its
    turn comes.
    """
    if device.is_fused_anyway() or not device.is_plain(_KINDS, layer):
        yield layer(x).unflatten(-1, (parts, -1))
    elif x.device.type != "cpu":
        yield _linear(*_in_compute_dtype(x, layer.weight, layer.bias), 1, *_norm_input(x))[0].unflatten(-1, (parts, -1))
    elif torch.is_grad_enabled():
        for part in _linear(*_in_compute_dtype(x, layer.weight, layer.bias), parts, *_norm_input(x)):
            yield part.unsqueeze(-2)
    else:
        for weight, bias in zip(layer.weight.chunk(parts), layer.bias.chunk(parts), strict=True):
            yield _linear(*_in_compute_dtype(x, weight, bias), 1, *_norm_input(x))[0].unsqueeze(-2)


def mlp(x: Tensor, fc1: Any, fc2: Any) -> Tensor:
    """fc2(gelu(fc1(x))): x (..., C) -> (..., O)."""
    if device.is_fused_anyway() or not device.is_plain(_KINDS, fc1, fc2):
        return fc2(F.gelu(fc1(x)))
    given = _in_compute_dtype(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
    return _mlp(*given, keep, *_norm_input(x))[0]


_KINDS = (Linear, nn.Linear)


def _in_compute_dtype(x: Tensor, *parameters: Tensor) -> list[Tensor]:
    dtype = device.compute_dtype(x)
    return [tensor.to(dtype) for tensor in (x, *parameters)]


def _norm_input(x: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, float]:
    found = made_from(x)
    return (None, None, None, 0.0) if found is None else (found.x, found.scale, found.shift, found.eps)


class _Rows:
    """Rows (N, C) that were kept, or are made again from a norm's input."""

    def __init__(
        self, x: Tensor | None, norm_x: Tensor | None, scale: Tensor | None, shift: Tensor | None, eps: float,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        kept = norm_x if x is None else x
        assert kept is not None
        self.rows, self.made_again = kept.reshape(-1, kept.shape[-1]), x is None
        self._norm: Any = scale, shift, eps, dtype

    def __getitem__(self, place: slice) -> Tensor:
        return norm_rows(self.rows[place], *self._norm) if self.made_again else self.rows[place]


def _fake_linear(x, weight, bias, parts, norm_x, scale, shift, eps):
    return [weight.new_empty(*x.shape[:-1], weight.shape[0] // parts) for _ in range(parts)]


@operator(_fake_linear)
def _linear(
    x: Tensor, weight: Tensor, bias: Tensor, parts: int,
    norm_x: Tensor | None, scale: Tensor | None, shift: Tensor | None, eps: float,
) -> list[Tensor]:  # fmt: skip
    """`parts` tensors (..., O); what the norm was made from is for the backward pass alone."""
    if parts == 1:
        return [linear(x, weight, bias)]
    layers = zip(weight.chunk(parts), bias.chunk(parts), strict=True)
    return [linear(x, some_weights, some_bias) for some_weights, some_bias in layers]


def _fake_linear_backward(gradients, x, weight, norm_x, scale, shift, eps, wanted):
    of_x = weight.new_empty(*gradients[0].shape[:-1], weight.shape[1])
    return wanted_only([of_x, weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])], wanted)


@operator(_fake_linear_backward)
def _linear_backward(
    gradients: Sequence[Tensor], x: Tensor | None, weight: Tensor,
    norm_x: Tensor | None, scale: Tensor | None, shift: Tensor | None, eps: float, wanted: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    backs = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]
    found = []
    if wanted[0]:
        weights = weight.chunk(len(backs))
        of_x = product(backs[0], weights[0])
        for back, part in zip(backs[1:], weights[1:], strict=True):
            add_product(of_x, back, part)
        found.append(of_x.view(*gradients[0].shape[:-1], weight.shape[1]))
    if wanted[1]:
        found.append(_products_with_rows(backs, _Rows(x, norm_x, scale, shift, eps, weight.dtype)))
    if wanted[2]:
        sums = [column_sums(back, weight.dtype) for back in backs]
        found.append(torch.cat(sums) if len(sums) > 1 else sums[0])
    return found


def _products_with_rows(backs: Sequence[Tensor], rows: _Rows) -> Tensor:
    """Gradients of the weights of all parts, one below the other; in slices where the rows are made again."""
    if not rows.made_again or rows.rows.device.type != "cpu":
        made = rows[:]
        found = [product(back.t(), made) for back in backs]
        return torch.cat(found) if len(found) > 1 else found[0]
    totals = zeros(len(backs), backs[0].shape[1], rows.rows.shape[1], like=backs[0])
    for place in slices(rows.rows, rows.rows.shape[1]):
        made = rows[place]
        for back, total in zip(backs, totals, strict=True):
            add_product(total, back[place].t(), made)
    return totals.flatten(0, 1).to(backs[0].dtype)


def column_sums(back: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of a bias: sums over the rows (N, O)."""
    kernels = device.kernels_for(back)
    return kernels.column_sums(back.contiguous()).to(dtype) if kernels else back.sum(0, dtype=dtype)


def _keep_linear(ctx, inputs, output) -> None:
    x, weight, _, _, norm_x, scale, shift, ctx.eps = inputs
    ctx.save_for_backward(None if norm_x is not None else x, weight, norm_x, scale, shift)


def _back_through_linear(ctx, *gradients):
    (x, weight, *norm), wanted = ctx.saved_tensors, ctx.needs_input_grad[1:4]
    nothing = (None,) * 5
    if not torch.is_grad_enabled():
        return *in_place(_linear_backward(gradients, x, weight, *norm, ctx.eps, wanted), wanted), *nothing
    back = torch.cat(gradients, -1)
    made = norm_formula(norm[0], norm[1], norm[2], ctx.eps, weight.dtype) if x is None else x
    of_weight = back.flatten(0, -2).t() @ made.flatten(0, -2)
    return back @ weight, of_weight, back.flatten(0, -2).sum(0), *nothing


autograd_rule(_linear, _keep_linear, _back_through_linear)


def _fake_mlp(x, w1, b1, w2, b2, keep, norm_x, scale, shift, eps):
    out = w2.new_empty(*x.shape[:-1], w2.shape[0])
    return out, w1.new_empty(out.shape[:-1].numel() if keep else 0, w1.shape[0])


@operator(_fake_mlp)
def _mlp(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, keep: bool,
    norm_x: Tensor | None, scale: Tensor | None, shift: Tensor | None, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The output (..., O), and with `keep` the hidden values before the GELU (N, K), else none of them."""
    rows = x.reshape(-1, x.shape[-1])
    out, hidden = w2.new_empty(len(rows), len(w2)), w1.new_empty(len(rows) if keep else 0, len(w1))
    for place in slices(rows, len(w1)):
        wide = product(rows[place], w1.t(), b1, out=hidden[place] if keep else None)
        product(F.gelu(wide), w2.t(), b2, out=out[place])
    return out.view(*x.shape[:-1], len(w2)), hidden


def _fake_mlp_backward(gradient, hidden, x, w1, w2, norm_x, scale, shift, eps, wanted):
    sizes = ((*gradient.shape[:-1], w1.shape[1]), w1.shape, w1.shape[:1], w2.shape, w2.shape[:1])
    return wanted_only([w1.new_empty(size) for size in sizes], wanted)


@operator(_fake_mlp_backward)
def _mlp_backward(
    gradient: Tensor, hidden: Tensor, x: Tensor | None, w1: Tensor, w2: Tensor,
    norm_x: Tensor | None, scale: Tensor | None, shift: Tensor | None, eps: float, wanted: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    back, rows = gradient.reshape(-1, gradient.shape[-1]), _Rows(x, norm_x, scale, shift, eps, w1.dtype)
    of_x = w1.new_empty(len(back), w1.shape[1]) if wanted[0] else None
    of_w1, of_b1, of_w2 = (
        zeros(*size, like=w1) if want else None
        for size, want in zip((w1.shape, w1.shape[:1], w2.shape), wanted[1:4], strict=True)
    )
    for place in slices(hidden, len(w1)):
        if of_w2 is not None:
            add_product(of_w2, back[place].t(), F.gelu(hidden[place]))
        if not any(wanted[:3]):
            continue
        of_hidden = torch.ops.aten.gelu_backward(product(back[place], w2), hidden[place])
        if of_w1 is not None:
            add_product(of_w1, of_hidden.t(), rows[place])
        if of_b1 is not None:
            of_b1 += column_sums(of_hidden, of_b1.dtype)
        if of_x is not None:
            product(of_hidden, w1, out=of_x[place])
    of_x = None if of_x is None else of_x.view(*gradient.shape[:-1], w1.shape[1])
    of_layers = (None if total is None else total.to(w1.dtype) for total in (of_w1, of_b1, of_w2))
    return wanted_only([of_x, *of_layers, column_sums(back, w2.dtype) if wanted[4] else None], wanted)


def _keep_mlp(ctx, inputs, output) -> None:
    x, w1, b1, w2, b2, _, norm_x, scale, shift, ctx.eps = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(None if norm_x is not None else x, w1, b1, w2, b2, output[1], norm_x, scale, shift)


def _back_through_mlp(ctx, gradient, _):
    (x, w1, b1, w2, b2, hidden, *norm), wanted = ctx.saved_tensors, ctx.needs_input_grad[1:6]
    nothing = (None,) * 5
    if not torch.is_grad_enabled():
        found = _mlp_backward(gradient, hidden, x, w1, w2, *norm, ctx.eps, wanted)
        return *in_place(found, wanted), *nothing
    made = norm_formula(norm[0], norm[1], norm[2], ctx.eps, w1.dtype) if x is None else x
    return *by_formula(_mlp_formula, (made, w1, b1, w2, b2), wanted, [gradient]), *nothing


def _mlp_formula(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


autograd_rule(_mlp, _keep_mlp, _back_through_mlp)
