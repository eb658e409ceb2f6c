"""oneDNN's products in place of PyTorch's, against double precision, and where they are taken."""

import pytest
import torch
from torch import nn

from mvit_video.model.ops import cpu, products
from mvit_video.model.ops.cpu import Cpu, Ways
from mvit_video.model.ops.linear import Linear, linear_in_parts, mlp
from mvit_video.model.ops.norm import LayerNorm

ONEDNN = Ways(onednn=True)
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


def calls(work) -> dict[str, int]:
    """How often each operator is called, inside operators too."""
    with torch.profiler.profile() as profile:
        work()
    return {event.key: event.count for event in profile.key_averages()}


@pytest.mark.parametrize(
    ("vendor", "family", "avx512", "bf16", "taken"),
    [
        ("AuthenticAMD", 26, True, True, Ways(onednn=True, bf16_blocks=True)),
        ("AuthenticAMD", 27, True, False, Ways(onednn=True)),
        ("AuthenticAMD", 25, True, True, Ways(bf16_blocks=True)),
        ("AuthenticAMD", 25, True, False, Ways()),
        ("AuthenticAMD", 23, False, False, Ways()),
        ("GenuineIntel", 6, True, True, Ways()),
        ("GenuineIntel", 26, True, True, Ways()),
        ("", 0, False, False, Ways()),
    ],
)
def test_a_cpu_takes_another_way_only_where_that_was_measured_to_be_faster(vendor, family, avx512, bf16, taken):
    assert cpu.ways_of(Cpu(vendor, family, avx512, bf16)) == taken


def test_a_cpu_is_what_linux_lists_first():
    text = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\nflags\t\t: fpu avx2 avx512f avx512_bf16\n\n"
    assert cpu.cpu_of(text + "vendor_id\t: Other\n") == Cpu("AuthenticAMD", 26, avx512=True, avx512_bf16=True)
    assert cpu.cpu_of("vendor_id : AuthenticAMD\ncpu family : Zen\n") == Cpu("AuthenticAMD")
    assert cpu.cpu_of("vendor_id : AuthenticAMD\nflags : fpu avx2 avx512_bf16_not\n") == Cpu("AuthenticAMD")
    assert cpu.cpu_of("processor : 0\nFeatures : fp asimd bf16\n") == cpu.cpu_of("") == Cpu()


@pytest.mark.parametrize("shape", [(100, 96, 128), (96, 1300, 96), (1000, 512, 100)], ids=str)
@pytest.mark.parametrize("form", ["dense", "transposed", "apart"])
def test_products_are_those_of_double_precision_however_the_factors_lie(shape, form):
    torch.manual_seed(0)
    rows, depth, columns = shape

    def factor(*size):
        made = torch.randn(size)
        spread = torch.randn(size[0], 2 * size[1])
        spread[:, : size[1]] = made
        return {"dense": made, "transposed": made.t().contiguous().t(), "apart": spread[:, : size[1]]}[form]

    one, other, bias = factor(rows, depth), factor(depth, columns), torch.randn(columns)
    exact = one.double() @ other.double()
    out, total = torch.empty(rows, columns), torch.ones(rows, columns)
    with cpu.taking(ONEDNN):
        found = [products.product(one, other), products.product(one, other, bias, out) - bias]
        found += products.products(torch.stack([one, one]), torch.stack([other, other])).unbind()
        products.add_product(total, one, other)
        found += [total - 1, products.linear(one[None], other.t(), bias)[0] - bias]
        assert "mkldnn::_linear_pointwise" in calls(lambda: products.product(one, other))
    assert torch.equal(out - bias, found[1])
    for value in found:
        assert (value - exact).norm() < 5e-7 * exact.norm()


@pytest.mark.parametrize(
    ("shape", "dtype"), [((95, 96, 96), torch.float32), ((96, 95, 96), torch.float32), ((96, 96, 96), torch.float64),
                         ((96, 96, 96), torch.bfloat16), ((0, 96, 96), torch.float32)], ids=str,
)  # fmt: skip
def test_narrow_products_and_other_types_are_pytorchs(shape, dtype):
    one, other = torch.randn(*shape[:2]).to(dtype), torch.randn(*shape[1:]).to(dtype)
    with cpu.taking(ONEDNN):
        counted = calls(lambda: products.product(one, other))
        assert torch.equal(products.product(one, other), one @ other)
    assert "mkldnn::_linear_pointwise" not in counted


def test_whoever_turns_onednn_off_gets_pytorchs_products():
    x = torch.randn(96, 96)
    with cpu.taking(ONEDNN):
        assert products.is_onednns(x, x)
        with torch.backends.mkldnn.flags(enabled=False):
            assert not products.is_onednns(x, x)
    with cpu.taking(Ways()):
        assert not products.is_onednns(x, x)


@pytest.mark.parametrize("behind_a_norm", [True, False])
def test_layers_by_onednn_have_the_values_and_gradients_of_double_precision(behind_a_norm):
    torch.manual_seed(0)
    width, hidden = 96, 192
    layers = nn.ModuleDict(dict(fc1=Linear(width, hidden), fc2=Linear(hidden, width), norm=LayerNorm(width)))
    x = torch.randn(2, 650, width)

    def run(layers, x):
        x.requires_grad_()
        normed = layers.norm(x) if behind_a_norm else x
        outs = [mlp(normed, layers.fc1, layers.fc2), layers.fc1(normed), *linear_in_parts(normed, layers.fc1, 2)]
        loss = sum(out.square().mean() for out in outs)
        used = [parameter for name, parameter in layers.named_parameters() if behind_a_norm or "norm" not in name]
        return [*outs, *torch.autograd.grad(loss, [x, *used])]

    with cpu.taking(ONEDNN):
        ours = run(layers, x)
        with torch.inference_mode():
            quiet = mlp(layers.norm(x) if behind_a_norm else x, layers.fc1, layers.fc2)
        counted = calls(lambda: run(layers, x))
    assert torch.equal(quiet, ours[0])
    assert counted["mkldnn::_linear_pointwise"] >= 12 and not counted.keys() & {"aten::mm", "aten::addmm"}
    for one, exact in zip(ours, run(layers.double(), x.detach().double()), strict=True):
        assert (one - exact).norm() < 1e-6 * exact.norm()
