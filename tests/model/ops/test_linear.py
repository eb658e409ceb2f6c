"""Linear layers and the MLP after a norm, against PyTorch's own modules."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mvit_video.model.ops import linear, norm
from mvit_video.model.ops.linear import Linear, linear_chunks, mlp
from mvit_video.model.ops.norm import LayerNorm, row_slices

C, K, O = 6, 10, 4  # noqa: E741


@pytest.fixture(params=[1, 5, 1000], ids="{} rows a slice".format)
def layers(request, monkeypatch):
    monkeypatch.setattr(norm, "MIN_ROWS", request.param)
    monkeypatch.setattr(norm, "SLICE_BYTES", 1)
    torch.manual_seed(0)
    made = nn.ModuleDict(dict(norm=LayerNorm(C, 1e-6), fc1=Linear(C, K), fc2=Linear(K, O))).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def tokens():
    return torch.randn(2, 7, C, dtype=torch.float64, requires_grad=True)


def plain_linear(x, layers):
    normed = F.layer_norm(x, (C,), layers.norm.weight, layers.norm.bias, 1e-6)
    return F.linear(normed, layers.fc1.weight, layers.fc1.bias)


def plain_mlp(x, layers):
    return F.linear(F.gelu(plain_linear(x, layers)), layers.fc2.weight, layers.fc2.bias)


def our_mlp(x, layers):
    return mlp(layers.norm(x), layers.fc1, layers.fc2)


def our_parts(x, layers, parts):
    return list(linear_chunks(layers.norm(x), layers.fc1, parts))


def both_gradients(one, other, given):
    back = torch.randn_like(one)
    return zip(*(torch.autograd.grad(value, given, back) for value in (one, other)), strict=True)


def test_the_mlp_is_two_linears_around_a_gelu_after_a_norm_in_values_and_gradients(layers):
    x = tokens()
    ours, expected = our_mlp(x, layers), plain_mlp(x, layers)
    assert torch.allclose(ours, expected, atol=1e-13)
    for one, other in both_gradients(ours, expected, [x, *layers.parameters()]):
        assert torch.allclose(one, other, atol=1e-12)
    with torch.inference_mode():
        assert torch.allclose(our_mlp(x, layers), expected, atol=1e-13)


def test_small_inputs_take_plain_layers_and_large_ones_operators(plain_if_small, monkeypatch):
    layers = nn.ModuleDict(dict(norm=LayerNorm(C), fc1=Linear(C, K), fc2=Linear(K, O)))
    called = []
    for name in ("_linear", "_mlp"):
        own = getattr(linear, name)
        monkeypatch.setattr(linear, name, lambda *given, own=own, name=name: called.append(name) or own(*given))
    for rows, operators in ((linear.SMALL // K, []), (linear.SMALL // K + 1, ["_mlp", "_linear", "_linear"])):
        x, called[:] = torch.randn(1, rows, C), []
        our_mlp(x, layers), layers.fc1(x), list(linear_chunks(x, layers.fc1, 2))
        assert called == operators


def test_a_small_input_gives_the_same_with_and_without_the_operators(plain_if_small, monkeypatch):
    layers = nn.ModuleDict(dict(norm=LayerNorm(C), fc1=Linear(C, K), fc2=Linear(K, O))).double()
    x, found = tokens(), []
    for small in (0, linear.SMALL):
        monkeypatch.setattr(linear, "SMALL", small)
        out = our_mlp(x, layers)
        found.append([out, *torch.autograd.grad(out.square().sum(), [x, *layers.parameters()])])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_the_parts_are_those_of_one_linear_after_a_norm_in_values_and_gradients(layers, parts):
    x = tokens()
    ours, expected = our_parts(x, layers, parts), plain_linear(x, layers)
    assert all(part.shape == (2, 7, 1, K // parts) and part.is_contiguous() for part in ours)
    ours = torch.cat(ours, -1).squeeze(-2)
    assert torch.allclose(ours, expected, atol=1e-13)
    given = [x, *layers.norm.parameters(), *layers.fc1.parameters()]
    for one, other in both_gradients(ours, expected, given):
        assert torch.allclose(one, other, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(torch.cat(our_parts(x, layers, parts), -1).squeeze(-2), expected, atol=1e-13)


@pytest.mark.parametrize("after_a_norm", [True, False])
def test_a_linear_layer_is_pytorchs_in_values_and_gradients(layers, after_a_norm):
    x, before = tokens(), layers.norm if after_a_norm else nn.Identity()
    ours, expected = layers.fc1(before(x)), F.linear(before(x), layers.fc1.weight, layers.fc1.bias)
    assert torch.allclose(ours, expected, atol=1e-13)
    for one, other in both_gradients(ours, expected, [x, *layers.fc1.parameters()]):
        assert torch.allclose(one, other, atol=1e-12)


def test_a_part_that_nothing_depends_on_costs_nothing_but_zeros(layers):
    x = tokens()
    first, _ = our_parts(x, layers, 2)
    expected = plain_linear(x, layers)[..., : K // 2]
    for one, other in both_gradients(first.squeeze(-2), expected, [x, layers.fc1.weight]):
        assert torch.allclose(one, other, atol=1e-12)


def test_a_norms_output_that_is_modified_in_place_is_saved_as_it_is(layers):
    """In place, invisible to its grad_fn: gradients are those of the values that the layer saw."""
    normed = layers.norm(tokens())
    normed.detach().mul_(2.0)
    layers.fc1(normed).sum().backward()
    assert torch.allclose(layers.fc1.weight.grad[0], normed.detach().sum((0, 1)), atol=1e-12)


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_of_gradients_are_right(layers, frozen):
    layers.requires_grad_(not frozen)
    x = torch.randn(1, 3, C, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda y: our_mlp(y, layers).square(), (x,))
    assert torch.autograd.gradgradcheck(lambda y: our_parts(y, layers, 2)[0].square(), (x,))
    assert torch.autograd.gradgradcheck(lambda y: layers.fc1(y).square(), (x,))


def test_under_autocast_it_computes_in_the_dtype_of_plain_modules(layers):
    layers, x = layers.float(), tokens().detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, expected = our_mlp(x, layers), plain_mlp(x, layers)
        parts = our_parts(x, layers, 2)
    assert ours.dtype == expected.dtype == parts[0].dtype == torch.bfloat16
    assert torch.allclose(ours.float(), expected.float(), atol=0.3, rtol=0.05)
    for one, other in both_gradients(ours, expected, [x, *layers.parameters()]):
        assert one.dtype == other.dtype == torch.float32
        assert F.cosine_similarity(one.flatten(), other.flatten(), 0) > 0.995


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_sums_over_many_slices_are_as_exact_as_those_of_plain_modules(dtype, monkeypatch):
    """Largest errors of 2048 row_slices' gradients against double precision, in shares of the largest value."""
    monkeypatch.setattr(norm, "MIN_ROWS", 1)
    monkeypatch.setattr(norm, "SLICE_BYTES", 1)
    torch.manual_seed(0)
    layers = nn.ModuleDict(dict(norm=LayerNorm(C, 1e-6), fc1=Linear(C, K), fc2=Linear(K, O)))
    x = torch.randn(2048 * torch.get_num_threads(), C).requires_grad_()

    def gradients(mlp, linear, given):
        return torch.autograd.grad(mlp.double().square().sum() + linear.double().square().sum(), given)

    with torch.autocast("cpu", dtype=dtype):
        ours = our_mlp(x, layers), layers.fc1(layers.norm(x))
        plain = plain_mlp(x, layers), plain_linear(x, layers)
    actual = [gradients(*outs, list(layers.parameters())) for outs in (ours, plain)]
    layers, x = layers.double(), x.detach().double()
    exact = gradients(plain_mlp(x, layers), plain_linear(x, layers), list(layers.parameters()))
    for one, other, expected in zip(*actual, exact, strict=True):
        errors = [(value - expected).abs().max() / expected.abs().max() for value in (one, other)]
        assert errors[0] < max(2 * errors[1], 4 * torch.finfo(dtype).eps)


def test_only_the_norms_input_and_the_hidden_values_are_saved_for_backward(layers):
    x, kept = tokens(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        normed = layers.norm(x)
        mlp(normed, layers.fc1, layers.fc2)
        list(linear_chunks(normed, layers.fc1, 2))
        layers.fc1(normed)
    known = {tensor.data_ptr() for tensor in (x, *layers.parameters())}
    activations = [tensor.numel() for tensor in kept if tensor.data_ptr() not in known]
    assert sorted(activations) == [14, 14, 14 * K]  # the norm's means and deviations


def products(work) -> int:
    """Matrix products and convolutions that are computed, inside operators too."""
    with torch.profiler.profile() as profile:
        work()
    names = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm_", "aten::convolution_backward")
    return sum(event.count for event in profile.key_averages() if event.key in names)


@pytest.mark.parametrize("what", ["linear", "parts", "mlp"])
def test_no_product_is_computed_for_what_is_frozen(what, monkeypatch):
    layers = nn.ModuleDict(dict(norm=LayerNorm(C), fc1=Linear(C, K), fc2=Linear(K, O)))
    run = dict(
        linear=lambda x: layers.fc1(layers.norm(x)).sum(),
        parts=lambda x: torch.cat(our_parts(x, layers, 2)).sum(),
        mlp=lambda x: our_mlp(x, layers).sum(),
    )[what]

    def backward(weights, input):
        layers.requires_grad_(weights)
        out = run(torch.randn(4, C, requires_grad=input))
        return products(out.backward)

    both, of_input, of_weights = backward(True, True), backward(False, True), backward(True, False)
    assert {"linear": (2, 1, 2), "parts": (4, 2, 4), "mlp": (4, 2, 4)}[what] == (both, of_input, of_weights)


@pytest.mark.parametrize(
    ("dtype", "width", "expected"),
    [(torch.float32, 384, 4096), (torch.bfloat16, 384, 8192), (torch.float32, 3072, 512), (torch.float32, 6144, 512)],
)
def test_a_slice_has_rows_by_their_bytes_and_not_too_few(dtype, width, expected):
    rows = torch.empty(2 * expected * torch.get_num_threads() + 1, 1, dtype=dtype)
    sizes = [len(rows[place]) for place in row_slices(rows, width)]
    assert sizes == [expected * torch.get_num_threads()] * 2 + [1]


def test_hooks_and_modules_of_other_types_are_honoured(layers):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    x, seen = tokens(), []
    plain = plain_linear(x, layers)
    handle = layers.fc1.register_forward_hook(lambda module, given, out: seen.append(out))
    assert torch.allclose(our_parts(x, layers, 1)[0].squeeze(-2), plain) and len(seen) == 1
    assert torch.allclose(our_mlp(x, layers), plain_mlp(x, layers)) and len(seen) == 2
    handle.remove()
    doubled = Doubled(C, K).double()
    doubled.load_state_dict(layers.fc1.state_dict())
    assert torch.allclose(next(linear_chunks(layers.norm(x), doubled, 1)).squeeze(-2), 2 * plain)
