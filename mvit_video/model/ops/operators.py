"""How an operator of this package is made: one schema, one body for all devices, a fake, an autograd rule.

`torch.library.custom_op` would do as well, but loads PyTorch's compiler at the first call: seconds, and 170 MiB.
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
    """torch.ops.mvit_video.NAME: a schema, one body for all devices, a fake, and an autograd rule where one is given.

    In an ordinary call the body runs at once: the way through PyTorch's dispatcher would take a fifth of a small
    network's time. Whoever looks on sees the operator: a compiler, a profiler, a dispatch mode, a kind of tensor of its own.
    """

    def __init__(self, body: Callable[..., Any], fake: Callable[..., Any]) -> None:
        self.name, self.body = body.__name__.lstrip("_"), body
        _LIBRARY.define(self.name + torch.library.infer_schema(body, mutates_args=()))
        _LIBRARY.impl(self.name, body, "CompositeExplicitAutograd")
        torch.library.register_fake(f"mvit_video::{self.name}", fake, lib=_LIBRARY)
        self.registered = getattr(torch.ops.mvit_video, self.name).default
        self.with_gradients: Callable[..., Any] | None = None  # as `autograd_rule` sets it

    def __call__(self, *inputs: Any) -> Any:
        if device.is_fused_anyway() or _profiler_enabled() or not _are_plain(inputs):
            return self.registered(*inputs)
        if self.with_gradients is not None and torch.is_grad_enabled():
            return self.with_gradients(*inputs)
        return self.below_autograd(*inputs)

    def below_autograd(self, *inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return self.body(*inputs)


def operator(fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Operator]:
    """A decorator: the function that computes an operator becomes torch.ops.mvit_video.NAME, its name without "_".

    `fake` tells shapes, strides and types of what it gives, from tensors without data.
    """
    return lambda body: Operator(body, fake)


def _are_plain(inputs: Sequence[Any]) -> bool:
    """Whether all tensors hold data and are of PyTorch's own kinds."""
    for given in inputs:
        if isinstance(given, Tensor):
            if type(given) not in _PLAIN or given.is_meta:
                return False
        elif type(given) in (list, tuple) and given and isinstance(given[0], Tensor) and not _are_plain(given):
            return False
    return True


def autograd_rule(made: Operator, keep: Callable[..., None], backward: Callable[..., Any]) -> None:
    """How gradients pass an operator: `keep(ctx, inputs, output)` in the forward pass, `backward(ctx, *gradients)`.

    A list of tensors, given or found, is passed on as so many single ones. `torch.library.register_autograd` takes lists
    as they are, for 100 microseconds a call: a tenth of a small network's step.
    """

    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(ctx, how, *flat):
            compute, arrange = how
            inputs = arrange(flat)
            output = compute(*inputs)
            keep(ctx, inputs, output)
            return tuple(output) if isinstance(output, list) else output

        @staticmethod
        def backward(ctx, *gradients):
            return None, *backward(ctx, *gradients)

    Rule.__name__ = made.name  # what profilers and grad_fn show
    schema = made.registered._schema
    gives_list = isinstance(schema.returns[0].type, torch.ListType)
    lists = [place for place, given in enumerate(schema.arguments) if str(given.type) == "List[Tensor]"]

    def with_gradients(compute, *inputs):
        if not lists:
            found = Rule.apply((compute, _as_given), *inputs)
            return list(found) if gives_list else found
        (place,) = lists
        count = len(inputs[place])
        flat = (*inputs[:place], *inputs[place], *inputs[place + 1 :])
        found = Rule.apply((compute, lambda flat: _with_list(flat, place, count)), *flat)
        return list(found) if gives_list else found

    def dispatched(*inputs):
        with torch._C._AutoDispatchBelowAutograd():
            return made.registered(*inputs)

    def kernel(*inputs):
        return with_gradients(dispatched, *inputs) if torch.is_grad_enabled() else dispatched(*inputs)

    _LIBRARY.impl(made.name, kernel, "Autograd")
    made.with_gradients = partial(with_gradients, made.below_autograd)


def _with_list(flat: tuple[Any, ...], place: int, count: int) -> tuple[Any, ...]:
    """`count` of the inputs, from `place` on, as one list."""
    return *flat[:place], list(flat[place : place + count]), *flat[place + count :]


def _as_given(flat: tuple[Any, ...]) -> tuple[Any, ...]:
    return flat


def wanted_only(tensors: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor]:
    """The tensors that are wanted: an operator gives no None."""
    return [tensor for tensor, want in zip(tensors, wanted, strict=True) if want and tensor is not None]


def in_place(found: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    """The reverse of `wanted_only`: what was found at the places where it is wanted, None elsewhere."""
    rest = iter(found)
    return [next(rest) if want else None for want in wanted]


def by_formula(
    formula: Callable[..., Tensor | Sequence[Tensor]],
    given: Sequence[Tensor | None],
    wanted: Sequence[bool],
    gradients: Sequence[Tensor],
) -> list[Tensor | None]:
    """The gradients of a plain formula, where they shall be differentiated again; None for what is not wanted."""
    outs = formula(*given)
    outs = [outs] if isinstance(outs, Tensor) else list(outs)
    leaves = [tensor for tensor, want in zip(given, wanted, strict=True) if want and tensor is not None]
    found = torch.autograd.grad(outs, leaves, list(gradients), create_graph=True, allow_unused=True)
    return in_place(list(found), wanted)
