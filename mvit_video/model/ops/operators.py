"""Defines the package's operators: a schema, one implementation for all devices, a fake and an autograd rule.

`torch.library.custom_op` would do, but its first call imports PyTorch's compiler: seconds, and 170 MiB.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mvit_video.model.ops import device

_LIBRARY = torch.library.Library("mvit_video", "DEF")
_PLAIN = (Tensor, nn.Parameter)
_profiler_enabled = torch._C._autograd._profiler_enabled


class Operator:
    """torch.ops.mvit_video.NAME: a schema, one implementation for all devices, a fake, and optionally an autograd rule.

    Eager calls run the implementation directly: PyTorch's dispatcher would take a fifth of a small network's time. Compilers,
    profilers, dispatch modes and tensor subclasses go through the dispatcher and see the operator.
    """

    def __init__(self, impl: Callable[..., Any], fake: Callable[..., Any]) -> None:
        self.name, self.impl = impl.__name__.lstrip("_"), impl
        _LIBRARY.define(self.name + torch.library.infer_schema(impl, mutates_args=()))
        _LIBRARY.impl(self.name, impl, "CompositeExplicitAutograd")
        torch.library.register_fake(f"mvit_video::{self.name}", fake, lib=_LIBRARY)
        self.registered = getattr(torch.ops.mvit_video, self.name).default
        self.with_autograd: Callable[..., Any] | None = None  # set by `register_autograd`

    def __call__(self, *inputs: Any) -> Any:
        if device.skip_fusion() or _profiler_enabled() or not _all_plain(inputs):
            return self.registered(*inputs)
        if self.with_autograd is not None and torch.is_grad_enabled():
            return self.with_autograd(*inputs)
        return self.below_autograd(*inputs)

    def below_autograd(self, *inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return self.impl(*inputs)


def operator(fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Operator]:
    """Decorator that turns an implementation into torch.ops.mvit_video.NAME, its own name without the leading "_".

    `fake` returns empty outputs of the right shapes, strides and dtypes, given tensors without data.
    """
    return lambda impl: Operator(impl, fake)


def _all_plain(inputs: Sequence[Any]) -> bool:
    """Whether all tensors hold data and none is of a subclass."""
    for value in inputs:
        if isinstance(value, Tensor):
            if type(value) not in _PLAIN or value.is_meta:
                return False
        elif type(value) in (list, tuple) and value and isinstance(value[0], Tensor) and not _all_plain(value):
            return False
    return True


def register_autograd(op: Operator, setup_context: Callable[..., None], backward: Callable[..., Any]) -> None:
    """As `torch.library.register_autograd`: `setup_context(ctx, inputs, output)`, `backward(ctx, *grads)`.

    Lists of tensors are flattened. PyTorch's own handling of lists costs 100 microseconds a call, a tenth of a small
    network's step.
    """

    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(ctx, call, *flat):
            compute, unflatten = call
            inputs = unflatten(flat)
            output = compute(*inputs)
            setup_context(ctx, inputs, output)
            return tuple(output) if isinstance(output, list) else output

        @staticmethod
        def backward(ctx, *grads):
            return None, *backward(ctx, *grads)

    Rule.__name__ = op.name  # what profilers and grad_fn show
    schema = op.registered._schema
    returns_list = isinstance(schema.returns[0].type, torch.ListType)
    lists = [index for index, argument in enumerate(schema.arguments) if str(argument.type) == "List[Tensor]"]

    def with_autograd(compute, *inputs):
        if not lists:
            outputs = Rule.apply((compute, _unchanged), *inputs)
            return list(outputs) if returns_list else outputs
        (index,) = lists
        count = len(inputs[index])
        flat = (*inputs[:index], *inputs[index], *inputs[index + 1 :])
        outputs = Rule.apply((compute, lambda flat: _with_list(flat, index, count)), *flat)
        return list(outputs) if returns_list else outputs

    def dispatched(*inputs):
        with torch._C._AutoDispatchBelowAutograd():
            return op.registered(*inputs)

    def kernel(*inputs):
        return with_autograd(dispatched, *inputs) if torch.is_grad_enabled() else dispatched(*inputs)

    _LIBRARY.impl(op.name, kernel, "Autograd")
    op.with_autograd = partial(with_autograd, op.below_autograd)


def _with_list(flat: tuple[Any, ...], index: int, count: int) -> tuple[Any, ...]:
    """`count` of the inputs, from `index` on, as one list."""
    return *flat[:index], list(flat[index : index + count]), *flat[index + count :]


def _unchanged(flat: tuple[Any, ...]) -> tuple[Any, ...]:
    return flat


def pack_grads(tensors: Sequence[Tensor | None], needs_grad: Sequence[bool]) -> list[Tensor]:
    """The gradients that are needed: operators cannot return None in a list."""
    return [tensor for tensor, needed in zip(tensors, needs_grad, strict=True) if needed and tensor is not None]


def unpack_grads(grads: Sequence[Tensor], needs_grad: Sequence[bool]) -> list[Tensor | None]:
    """Inverse of `pack_grads`: one entry per input, None where no gradient is needed."""
    rest = iter(grads)
    return [next(rest) if needed else None for needed in needs_grad]


def differentiable_grad(
    formula: Callable[..., Tensor | Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    needs_grad: Sequence[bool],
    grad_outputs: Sequence[Tensor],
) -> list[Tensor | None]:
    """Gradients of a plain formula with create_graph=True, for double backward; None where none is needed."""
    outs = formula(*inputs)
    outs = [outs] if isinstance(outs, Tensor) else list(outs)
    leaves = [tensor for tensor, needed in zip(inputs, needs_grad, strict=True) if needed and tensor is not None]
    grads = torch.autograd.grad(outs, leaves, list(grad_outputs), create_graph=True, allow_unused=True)
    return unpack_grads(list(grads), needs_grad)
