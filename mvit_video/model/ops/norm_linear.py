"""Linear layers right behind a LayerNorm, and the MLP, in slices of rows, with a backward pass that stores less.

The same sums as `linear(norm(x))` and `fc2(gelu(fc1(norm(x))))`. Kept for the backward pass are x, which the block's
shortcut keeps anyway, and the MLP's hidden values before the GELU; the norm and the GELU are made again. On a CPU the
rows go through in slices small enough for its cache, so the wide tensors in between are never written to memory.
"""

# N rows (tokens of all clips), C channels of x, O channels of one output, K hidden channels

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvit_video.model.ops.device import compute_dtype, is_plain, kernels_for

ROWS_PER_THREAD = 512


def normed_linear(x: Tensor, norm: nn.LayerNorm, linear: nn.Linear, parts: int = 1) -> tuple[Tensor, ...]:
    """linear(norm(x)), the output channels cut into `parts` tensors of their own: x (..., C) -> parts × (..., O)."""
    if _plainly(norm, linear):
        return linear(norm(x)).chunk(parts, -1)
    dtype = compute_dtype(x)
    weight, bias = linear.weight.to(dtype), linear.bias.to(dtype)
    arguments = (x, norm.weight, norm.bias, weight, bias, norm.eps, parts)
    return _NormedLinear.apply(*arguments) if torch.is_grad_enabled() else _linear_forward(*arguments)


def normed_mlp(x: Tensor, norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear) -> Tensor:
    """fc2(gelu(fc1(norm(x)))): x (..., C) -> (..., O)."""
    if _plainly(norm, fc1, fc2):
        return fc2(F.gelu(fc1(norm(x))))
    dtype = compute_dtype(x)
    layers = [part.to(dtype) for layer in (fc1, fc2) for part in (layer.weight, layer.bias)]
    arguments: tuple = (x, norm.weight, norm.bias, *layers, norm.eps)
    return _NormedMlp.apply(*arguments) if torch.is_grad_enabled() else _mlp_forward(*arguments)[0]


def _plainly(norm: nn.Module, *layers: nn.Module) -> bool:
    """Whether to call the modules themselves: for compilers and tracers, which plan memory on their own, and where
    someone has put hooks on them or modules of another kind in their place."""
    plain = is_plain(nn.LayerNorm, norm) and is_plain(nn.Linear, *layers)
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or not plain


class _NormedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, eps: float, parts: int):
        ctx.save_for_backward(x, scale, shift, weight, bias)
        ctx.eps = eps
        return _linear_forward(x, scale, shift, weight, bias, eps, parts)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        x, scale, shift, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (*_by_formula(_linear_formula, gradients, (x, scale, shift, weight, bias), ctx.eps), None, None)
        kernels = kernels_for(x)
        if kernels and len(gradients) == 1:
            return (*_linear_backward_by_kernels(kernels, gradients[0], x, scale, shift, weight, ctx.eps), None, None)
        back = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]
        weights = weight.chunk(len(back))
        of_weights = [_zeros(*part.shape, like=part) for part in weights]
        norm = _NormBackward(x, scale, shift, ctx.eps)
        for rows in _slices(norm.rows):
            normed = norm.forward(rows, weight.dtype)
            of_normed = back[0][rows] @ weights[0]
            for gradient, part in zip(back[1:], weights[1:], strict=True):
                of_normed.addmm_(gradient[rows], part)
            for gradient, total in zip(back, of_weights, strict=True):
                _add_product(total, gradient[rows].t(), normed)
            norm.backward(rows, of_normed)
        of_bias = torch.cat([gradient.sum(0) for gradient in back])
        return *norm.gradients(), torch.cat(of_weights).to(weight.dtype), of_bias, None, None


class _NormedMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, shift: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, eps):
        out, hidden = _mlp_forward(x, scale, shift, w1, b1, w2, b2, eps, keep=True)
        ctx.save_for_backward(x, scale, shift, w1, b1, w2, b2, hidden)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, scale, shift, w1, b1, w2, b2, hidden = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (*_by_formula(_mlp_formula, (gradient,), (x, scale, shift, w1, b1, w2, b2), ctx.eps), None)
        kernels = kernels_for(x)
        if kernels:
            return (*_mlp_backward_by_kernels(kernels, gradient, x, scale, shift, w1, w2, hidden, ctx.eps), None)
        back = gradient.reshape(-1, gradient.shape[-1])
        of_w1, of_b1, of_w2 = (_zeros(*size, like=w1) for size in (w1.shape, w1.shape[:1], w2.shape))
        norm = _NormBackward(x, scale, shift, ctx.eps)
        for rows in _slices(norm.rows):
            _add_product(of_w2, back[rows].t(), F.gelu(hidden[rows]))
            of_hidden = torch.ops.aten.gelu_backward(back[rows] @ w2, hidden[rows])
            _add_product(of_w1, of_hidden.t(), norm.forward(rows, w1.dtype))
            of_b1 += of_hidden.sum(0, dtype=of_b1.dtype)
            norm.backward(rows, of_hidden @ w1)
        of_layers = (total.to(w1.dtype) for total in (of_w1, of_b1, of_w2))
        return *norm.gradients(), *of_layers, back.sum(0), None


def _zeros(*size: int, like: Tensor) -> Tensor:
    """Where a sum over slices starts: in single precision at least, or each slice would round the whole sum again."""
    return like.new_zeros(size, dtype=torch.promote_types(like.dtype, torch.float32))


def _add_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """total += one @ other, where the total may be of a wider type."""
    if total.dtype == one.dtype:
        total.addmm_(one, other)
    else:
        total += one @ other


def _by_formula(formula, gradients, given, eps: float) -> list[Tensor | None]:
    """The gradients of the plain formula, where they shall be differentiated again; None for what is frozen."""
    wanted = [tensor for tensor in given if tensor.requires_grad]
    found = iter(torch.autograd.grad(formula(*given, eps), wanted, torch.cat(gradients, -1), create_graph=True))
    return [next(found) if tensor.requires_grad else None for tensor in given]


def _linear_formula(x, scale, shift, weight, bias, eps: float) -> Tensor:
    return F.linear(F.layer_norm(x, scale.shape, scale, shift, eps).to(weight.dtype), weight, bias)


def _mlp_formula(x, scale, shift, w1, b1, w2, b2, eps: float) -> Tensor:
    return F.linear(F.gelu(_linear_formula(x, scale, shift, w1, b1, eps)), w2, b2)


class _NormBackward:
    """A LayerNorm slice by slice: `forward` makes a slice again, `backward` collects the gradients of that slice."""

    def __init__(self, x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> None:
        self.rows, self.scale, self.shift, self.eps = x.reshape(-1, x.shape[-1]), scale, shift, eps
        self._of_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        self._of_scale, self._of_shift = (_zeros(*part.shape, like=part) for part in (scale, shift))

    def forward(self, rows: slice, dtype: torch.dtype) -> Tensor:
        part = self._part(rows)
        normed, self._mean, self._rstd = torch.native_layer_norm(
            part, part.shape[-1:], self.scale, self.shift, self.eps
        )
        return normed.to(dtype)

    def backward(self, rows: slice, gradient: Tensor) -> None:
        """After `forward` of the same slice."""
        part, mask = self._part(rows), (True, True, True)
        arguments = (part, part.shape[-1:], self._mean, self._rstd, self.scale, self.shift, mask)
        of_x, of_scale, of_shift = torch.ops.aten.native_layer_norm_backward(gradient.to(part.dtype), *arguments)
        self._of_x.view_as(self.rows)[rows] = of_x
        self._of_scale += of_scale
        self._of_shift += of_shift

    def gradients(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of x, scale and shift, after the last slice."""
        return self._of_x, self._of_scale.to(self.scale.dtype), self._of_shift.to(self.scale.dtype)

    def _part(self, rows: slice) -> Tensor:
        return self.rows[rows].to(self.scale.dtype)  # norms compute in their own type, under autocast too


def _linear_backward_by_kernels(kernels, gradient: Tensor, x, scale, shift, weight, eps: float) -> tuple[Tensor, ...]:
    rows, back = (tensor.reshape(-1, tensor.shape[-1]).contiguous() for tensor in (x, gradient))
    normed = kernels.layer_norm(rows, scale, shift, eps, weight.dtype)
    of_x, of_scale, of_shift = kernels.layer_norm_backward(rows, scale, eps, back @ weight)
    return of_x.view_as(x), of_scale, of_shift, back.t() @ normed, kernels.column_sums(back).to(weight.dtype)


def _mlp_backward_by_kernels(kernels, gradient: Tensor, x, scale, shift, w1, w2, hidden, eps: float):
    back = gradient.reshape(-1, gradient.shape[-1]).contiguous()
    of_w2, of_b2 = back.t() @ F.gelu(hidden), kernels.column_sums(back).to(w2.dtype)
    of_hidden = torch.ops.aten.gelu_backward(back @ w2, hidden)
    return *_linear_backward_by_kernels(kernels, of_hidden, x, scale, shift, w1, eps), of_w2, of_b2


def _linear_forward(x, scale, shift, weight, bias, eps: float, parts: int) -> tuple[Tensor, ...]:
    tokens = x.reshape(-1, x.shape[-1])
    if kernels_for(tokens):  # one product, whose parts are columns of one tensor
        out = F.linear(_normed(tokens, scale, shift, eps, weight.dtype), weight, bias)
        return tuple(part.view(*x.shape[:-1], part.shape[-1]) for part in out.chunk(parts, -1))
    outs = [weight.new_empty(len(tokens), len(weight) // parts) for _ in range(parts)]
    layers = list(zip(outs, weight.chunk(parts), bias.chunk(parts), strict=True))
    for rows in _slices(tokens):
        normed = _normed(tokens[rows], scale, shift, eps, weight.dtype)
        for out, part, offset in layers:
            torch.addmm(offset, normed, part.t(), out=out[rows])
    return tuple(out.view(*x.shape[:-1], out.shape[-1]) for out in outs)


def _mlp_forward(x, scale, shift, w1, b1, w2, b2, eps: float, keep: bool = False) -> tuple[Tensor, Tensor]:
    """The output, and the hidden values before the GELU: all of them with `keep`, else of the last slice."""
    tokens = x.reshape(-1, x.shape[-1])
    out, hidden = w2.new_empty(len(tokens), len(w2)), w1.new_empty(len(tokens) if keep else 0, len(w1))
    for rows in _slices(tokens):
        normed = _normed(tokens[rows], scale, shift, eps, w1.dtype)
        wide = torch.addmm(b1, normed, w1.t(), out=hidden[rows]) if keep else torch.addmm(b1, normed, w1.t())
        torch.addmm(b2, F.gelu(wide), w2.t(), out=out[rows])
    return out.view(*x.shape[:-1], len(w2)), hidden


def _normed(rows: Tensor, scale: Tensor, shift: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    kernels = kernels_for(rows)
    if kernels:
        return kernels.layer_norm(rows.contiguous(), scale, shift, eps, dtype)
    return F.layer_norm(rows, scale.shape, scale, shift, eps).to(dtype)


def _slices(tokens: Tensor) -> Iterator[slice]:
    """All rows at once on a GPU, which hides its memory's latency otherwise; on a CPU as many as stay in the cache."""
    step = ROWS_PER_THREAD * torch.get_num_threads() if tokens.device.type == "cpu" else len(tokens)
    return (slice(start, start + step) for start in range(0, len(tokens), max(step, 1)))
