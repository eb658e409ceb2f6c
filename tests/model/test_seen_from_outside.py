"""What others see of a network: hooks, counters, profilers, torch.func, frozen weights; and what its files do not contain."""

import ast
import copy
from collections import Counter
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_image, tiny_video
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

from mvit_video import build_model
from mvit_video.benchmark.measure import count_multiply_adds
from mvit_video.model import mvit

ROOM = Path(mvit.__file__).parent
NETWORKS = {
    "video": lambda: tiny_video(drop_path_rate=0.0, dropout_rate=0.0),
    "image": lambda: tiny_image(drop_path_rate=0.0),
    "mvitv1": lambda: tiny_video(
        drop_path_rate=0.0, dropout_rate=0.0, positions="absolute", residual_pooling=False, pool_all_queries=False,
        width_growth="mlp",
    ),
}  # fmt: skip


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param]()


def clips(network, batch=2):
    frames = 1 if network.num_frames == 1 else 8
    return torch.randn(batch, 3, frames, 32, 32, generator=torch.Generator().manual_seed(3))


def gradients(network, given):
    network.zero_grad()
    network(given).square().sum().backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("kind", ["forward", "forward pre", "full backward", "global"])
def test_hooks_on_every_leaf_are_called_and_change_nothing(network, kind):
    given, leaves = clips(network), [module for module in network.modules() if not list(module.children())]
    expected, wanted_gradients, seen = network(given), gradients(network, given), Counter()

    def hook(module, *_):
        seen[module] += 1

    if kind == "global":
        handles = [nn.modules.module.register_module_forward_hook(hook)]
    else:
        handles = [getattr(leaf, f"register_{kind.replace(' ', '_')}_hook")(hook) for leaf in leaves]
    actual, found_gradients = network(given), gradients(network, given)
    for handle in handles:
        handle.remove()
    used_twice = {block.drop_path for block in network.blocks}
    per_call = 2 if kind != "full backward" else 1
    assert {leaf: seen[leaf] for leaf in leaves} == {
        leaf: per_call * (2 if leaf in used_twice else 1) for leaf in leaves
    }
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    for name, expected in wanted_gradients.items():
        assert (found_gradients[name] - expected).abs().max() < 1e-4 * max(1.0, expected.abs().max()), name


def test_a_hook_that_changes_a_layers_output_changes_the_network(network):
    given, expected = clips(network), network(clips(network))
    for name, leaf in network.blocks[1].named_modules():
        if not list(leaf.children()) and not isinstance(leaf, nn.Dropout):
            handle = leaf.register_forward_hook(lambda module, inputs, out: changed(out))
            assert not torch.allclose(network(given), expected), name
            handle.remove()


def changed(out):
    return (out[0].abs(), *out[1:]) if isinstance(out, tuple) else out.abs()


@pytest.mark.integration
def test_counters_agree_on_each_module_and_each_form_of_attention():
    """PyTorch's counter and fvcore's, which estimates norms besides; the fast attention costs what the formula does."""
    from fvcore.nn import FlopCountAnalysis

    totals = []
    for attention in ("flash", "reference"):
        network = build_model("mvitv2_nano_8x3", attention=attention).eval()
        given = torch.zeros(1, 3, 8, 48, 48)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(given)
        analysis = FlopCountAnalysis(network, given).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        products = {kind: count for kind, count in analysis.by_operator().items() if "norm" not in kind}
        assert counter.get_total_flops() == pytest.approx(2 * sum(products.values()), rel=1e-5)  # it rounds einsums
        by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
        for name, module in network.named_modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                assert by_module[f"MViT.{name}"] == 2 * analysis.by_module()[name] > 0, name
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1]
    assert 2e9 * count_multiply_adds("mvitv2_nano_8x3")["giga_per_clip"] == pytest.approx(totals[0], rel=0.02)


@pytest.mark.integration
def test_a_profiler_sees_modules_and_operators_by_name():
    network, given = tiny_video(), clips(tiny_video())
    with torch.profiler.profile() as profile:
        network.train()(given).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {"mvit_video::mlp", "mvit_video::mlp_backward", "mvit_video::pool_norms", "mvit_video::attention"} <= names


def test_torch_func_gives_the_gradients_of_autograd(network):
    given, parameters = clips(network), dict(network.named_parameters())

    def loss(parameters, given):
        return functional_call(network, parameters, (given,)).square().sum()

    expected, actual = gradients(network, given), grad(loss)(parameters, given)
    for name, gradient in expected.items():
        assert (actual[name] - gradient).abs().max() < 1e-4 * max(1.0, gradient.abs().max()), name


def test_torch_func_maps_over_clips_and_differentiates_forwards():
    network, given = tiny_video(dropout_rate=0.0, drop_path_rate=0.0), clips(tiny_video(), 3)
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}

    def logits(parameters, clip):
        return functional_call(network, parameters, (clip[None],))[0]

    torch.testing.assert_close(vmap(logits, (None, 0))(parameters, given), network(given), atol=1e-5, rtol=1e-5)
    per_clip = vmap(grad(lambda parameters, clip: logits(parameters, clip).sum()), (None, 0))(parameters, given)
    network(given[1:2]).sum().backward()
    torch.testing.assert_close(
        per_clip["head.projection.weight"][1], network.head.projection.weight.grad, atol=1e-4, rtol=1e-4
    )
    one, direction = given[0], torch.ones_like(given[0])
    _, slope = jvp(lambda clip: logits(parameters, clip), (one,), (direction,))
    step = 1e-3
    numeric = (logits(parameters, one + step * direction) - logits(parameters, one - step * direction)) / (2 * step)
    torch.testing.assert_close(slope, numeric, atol=2e-2, rtol=2e-2)


PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "convolution_backward", "native_layer_norm_backward")


def backward_products(network, given) -> int:
    out = network(given).square().sum()
    with torch.profiler.profile() as profile:
        out.backward()
    names = {f"aten::{name}" for name in PRODUCTS}
    return sum(event.count for event in profile.key_averages() if event.key in names)


def weight_products(network):
    """Products of a backward pass that are those of weights: q, k and v apart, each temporal tap of a filter apart."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            yield 3 if name.endswith("qkv") else 1
        if isinstance(module, nn.Conv3d) and module.groups > 1:
            yield module.kernel_size[0]
        if isinstance(module, mvit.PooledAttention):
            yield sum(table is not None for table in (module.rel_pos_t, module.rel_pos_h, module.rel_pos_w))


def test_frozen_weights_cost_no_gradients(network):
    """All weights frozen: each product of the backward pass is one of the gradient of the clips; none without those."""
    given = clips(network).requires_grad_()
    expected = torch.autograd.grad(network(given).square().sum(), given)[0]
    trained = backward_products(copy.deepcopy(network), given)
    network.requires_grad_(False)
    given.grad = None
    frozen = backward_products(network, given)
    assert torch.equal(given.grad, expected)
    assert trained - frozen == sum(weight_products(network))
    head_only = copy.deepcopy(network)
    head_only.head.requires_grad_(True)
    assert backward_products(head_only, clips(network)) == 1  # the weight's gradient of the head


def test_gradients_can_be_differentiated_again_with_the_fast_attention():
    network, plain = (tiny_video(attention=kind, drop_path_rate=0.0).double().eval() for kind in ("flash", "reference"))
    found = []
    for model in (network, plain):
        given = clips(model).double().requires_grad_()
        (slope,) = torch.autograd.grad(model(given).square().sum(), given, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), [given, *model.parameters()], allow_unused=True))
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        assert one is None or (one - other).abs().max() < 1e-7 * max(1.0, other.abs().max())


@pytest.mark.parametrize("file", sorted(path.name for path in ROOM.glob("*.py")))
def test_a_network_file_asks_neither_for_devices_nor_for_observers(file):
    words = {
        "kernels_for",
        "can_fuse",
        "is_observed",
        "is_compiling",
        "is_exporting",
        "is_tracing",
        "is_cuda",
        "device_type",
    }
    names = {
        node.attr if isinstance(node, ast.Attribute) else node.id
        for node in ast.walk(ast.parse((ROOM / file).read_text()))
        if isinstance(node, ast.Attribute | ast.Name)
    }
    assert not names & words


def test_no_file_of_this_room_imports_one_that_imports_it():
    imports = {path: set(imported(path)) for path in ROOM.rglob("*.py")}
    done: set[Path] = set()

    def visit(path, way=()):
        assert path not in way, " -> ".join(step.name for step in (*way, path))
        if path not in done:
            for other in imports[path]:
                visit(other, (*way, path))
            done.add(path)

    for path in imports:
        visit(path)


def imported(path):
    """Files of the room that a file imports, inside its functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("mvit_video.model"):
            continue
        base = ROOM.joinpath(*node.module.split(".")[2:])
        for name in node.names:
            for file in (base / f"{name.name}.py", base / name.name / "__init__.py", base.with_suffix(".py")):
                if file.exists() and file != path:
                    yield file
                    break
            else:
                if (base / "__init__.py").exists():
                    yield base / "__init__.py"
