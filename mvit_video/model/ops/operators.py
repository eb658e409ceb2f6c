"""How an operator of this package is made: one schema, one body for all devices, a fake, an autograd rule.

`torch.library.custom_op` would do as well, but loads PyTorch's compiler at the first call: seconds, and 170 MiB.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("mvit_video", "DEF")


def operator(fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: the function that computes an operator becomes torch.ops.mvit_video.NAME, its name without "_".

    `fake` tells shapes, strides and types of what it gives, from tensors without data.
    """

    def make(body: Callable[..., Any]) -> Any:
        name = body.__name__.lstrip("_")
        _LIBRARY.define(name + torch.library.infer_schema(body, mutates_args=()))
        _LIBRARY.impl(name, body, "CompositeExplicitAutograd")
        torch.library.register_fake(f"mvit_video::{name}", fake, lib=_LIBRARY)
        return getattr(torch.ops.mvit_video, name).default

    return make


def autograd_rule(made: Any, keep: Callable[..., None], backward: Callable[..., Any]) -> None:
    """How gradients pass an operator: `keep(ctx, inputs, output)` in the forward pass, `backward(ctx, *gradients)`.

    A list of tensors, given or found, is passed on as so many single ones. `torch.library.register_autograd` takes lists
    as they are, for 100 microseconds a call: a tenth of a small network's step.
    """

    name = made._schema.name.split("::")[1]

    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(ctx, arrange, *flat):
            inputs = arrange(flat)
            with torch._C._AutoDispatchBelowAutograd():
                output = made(*inputs)
            keep(ctx, inputs, output)
            return tuple(output) if isinstance(output, list) else output

        @staticmethod
        def backward(ctx, *gradients):
            return None, *backward(ctx, *gradients)

    Rule.__name__ = name  # what profilers and grad_fn show
    gives_list = isinstance(made._schema.returns[0].type, torch.ListType)
    lists = [place for place, given in enumerate(made._schema.arguments) if str(given.type) == "List[Tensor]"]

    def kernel(*inputs):
        if not torch.is_grad_enabled():
            with torch._C._AutoDispatchBelowAutograd():
                return made(*inputs)
        if not lists:
            found = Rule.apply(_as_given, *inputs)
            return list(found) if gives_list else found
        (place,) = lists
        count = len(inputs[place])
        flat = (*inputs[:place], *inputs[place], *inputs[place + 1 :])
        found = Rule.apply(
            lambda flat: (*flat[:place], list(flat[place : place + count]), *flat[place + count :]), *flat
        )
        return list(found) if gives_list else found

    _LIBRARY.impl(name, kernel, "Autograd")


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
