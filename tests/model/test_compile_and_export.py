"""The network under torch's compilers, exporters and mixed precision."""

import pytest
import torch
from tiny_models import relative_difference, tiny_video


def clips(seed=0, size=(8, 32, 32)):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("training", [False, pytest.param(True, marks=pytest.mark.integration)])
def test_the_whole_network_is_one_graph(training):
    """`fullgraph` refuses a break; aot_eager also traces the backward pass, without generating code."""
    model = tiny_video(dropout_rate=0.0, drop_path_rate=0.0).train(training)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected, actual = model(clips()), compiled(clips())
    assert torch.allclose(actual, expected, atol=1e-5)
    if training:
        names = [name for name, _ in model.named_parameters()]
        both = [torch.autograd.grad(out.square().sum(), list(model.parameters())) for out in (expected, actual)]
        for name, one, other in zip(names, *both, strict=True):
            assert torch.allclose(one, other, atol=1e-4 * max(1.0, one.abs().max().item())), name


@pytest.mark.long
def test_compiled_code_gives_the_same_logits_and_gradients():
    model = tiny_video(dropout_rate=0.0, drop_path_rate=0.0).train()
    compiled = torch.compile(model, fullgraph=True)
    expected, actual = model(clips()), compiled(clips())
    assert torch.allclose(actual, expected, atol=1e-5)
    both = [torch.autograd.grad(out.square().sum(), list(model.parameters())) for out in (expected, actual)]
    assert all(
        torch.allclose(*pair, atol=1e-4 * max(1.0, pair[0].abs().max().item())) for pair in zip(*both, strict=True)
    )


@pytest.mark.integration
def test_an_exported_network_gives_the_same_logits_for_any_batch():
    model = tiny_video()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (clips(),), dynamic_shapes=({0: batch},))
    for count in (1, 2, 5):
        given = clips(seed=count)[:1].expand(count, -1, -1, -1, -1).contiguous()
        assert torch.allclose(program.module()(given), model(given), atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
@pytest.mark.parametrize("cls_token", [True, False])
def test_mixed_precision_stays_near_single_precision(dtype, tolerance, cls_token):
    model = tiny_video(dropout_rate=0.0, drop_path_rate=0.0, cls_token=cls_token).train()
    expected = model(clips())
    with torch.autocast("cpu", dtype=dtype):
        actual = model(clips())
    assert actual.dtype == dtype
    assert relative_difference(actual.detach().float(), expected.detach()) < tolerance
    actual.float().square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
