"""The fused linear layers against the modules that they stand for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mvit_video.model.ops import norm_linear as fused

C, K, O = 6, 10, 4  # noqa: E741


@pytest.fixture(params=[1, 5, 1000], ids="{} rows a slice".format)
def layers(request, monkeypatch):
    monkeypatch.setattr(fused, "ROWS_PER_THREAD", request.param)
    torch.manual_seed(0)
    made = nn.ModuleDict(dict(norm=nn.LayerNorm(C, 1e-6), fc1=nn.Linear(C, K), fc2=nn.Linear(K, O))).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def tokens():
    return torch.randn(2, 7, C, dtype=torch.float64, requires_grad=True)


def by_modules(x, layers):
    return layers.fc2(F.gelu(layers.fc1(layers.norm(x))))


def both_gradients(one, other, given):
    back = torch.randn_like(one)
    return zip(*(torch.autograd.grad(value, given, back) for value in (one, other)), strict=True)


def test_the_mlp_is_two_linears_around_a_gelu_behind_a_norm_in_values_and_gradients(layers):
    x = tokens()
    ours, wanted = fused.normed_mlp(x, layers.norm, layers.fc1, layers.fc2), by_modules(x, layers)
    assert torch.allclose(ours, wanted, atol=1e-13)
    for one, other in both_gradients(ours, wanted, [x, *layers.parameters()]):
        assert torch.allclose(one, other, atol=1e-12)
    with torch.inference_mode():
        assert torch.allclose(fused.normed_mlp(x, layers.norm, layers.fc1, layers.fc2), wanted, atol=1e-13)


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_the_parts_are_those_of_one_linear_behind_a_norm_in_values_and_gradients(layers, parts):
    x = tokens()
    ours = fused.normed_linear(x, layers.norm, layers.fc1, parts)
    wanted = layers.fc1(layers.norm(x))
    assert [part.shape[-1] for part in ours] == [K // parts] * parts and all(part.is_contiguous() for part in ours)
    assert torch.allclose(torch.cat(ours, -1), wanted, atol=1e-13)
    for one, other in both_gradients(
        torch.cat(ours, -1), wanted, [x, *layers.norm.parameters(), *layers.fc1.parameters()]
    ):
        assert torch.allclose(one, other, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(torch.cat(fused.normed_linear(x, layers.norm, layers.fc1, parts), -1), wanted, atol=1e-13)


def test_a_part_that_nothing_depends_on_costs_nothing_but_zeros(layers):
    x = tokens()
    first, _ = fused.normed_linear(x, layers.norm, layers.fc1, 2)
    wanted = layers.fc1(layers.norm(x))[..., : K // 2]
    for one, other in both_gradients(first, wanted, [x, layers.fc1.weight]):
        assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_of_gradients_are_right(layers, frozen):
    layers.requires_grad_(not frozen)
    norm, fc1, fc2 = layers.norm, layers.fc1, layers.fc2
    x = torch.randn(1, 3, C, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda y: fused.normed_mlp(y, norm, fc1, fc2).square(), (x,))
    assert torch.autograd.gradgradcheck(lambda y: fused.normed_linear(y, norm, fc1, 2)[0].square(), (x,))


def test_under_autocast_it_computes_in_the_type_that_the_modules_would(layers):
    layers, x = layers.float(), tokens().detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, wanted = fused.normed_mlp(x, layers.norm, layers.fc1, layers.fc2), by_modules(x, layers)
        parts = fused.normed_linear(x, layers.norm, layers.fc1, 2)
    assert ours.dtype == wanted.dtype == parts[0].dtype == torch.bfloat16
    assert torch.allclose(ours.float(), wanted.float(), atol=0.3, rtol=0.05)
    for one, other in both_gradients(ours, wanted, [x, *layers.parameters()]):
        assert one.dtype == other.dtype == torch.float32
        assert F.cosine_similarity(one.flatten(), other.flatten(), 0) > 0.995


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_sums_over_many_slices_are_as_exact_as_those_of_plain_modules(dtype, monkeypatch):
    """Largest errors of 2048 slices' gradients against double precision, in shares of the largest value."""
    monkeypatch.setattr(fused, "ROWS_PER_THREAD", 1)
    torch.manual_seed(0)
    layers = nn.ModuleDict(dict(norm=nn.LayerNorm(C), fc1=nn.Linear(C, K), fc2=nn.Linear(K, O)))
    x = torch.randn(2048 * torch.get_num_threads(), C).requires_grad_()

    def gradients(mlp, linear, given):
        return torch.autograd.grad(mlp.double().square().sum() + linear.double().square().sum(), given)

    with torch.autocast("cpu", dtype=dtype):
        ours = fused.normed_mlp(x, *layers.values()), fused.normed_linear(x, layers.norm, layers.fc1)[0]
        plain = by_modules(x, layers), layers.fc1(layers.norm(x))
    found = [gradients(*outs, list(layers.parameters())) for outs in (ours, plain)]
    layers, x = layers.double(), x.detach().double()
    exact = gradients(by_modules(x, layers), layers.fc1(layers.norm(x)), list(layers.parameters()))
    for one, other, wanted in zip(*found, exact, strict=True):
        errors = [(value - wanted).abs().max() / wanted.abs().max() for value in (one, other)]
        assert errors[0] < max(2 * errors[1], 4 * torch.finfo(dtype).eps)


def test_only_the_input_and_the_hidden_values_are_kept_for_the_backward_pass(layers):
    x, kept = tokens(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        fused.normed_mlp(x, layers.norm, layers.fc1, layers.fc2)
        fused.normed_linear(x, layers.norm, layers.fc1, 2)
    parameters = {parameter.data_ptr() for parameter in layers.parameters()}
    activations = [tensor for tensor in kept if tensor.data_ptr() not in parameters]
    assert sorted(tensor.numel() for tensor in activations) == [14 * C, 14 * C, 14 * K]


def test_hooks_and_modules_of_another_kind_are_honoured(layers):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    x, seen = tokens(), []
    plain = fused.normed_linear(x, layers.norm, layers.fc1)[0]
    handle = layers.fc1.register_forward_hook(lambda module, given, out: seen.append(out))
    assert torch.allclose(fused.normed_linear(x, layers.norm, layers.fc1)[0], plain) and len(seen) == 1
    assert torch.allclose(fused.normed_mlp(x, layers.norm, layers.fc1, layers.fc2), by_modules(x, layers))
    handle.remove()
    doubled = Doubled(C, K).double()
    doubled.load_state_dict(layers.fc1.state_dict())
    assert torch.allclose(fused.normed_linear(x, layers.norm, doubled)[0], 2 * plain)
