"""Every operator of the package by PyTorch's own check: schema, fake, autograd rule, compilation with changing sizes."""

import re
from pathlib import Path

import pytest
import torch
from torch.library import opcheck

from mvit_video.model import mvit, ops  # noqa: F401 (the network defines all operators)

THW, K_THW, STRIDES = [2, 3, 2], [2, 2, 1], [1, 1, 1, 1, 2, 2]


def normal(*size, grad=True):
    return torch.randn(size, dtype=torch.float64).requires_grad_(grad)


def tables():
    return normal(3, 5), None, normal(5, 5)  # the last of another size, which is interpolated


def norm_input():
    return normal(2, 13, 6), normal(6), normal(6), 1e-6


def pools():
    return [part for _ in "ab" for part in (normal(5, 1, 3, 3, 3), normal(5), normal(5))]


def no_grad(arguments):
    """The same without gradients: operators of a backward pass have no autograd rule."""
    return [
        [part.detach() for part in value]
        if isinstance(value, list) and value and isinstance(value[0], torch.Tensor)
        else value.detach()
        if isinstance(value, torch.Tensor)
        else value
        for value in arguments
    ]


NOTHING = (None, None, None, 0.0)
SUMS = [normal(2 * 12 * 2, 1) for _ in "ab"], [normal(2 * 4 * 2, 1) for _ in "ab"]
KEPT = [normal(2, 12, 2, 5), *SUMS[0], normal(2, 4, 2, 5), *SUMS[1]]
OF_HEADS = [normal(2, 1, 2, 5), normal(2, 12, 2, 5), normal(2, 1, 2, 5), normal(2, 4, 2, 5)]
ALL = [True] * 3
ARGUMENTS = {
    "layer_norm": lambda: (*norm_input(), torch.float64),
    "layer_norm_backward": lambda: no_grad((normal(2, 13, 6), *norm_input(), [True, False, True])),
    "linear": lambda: (normal(2, 13, 6), normal(9, 6), normal(9), 3, *NOTHING),
    "linear_backward": lambda: no_grad(([normal(2, 13, 3) for _ in "qkv"], None, normal(9, 6), *norm_input(), ALL)),
    "mlp": lambda: (normal(2, 13, 6), normal(9, 6), normal(9), normal(4, 9), normal(4), True, *NOTHING),
    "mlp_backward": lambda: no_grad(
        (
            normal(2, 13, 4),
            normal(26, 9),
            None,
            normal(9, 6),
            normal(4, 9),
            *norm_input(),
            [True, False, True, True, False],
        )
    ),
    "pool_norms": lambda: (normal(2, 13, 2, 2, 5), pools(), 1e-6, THW, STRIDES, True),
    "pool_norms_backward": lambda: no_grad(
        (OF_HEADS, normal(2, 13, 2, 2, 5), pools(), KEPT, 1e-6, THW, STRIDES, [True, True, False])
    ),
    "filter_cells": lambda: (normal(2, 12, 5), normal(5, 1, 3, 3, 3), THW, [1, 2, 2]),
    "filter_cells_backward": lambda: no_grad(
        (normal(2, 4, 5), normal(2, 12, 5), normal(5, 1, 3, 3, 3), THW, [1, 2, 2], [True, True])
    ),
    "fold_queries": lambda: (normal(2, 1, 2, 5), normal(2, 12, 2, 5), *tables(), THW, K_THW, [2, 0, 1], 8),
    "fold_queries_backward": lambda: no_grad(
        (normal(2, 12, 2, 8), normal(2, 12, 2, 5), *tables(), THW, K_THW, [2, 0, 1], [True, True, False, False])
    ),
    "fold_keys": lambda: (normal(2, 1, 2, 5), normal(2, 4, 2, 5), K_THW, [2, 0, 1], 0.5, 8),
    "attention": lambda: (normal(2, 13, 2, 8), normal(2, 5, 2, 8), normal(2, 5, 2, 8)),
    "attention_backward": lambda: no_grad(
        (*(normal(2, count, 2, 8) for count in (13, 13, 5, 5, 13)), normal(2, 13, 2))
    ),
    "block_attention": lambda: (normal(2, 13, 2, 8), normal(2, 5, 2, 8), normal(2, 5, 2, 6)),
    "block_attention_backward": lambda: no_grad(
        (normal(2, 13, 2, 6), normal(2, 13, 2, 8), normal(2, 5, 2, 8), normal(2, 5, 2, 6))
    ),
    "add_to_grid": lambda: (normal(2, 13, 2, 5), normal(2, 12, 2, 5)),
}


def test_every_operator_is_checked():
    files = Path(ops.__file__).parent.glob("*.py")
    names = {name for file in files for name in re.findall(r"@operator\(.*\)\ndef _(\w+)", file.read_text())}
    assert names == set(ARGUMENTS)


@pytest.mark.integration
@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_operator_passes_pytorchs_check(name):
    torch.manual_seed(0)
    opcheck(getattr(torch.ops.mvit_video, name).default, ARGUMENTS[name]())


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_operators_fake_matches_its_outputs(name):
    torch.manual_seed(0)
    opcheck(
        getattr(torch.ops.mvit_video, name).default, ARGUMENTS[name](), test_utils=("test_schema", "test_faketensor")
    )
