"""The GPU kernels, in a process of their own: without a GPU they run through Triton's interpreter, which is chosen at import."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY

from mvit_video.model.ops.device import HAS_TRITON, can_fuse, kernels_for, working_kernels


@pytest.fixture(scope="module")
def differences():
    """Largest absolute differences from the plain functions, values and gradients, in single precision."""
    if not HAS_TRITON:
        pytest.skip("Triton is not installed: PyTorch's builds for GPUs bring it, the extra `test` on Linux")
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    environment = os.environ | interpreted | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(REPOSITORY / "tests/kernels_program.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.integration
@pytest.mark.parametrize(
    "part",
    [
        "pooling of q, k and v",
        "pooling without class token, strided in time",
        "pooling of images",
        "folding",
        "folding without class token and time",
        "norm",
        "linears under a transposed gradient",
        "linears under an expanded gradient",
        "network",
        "network without clips",
    ],
)
def test_kernels_give_the_values_and_gradients_of_the_plain_functions(differences, part):
    assert differences[part] < 1e-4


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run here")
def test_a_device_that_runs_no_kernel_gets_one_warning_and_plain_functions():
    device = torch.device("cuda", 7)
    with pytest.warns(
        UserWarning, match=r"Triton runs no kernel on cuda:7 \(.+\): networks take PyTorch's own pooling"
    ):
        assert working_kernels(device) is None
    assert working_kernels(device) is None  # and no second warning, which pytest would not expect


def test_kernels_are_not_used_where_they_cannot_run():
    assert kernels_for(torch.zeros(1)) is None
    assert kernels_for(torch.zeros(1, device="meta")) is None


def test_only_modules_without_hooks_and_of_exact_types_are_fused():
    norm, linear = torch.nn.LayerNorm(2), torch.nn.Linear(2, 2)
    assert can_fuse((torch.nn.LayerNorm,), norm) and can_fuse((torch.nn.Linear,), linear, linear)
    assert not can_fuse((torch.nn.LayerNorm,), torch.nn.RMSNorm(2))
    assert not can_fuse((torch.nn.Linear,), linear, torch.nn.Identity())
    handle = torch.nn.modules.module.register_module_forward_pre_hook(lambda *_: None)  # of all modules
    assert not can_fuse((torch.nn.Linear,), linear)
    handle.remove()
    assert can_fuse((torch.nn.Linear,), linear)
    linear.register_forward_hook(lambda *_: None)
    assert not can_fuse((torch.nn.Linear,), linear)
