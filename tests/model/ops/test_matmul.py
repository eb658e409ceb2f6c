"""oneDNN's products instead of PyTorch's, against double precision, and where they are used."""

import pytest
import torch
from torch import nn

from mvit_video.model.ops import cpu, matmul
from mvit_video.model.ops.cpu import Cpu, CpuBackends
from mvit_video.model.ops.linear import Linear, linear_chunks, mlp
from mvit_video.model.ops.norm import LayerNorm

ONEDNN = CpuBackends(onednn=True)
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


def calls(work) -> dict[str, int]:
    """How often each operator is called, inside operators too."""
    with torch.profiler.profile() as profile:
        work()
    return {event.key: event.count for event in profile.key_averages()}


@pytest.mark.parametrize(
    ("vendor", "family", "avx512", "bf16", "amx", "backends"),
    [
        ("AuthenticAMD", 26, True, True, False, CpuBackends(onednn=True, bf16_blocks=True)),
        ("AuthenticAMD", 27, True, False, False, CpuBackends(onednn=True)),
        ("AuthenticAMD", 25, True, True, False, CpuBackends(bf16_blocks=True)),
        ("AuthenticAMD", 25, True, False, False, CpuBackends()),
        ("AuthenticAMD", 23, False, False, False, CpuBackends()),
        ("GenuineIntel", 6, True, True, False, CpuBackends()),
        ("GenuineIntel", 26, True, True, False, CpuBackends()),
        ("GenuineIntel", 6, True, True, True, CpuBackends(bf16_blocks=True, few_keys=True)),
        ("", 0, False, False, False, CpuBackends()),
    ],
)
def test_a_cpu_has_other_backends_only_where_they_were_measured_to_be_faster(
    vendor, family, avx512, bf16, amx, backends
):
    assert cpu.backends_for(Cpu(vendor, family, avx512, bf16, amx)) == backends


def test_the_cpu_is_the_first_that_linux_lists():
    text = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\nflags\t\t: fpu avx2 avx512f avx512_bf16\n\n"
    assert cpu.parse_cpuinfo(text + "vendor_id\t: Other\n") == Cpu("AuthenticAMD", 26, avx512=True, avx512_bf16=True)
    assert cpu.parse_cpuinfo("vendor_id : AuthenticAMD\ncpu family : Zen\n") == Cpu("AuthenticAMD")
    assert cpu.parse_cpuinfo("vendor_id : AuthenticAMD\nflags : fpu avx2 avx512_bf16_not\n") == Cpu("AuthenticAMD")
    assert cpu.parse_cpuinfo("vendor_id : GenuineIntel\nflags : amx_bf16 amx_tile\n") == Cpu(
        "GenuineIntel", amx_bf16=True
    )
    assert cpu.parse_cpuinfo("processor : 0\nFeatures : fp asimd bf16\n") == cpu.parse_cpuinfo("") == Cpu()


@pytest.mark.parametrize("shape", [(100, 96, 128), (96, 1300, 96), (1000, 512, 100)], ids=str)
@pytest.mark.parametrize("form", ["dense", "transposed", "strided"])
def test_products_are_those_of_double_precision_for_any_strides(shape, form):
    torch.manual_seed(0)
    rows, depth, columns = shape

    def factor(*size):
        made = torch.randn(size)
        strided = torch.randn(size[0], 2 * size[1])
        strided[:, : size[1]] = made
        return {"dense": made, "transposed": made.t().contiguous().t(), "strided": strided[:, : size[1]]}[form]

    one, other, bias = factor(rows, depth), factor(depth, columns), torch.randn(columns)
    exact = one.double() @ other.double()
    out, total = torch.empty(rows, columns), torch.ones(rows, columns)
    with cpu.use_backends(ONEDNN):
        found = [matmul.mm(one, other), matmul.mm(one, other, bias, out) - bias]
        found += matmul.bmm(torch.stack([one, one]), torch.stack([other, other])).unbind()
        matmul.add_mm(total, one, other)
        found += [total - 1, matmul.linear(one[None], other.t(), bias)[0] - bias]
        assert "mkldnn::_linear_pointwise" in calls(lambda: matmul.mm(one, other))
    assert torch.equal(out - bias, found[1])
    for value in found:
        assert (value - exact).norm() < 5e-7 * exact.norm()


@pytest.mark.parametrize(
    ("shape", "dtype"), [((95, 96, 96), torch.float32), ((96, 95, 96), torch.float32), ((96, 96, 96), torch.float64),
                         ((96, 96, 96), torch.bfloat16), ((0, 96, 96), torch.float32)], ids=str,
)  # fmt: skip
def test_small_products_and_other_dtypes_use_pytorch(shape, dtype):
    one, other = torch.randn(*shape[:2]).to(dtype), torch.randn(*shape[1:]).to(dtype)
    with cpu.use_backends(ONEDNN):
        counted = calls(lambda: matmul.mm(one, other))
        assert torch.equal(matmul.mm(one, other), one @ other)
    assert "mkldnn::_linear_pointwise" not in counted


def test_turning_onednn_off_in_pytorch_falls_back_to_its_products():
    x = torch.randn(96, 96)
    with cpu.use_backends(ONEDNN):
        assert matmul.uses_onednn(x, x)
        with torch.backends.mkldnn.flags(enabled=False):
            assert not matmul.uses_onednn(x, x)
    with cpu.use_backends(CpuBackends()):
        assert not matmul.uses_onednn(x, x)


@pytest.mark.parametrize("after_a_norm", [True, False])
def test_layers_in_onednn_have_the_values_and_gradients_of_double_precision(after_a_norm):
    torch.manual_seed(0)
    width, hidden = 96, 192
    layers = nn.ModuleDict(dict(fc1=Linear(width, hidden), fc2=Linear(hidden, width), norm=LayerNorm(width)))
    x = torch.randn(2, 650, width)

    def run(layers, x):
        x.requires_grad_()
        normed = layers.norm(x) if after_a_norm else x
        outs = [mlp(normed, layers.fc1, layers.fc2), layers.fc1(normed), *linear_chunks(normed, layers.fc1, 2)]
        loss = sum(out.square().mean() for out in outs)
        used = [parameter for name, parameter in layers.named_parameters() if after_a_norm or "norm" not in name]
        return [*outs, *torch.autograd.grad(loss, [x, *used])]

    with cpu.use_backends(ONEDNN):
        ours = run(layers, x)
        with torch.inference_mode():
            quiet = mlp(layers.norm(x) if after_a_norm else x, layers.fc1, layers.fc2)
        counted = calls(lambda: run(layers, x))
    assert torch.equal(quiet, ours[0])
    assert counted["mkldnn::_linear_pointwise"] >= 12 and not counted.keys() & {"aten::mm", "aten::addmm"}
    for one, exact in zip(ours, run(layers.double(), x.detach().double()), strict=True):
        assert (one - exact).norm() < 1e-6 * exact.norm()
