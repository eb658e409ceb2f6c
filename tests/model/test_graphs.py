"""Captured forward passes, without a GPU: a stand-in captures a pass as a list of operations, and repeats these alone."""

import threading

import pytest
import torch
from tiny_models import randomise, tiny_video
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from mvit_video import build_model
from mvit_video.model.graphs import GraphedNetwork, graphed
from mvit_video.model.ops.folding import _cached_rows
from mvit_video.model.ops.tables import cached_table, held_tables
from mvit_video.model.precision import Precision, resolve_precision
from mvit_video.model.registry import MODELS, capabilities_of

CPU = torch.device("cpu")
FP32 = Precision("fp32", CPU)
STAGES = dict(depths=(1, 1), embed_dims=(32, 64), num_heads=(1, 2), mlp_ratios=(2, 2), sr_ratios=(4, 2))
SIZE = dict(num_classes=5, num_frames=4, crop_size=32)
NETWORKS = {
    "mvitv2_s_16x4": dict(depths=(1, 2), embed_dim=16, kv_stride=(1, 4, 4)),
    "mvitv2_nano_8x3": dict(token_mixing="hwin", positions="lepe"),
    "mvitv1_b_16x4": dict(depths=(1, 2), embed_dim=16),
    "cswin_t_16x4": dict(depths=(1, 1, 1), embed_dim=16, num_heads=(2, 2, 4), stripe_widths=(1, 2, 2)),
    "maxvit_t_16x4": dict(depths=(1, 1), embed_dims=(32, 64), stem_width=8, window=2, grid=4),
    "pvt_v2_b1_16x4": STAGES,
    "twins_svt_s_16x4": STAGES | dict(windows=(4, 4)),
}


def small(name):
    return randomise(build_model(name, **SIZE, **NETWORKS[name]), 3)


def clips(count, seed=0, size=(4, 32, 32)):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


class Operations:
    """Records what a pass computes, as a GPU's graph does: repeating it runs no Python of the network."""

    def __init__(self):
        self.captured = 0

    def capture(self, run):
        run()
        program = make_fx(run)()
        self.captured += 1
        output = program().clone()
        return output, lambda: output.copy_(program())


class Calls:
    """The cheapest stand-in: a graph calls the network again."""

    def __init__(self, error=None):
        self.captured, self.error = 0, error

    def capture(self, run):
        if self.error:
            raise self.error
        self.captured += 1
        output = run().clone()
        return output, lambda: output.copy_(run())


def call(network, batch, precision=FP32):
    with torch.inference_mode(), precision.autocast():
        return network(batch)


@pytest.mark.integration
@pytest.mark.parametrize("name", NETWORKS)
def test_a_graph_of_each_family_gives_the_networks_logits_for_other_clips_and_fewer(name):
    model, backend = small(name), Operations()
    network = GraphedNetwork(model, FP32, backend)
    call(network, clips(3))
    for seed, count in enumerate((3, 3, 2)):
        batch = clips(count, seed)
        actual, expected = call(network, batch), call(model, batch)
        assert actual.shape == expected.shape and (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert backend.captured == 1 and len(network.graphs) == 1


@pytest.mark.integration
@pytest.mark.parametrize("name", NETWORKS)
def test_the_operations_of_a_pass_are_the_same_for_other_clips_to_the_bit(name):
    model, batch = small(name), clips(2, 1)
    program = make_fx(model)(clips(2))
    with torch.inference_mode():
        assert torch.equal(program(batch), make_fx(model)(batch)(batch))


@pytest.mark.integration
def test_half_precision_is_captured_with_its_casts():
    precision = resolve_precision("bf16", CPU)
    model = precision.held(small("mvitv2_s_16x4"))
    backend = Operations()
    network = GraphedNetwork(model, precision, backend)
    for seed in range(4):
        actual, expected = (call(each, clips(2, seed), precision) for each in (network, model))
        assert actual.dtype == expected.dtype == torch.bfloat16
        assert (actual - expected).abs().max() <= 0.02 * expected.abs().max()
    assert backend.captured == 1


@pytest.mark.parametrize("name", [name for name in MODELS.names() if MODELS.get(name).capabilities.graphs])
def test_networks_with_the_capability_are_those_that_are_tested(name):
    """By class: sizes alone differ inside a family."""
    tested = {MODELS.get(known).build for known in NETWORKS}
    assert MODELS.get(name).build in tested


class Forbidding(TorchDispatchMode):
    """Raises where a pass waits for a value, or makes a tensor from numbers of the host."""

    NEVER = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "lift_fresh", "masked_select", "unique")

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        assert function.overloadpacket.__name__ not in self.NEVER, function
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("name", NETWORKS)
def test_from_the_second_clip_on_a_pass_waits_for_no_value_and_takes_none_from_the_host(name):
    model = small(name)
    call(model, clips(2))
    with Forbidding():
        call(model, clips(2, 1))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pass_runs_where_tensors_have_no_values(name):
    """With our operators too, which nobody sees in the test above: on meta a value that is read raises."""
    with torch.device("meta"):
        model = build_model(name, **SIZE, **NETWORKS[name]).eval()
    assert call(model, clips(2).to("meta")).shape == (2, 5)


def test_what_is_forbidden_is_noticed():
    with pytest.raises(AssertionError, match="lift_fresh"), Forbidding():
        torch.ones(2) * torch.tensor([1.0, 2.0])
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Forbidding():
        float(torch.ones(1))


def test_the_first_batch_of_a_size_runs_as_ever_and_a_size_that_comes_again_is_captured():
    backend = Calls()
    network = GraphedNetwork(tiny_video(), FP32, backend)
    for count, captured in ((4, 0), (4, 1), (3, 1), (3, 1), (1, 1), (1, 2), (1, 2), (2, 2)):
        batch = clips(count, captured + count, (8, 32, 32))
        torch.testing.assert_close(call(network, batch), call(network.model, batch), rtol=1e-5, atol=1e-6)
        assert backend.captured == captured, (count, captured)
    assert sorted(len(each.clips) for each in network.graphs) == [1, 4]


def test_no_more_than_so_many_shapes_are_captured_and_others_run_as_ever():
    backend = Calls()
    network = GraphedNetwork(tiny_video(), FP32, backend, max_graphs=2)
    for size in ((8, 32, 32), (8, 32, 48), (8, 48, 32)):
        for seed in range(3):
            batch = clips(1, seed, size)
            torch.testing.assert_close(call(network, batch), call(network.model, batch), rtol=1e-5, atol=1e-6)
    assert backend.captured == len(network.graphs) == 2


def test_an_answer_stays_when_the_next_is_given():
    network = GraphedNetwork(tiny_video(), FP32, Calls())
    answers = [call(network, clips(2, seed, (8, 32, 32))) for seed in range(4)]
    expected = [call(network.model, clips(2, seed, (8, 32, 32))) for seed in range(4)]
    assert all(torch.equal(*pair) for pair in zip(answers, expected, strict=True))


def captured_network(backend=None):
    backend = backend or Operations()
    network = GraphedNetwork(small("mvitv2_s_16x4"), FP32, backend)
    for _ in range(2):
        call(network, clips(2))
    assert backend.captured == 1
    return network, backend


@pytest.mark.integration
def test_weights_that_change_in_place_are_followed():
    network, backend = captured_network()
    with torch.no_grad():
        network.model.head.projection.bias += 1
        network.model.blocks[0].norm1.weight *= 2
    torch.testing.assert_close(call(network, clips(2)), call(network.model, clips(2)), rtol=1e-5, atol=1e-5)
    assert backend.captured == 1


def test_where_weights_are_replaced_all_is_captured_anew():
    network, backend = captured_network(Calls())
    projection = network.model.head.projection
    projection.bias = nn.Parameter(projection.bias.detach() + 1)
    assert torch.equal(call(network, clips(2)), call(network.model, clips(2))) and backend.captured == 2
    network.model.load_state_dict({k: v.clone() for k, v in network.model.state_dict().items()}, assign=True)
    call(network, clips(2))
    assert backend.captured == 3 and len(network.graphs) == 1


def test_whoever_looks_into_a_network_sees_a_pass_of_it():
    network, _ = captured_network(Calls())
    model, replayed, seen = network.model, [], []
    graph = network.graphs[0]
    network.graphs[0] = type(graph)(
        graph.clips, graph.logits, lambda: replayed.append(1) or graph.replay(), graph.tables
    )
    call(network, clips(2))
    assert len(replayed) == 1
    for register in (
        model.blocks[0].register_forward_hook,
        model.head.projection.register_forward_pre_hook,
        nn.modules.module.register_module_forward_hook,
    ):
        handle = register(lambda *_: seen.append(1))
        call(network, clips(2))
        handle.remove()
        assert seen and len(replayed) == 1
        seen.clear()
    with Forbidding():
        call(network, clips(2))
    model.train()
    call(network, clips(2))
    model.eval()
    assert network(clips(2)).requires_grad  # outside of inference mode
    assert len(replayed) == 1
    call(network, clips(2))
    assert len(replayed) == 2


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"), RuntimeError("operation not permitted")]
)
def test_where_a_graph_fails_a_warning_says_so_and_all_goes_as_without(error):
    network = GraphedNetwork(tiny_video(), FP32, Calls(error))
    batch = clips(1, 0, (8, 32, 32))
    call(network, batch)
    first = str(error).splitlines()[0]
    with pytest.warns(
        UserWarning, match=rf"CUDA graphs are off, kernels are launched one by one: capture failed \({first}"
    ):
        found = call(network, batch)
    assert torch.equal(found, call(network.model, batch))
    assert torch.equal(call(network, batch), found) and network.graphs == []  # without another warning


def test_a_graph_that_gives_other_logits_is_not_used():
    class Stale(Calls):
        def capture(self, run):
            return run().clone(), lambda: None

    network = GraphedNetwork(tiny_video(), FP32, Stale())
    batch = clips(1, 1, (8, 32, 32))
    call(network, batch)
    with pytest.warns(UserWarning, match=r"capture failed \(its logits differ from the network's by "):
        assert torch.equal(call(network, batch), call(network.model, batch))


def test_threads_take_turns_at_a_graph():
    network, wrong = GraphedNetwork(tiny_video(), FP32, Calls()), []
    batches = [clips(2, seed, (8, 32, 32)) for seed in range(4)]
    expected = [call(network.model, batch) for batch in batches]

    def ask(place):
        for _ in range(5):
            if not torch.equal(call(network, batches[place]), expected[place]):
                wrong.append(place)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and len(network.graphs) == 1


def test_a_graph_keeps_the_tables_that_it_reads():
    network, _ = captured_network(Calls())  # 8 rows of queries, 2 of keys
    assert any(table is _cached_rows(8, 2, CPU) for table in network.graphs[0].tables)


def test_tables_are_made_once_and_held_while_somebody_asks():
    made = []

    @cached_table
    def table(size):
        made.append(size)
        return torch.zeros(size)

    first = table(3)
    with held_tables() as held, held_tables() as too:
        assert table(3) is first and table(4) is not first
    table(5)
    assert made == [3, 4, 5] and [len(each) for each in held] == [3, 4] == [len(each) for each in too]


def test_only_networks_with_the_capability_are_captured_and_only_on_gpus():
    model = tiny_video()
    assert capabilities_of(model).graphs and graphed(model, FP32) is model
    other = build_model("torchvision/swin3d_t", num_classes=3)
    assert not capabilities_of(other).graphs and graphed(other, Precision("fp32", torch.device("cuda"))) is other
