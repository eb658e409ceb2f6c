"""What the benchmark counts, measures and says. Nothing here asserts a speed."""

import inspect
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from mvit_video.benchmark import measure
from mvit_video.benchmark import networks as benchmark
from mvit_video.benchmark.measure import Subject, count_multiply_adds, count_parameters, peak_memory
from mvit_video.benchmark.networks import Benchmark, compare, run_benchmark, speed_ratio
from mvit_video.cli import main
from mvit_video.errors import ConfigError
from mvit_video.model.attention import flash_attention, reference_attention

CPU = torch.device("cpu")
NANO = "mvitv2_nano_8x3"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def nano_run(tmp_path_factory):
    """The result, written and read again, of the nano network against itself, with training."""
    file = tmp_path_factory.mktemp("benchmark") / "nano.json"
    words = ["--model", NANO, "--against", NANO, "--train", "--repeats", "3", "--batch", "2"]
    assert main(["benchmark", *words, "--device", "cpu", "--json", str(file)]) == 0
    return json.loads(file.read_text())


@pytest.mark.integration
def test_json_holds_every_figure_and_the_raw_times_of_each_round(nano_run):
    assert nano_run["failed"] == []
    assert [network["name"] for network in nano_run["networks"]] == [NANO, NANO]
    for network in nano_run["networks"]:
        assert network["mode"] == "eager"
        assert network["input"] == [2, 3, 8, 48, 48]
        assert network["parameters"] == sum(p.numel() for p in Subject(NANO, 1, "fp32", CPU).model.parameters())
        for phase in ("inference", "training"):
            figures = network[phase]
            assert len(figures["seconds"]) == 3
            assert min(figures["seconds"]) > 0
            assert figures["clips_per_second"] == pytest.approx(2 / sorted(figures["seconds"])[1])
            assert figures["peak_memory_bytes"] > 0


@pytest.mark.integration
def test_json_ratios_are_those_of_the_raw_times(nano_run):
    (ratio,) = nano_run["ratios"]
    assert (ratio["of"], ratio["against"]) == (NANO, NANO)
    first, second = nano_run["networks"]
    for phase in ("inference", "training"):
        rounds = zip(second[phase]["seconds"], first[phase]["seconds"], strict=True)
        assert ratio[phase]["speed"]["values"] == pytest.approx([theirs / ours for theirs, ours in rounds])
        memory = first[phase]["peak_memory_bytes"] / second[phase]["peak_memory_bytes"]
        assert ratio[phase]["memory"] == pytest.approx(memory)


@pytest.mark.integration
def test_json_states_the_conditions(nano_run):
    conditions = nano_run["conditions"]
    assert conditions["cpu"] and conditions["cores"] >= 1 and conditions["gpu"] is None
    assert conditions["threads"] == torch.get_num_threads()
    assert conditions["load_average_before"] >= 0 and conditions["load_average_after"] >= 0
    assert conditions["versions"]["torch"] == torch.__version__
    assert (conditions["dtype"], conditions["batch"], conditions["repeats"]) == ("fp32", 2, 3)
    assert conditions["memory_method"] == measure.MEMORY_METHOD["cpu"]


def test_speed_ratio_is_taken_round_by_round_with_its_quartiles():
    ratio = speed_ratio([1.0, 2.0, 4.0, 1.0, 2.0], against=[2.0, 2.0, 2.0, 3.0, 8.0])
    assert ratio == dict(values=[2.0, 1.0, 0.5, 3.0, 4.0], median=2.0, min=0.5, q1=1.0, q3=3.0, max=4.0)


def test_memory_ratio_is_the_model_s_over_the_other_s_and_unknown_where_one_is():
    def network(name, mode, memory):
        return dict(name=name, mode=mode, inference=dict(seconds=[1.0], peak_memory_bytes=memory))

    eager, compiled, other = network("a", "eager", 30), network("a", "compiled", None), network("b", "eager", 60)
    of_eager, of_compiled = compare([eager, compiled, other])
    assert (of_eager["of"], of_eager["against"], of_eager["inference"]["memory"]) == ("a", "b", 0.5)
    assert (of_compiled["of"], of_compiled["against"], of_compiled["inference"]["memory"]) == ("a, compiled", "b", None)
    (alone,) = compare([eager, compiled])
    assert (alone["of"], alone["against"]) == ("a, compiled", "a")
    assert compare([eager]) == compare([]) == []


def test_steps_alternate_between_the_networks_after_the_warm_up(monkeypatch):
    order = []
    monkeypatch.setattr(Subject, "seconds", lambda subject, phase: order.append((subject.mode, phase)) or 1.0)
    monkeypatch.setattr(Subject, "step", lambda subject, phase: order.append("warm-up"))
    monkeypatch.setattr(benchmark, "peak_memory", lambda subject, phase: None)
    monkeypatch.setattr(torch, "compile", lambda model: model)
    result = run_benchmark(Benchmark(NANO, CPU, against=NANO, compile=True, train=True, repeats=2))
    for phase, start in (("inference", 0), ("training", len(order) // 2)):
        assert order[start : start + 6] == ["warm-up"] * 6
        one_round = [("eager", phase), ("compiled", phase), ("eager", phase)]
        assert order[start + 6 : start + 12] == 2 * one_round
    assert [(ratio["of"], ratio["against"]) for ratio in result["ratios"]] == [
        (NANO, NANO),
        (f"{NANO}, compiled", NANO),
    ]


def test_a_training_step_leaves_gradients_of_one_step_only_and_inference_none():
    subject = Subject(NANO, 2, "fp32", CPU)
    subject.model.eval()  # no dropout, so that two steps have the same gradients
    subject.step("training")
    once = [parameter.grad.clone() for parameter in subject.model.parameters()]
    subject.step("training")
    for parameter, gradient in zip(subject.model.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-7)
    subject.prepare("inference")
    subject.step("inference")
    assert not subject.model.training
    assert all(parameter.grad is None for parameter in subject.model.parameters())


@pytest.mark.parametrize(
    ("dtype", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_a_step_runs_in_the_dtype_that_was_asked_for(dtype, kind):
    subject = Subject(NANO, 1, dtype, CPU)
    seen = []
    subject.model.head.projection.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    for phase in ("inference", "training"):
        subject.prepare(phase)
        subject.step(phase)
    assert seen == [kind, kind]


def test_networks_with_the_same_input_size_get_the_same_clips():
    first, second = Subject(NANO, 2, "fp32", CPU), Subject(NANO, 2, "fp32", CPU)
    assert torch.equal(first.clips, second.clips)


@pytest.mark.integration
def test_multiply_adds_of_s_16x4_are_the_published_64_5_giga(caplog):
    counted = count_multiply_adds("mvitv2_s_16x4")
    assert counted["giga_per_clip"] == pytest.approx(64.5, rel=0.01)
    assert caplog.records == []  # fvcore's warnings are in the result instead
    assert counted["not_counted"]["aten::softmax"] == 16
    assert "aten::scaled_dot_product_attention" not in counted["not_counted"]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "published"),
    # pytorchvideo's model zoo (MViT-B 16x4); the X3D paper, Table 4 (S, 13×160×160).
    [("pytorchvideo/mvit_base_16x4", 70.80), ("pytorchvideo/x3d_s", 1.96)],
)
def test_multiply_adds_of_baselines_are_the_published_ones(name, published):
    assert count_multiply_adds(name)["giga_per_clip"] == pytest.approx(published, rel=0.04)


def test_multiply_adds_of_attention_are_those_of_its_two_products():
    """Nano by hand: q·kᵀ and p·v take N × M × d each, for every head; nothing else is a matmul in the plain formula."""
    blocks = [  # heads, queries, keys; where a stage starts, the keys are pooled from the larger grid before it
        (1, 4 * 12 * 12 + 1, 4 * 3 * 3 + 1),
        (2, 4 * 6 * 6 + 1, 4 * 6 * 6 + 1),
        (2, 4 * 6 * 6 + 1, 4 * 3 * 3 + 1),
        (4, 4 * 3 * 3 + 1, 4 * 6 * 6 + 1),
    ]
    by_hand = sum(2 * heads * queries * keys * 32 for heads, queries, keys in blocks)
    assert count_multiply_adds(NANO)["by_operator"]["matmul"] == pytest.approx(by_hand / 1e9)


def test_parameters_of_s_16x4_are_the_published_ones():
    with torch.device("meta"):
        assert count_parameters(measure.build_model("mvitv2_s_16x4")) == 34_537_744


class Hungry(nn.Module):
    """Touches 64 MiB for each clip; stands in for a network in the process that measures memory."""

    def forward(self, clips):
        return torch.ones(len(clips), 16, 2**20)[:, :1, :2].flatten(1)


@pytest.mark.integration
def test_peak_memory_on_a_cpu_is_what_a_step_touches():
    """64 MiB for a clip, known by construction; libraries may add a little, and Linux counts pages in batches."""
    code = f"""
import runpy, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_networks
from mvit_video.benchmark import measure
measure.build_model = lambda name: test_networks.Hungry()
print([measure._first_step({NANO!r}, batch, "fp32", "inference", 1, ()) for batch in (1, 4)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    one, four = json.loads(done.stdout)
    assert one == pytest.approx(64 * 2**20, abs=16 * 2**20), done.stderr
    assert four == pytest.approx(256 * 2**20, abs=16 * 2**20)


@pytest.mark.integration
def test_peak_memory_grows_with_the_batch_and_ignores_what_this_process_holds():
    """A child inherits ru_maxrss from its parent on Linux, so a large parent must not hide the child's growth."""
    ballast = torch.ones(400 * 2**20 // 4)
    small, large = (peak_memory(Subject(NANO, batch, "fp32", CPU), "training") for batch in (2, 16))
    del ballast
    assert large > 2 * small > 0


def test_a_compiled_network_s_memory_on_a_cpu_is_unknown():
    assert peak_memory(Subject(NANO, 1, "fp32", CPU).compiled(), "inference") is None


def test_memory_that_cannot_be_had_is_one_sentence(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ConfigError) as caught:
        peak_memory(Subject(NANO, 3, "fp32", CPU), "inference")
    assert str(caught.value) == (
        f"the memory of {NANO} in inference at batch 3 cannot be measured (it was killed, perhaps out of memory): "
        "make --batch smaller"
    )


@pytest.fixture
def without_torchvision(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] in ("torchvision", "pytorchvideo")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchvision", None)


def test_a_missing_baseline_is_a_line_and_the_model_is_still_measured(
    without_torchvision, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(benchmark, "peak_memory", lambda subject, phase: None)
    words = ["--model", NANO, "--against", "torchvision/mvit_v2_s", "--repeats", "2", "--json", f"{tmp_path}/a.json"]
    assert main(["benchmark", *words, "--device", "cpu"]) == 0
    output = capsys.readouterr()
    errors = [line for line in output.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: torchvision/mvit_v2_s is skipped: package 'torchvision' cannot be imported (")
    assert NANO in output.out
    written = json.loads((tmp_path / "a.json").read_text())
    assert [network["name"] for network in written["networks"]] == [NANO]
    assert written["ratios"] == []
    assert [bad["name"] for bad in written["failed"]] == ["torchvision/mvit_v2_s"]


def test_nothing_left_to_measure_is_a_line_and_exit_code_1(without_torchvision, capsys, tmp_path):
    assert main(["benchmark", "--model", "pytorchvideo/x3d_s", "--device", "cpu", "--json", f"{tmp_path}/a.json"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert "error: pytorchvideo/x3d_s is skipped: package 'torchvision' cannot be imported (" in output.err
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--model", "mvitv2_s_16x5"],
            "model 'mvitv2_s_16x5' is unknown (did you mean 'mvitv2_s_16x4'?): choose from ",
        ),
        (
            ["--model", NANO, "--against", "slow_r50"],
            "model 'slow_r50' is unknown: choose from cswin_b_16x4, ",
        ),
        (["--model", NANO, "--dtype", "int8"], "dtype 'int8' is unknown: choose from fp32, bf16, fp16"),
        (["--model", NANO, "--json", "/missing/a.json"], "/missing/a.json: its folder /missing does not exist"),
        (["--model", NANO, "--json", tempfile.gettempdir()], ": is a folder, expected a file to write"),
        (["--model", NANO, "--device", "cuda:99"], "device 'cuda:99' cannot be used here"),
    ],
)
def test_a_wrong_word_is_one_sentence_before_anything_is_measured(words, sentence, capsys, monkeypatch):
    monkeypatch.setattr(Subject, "__init__", None)
    assert main(["benchmark", "--device", "cpu", *words]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("error: ") and error.count("\n") == 1


def test_a_compiler_that_fails_is_one_sentence(monkeypatch):
    from torch._inductor.exc import InductorError

    def fail(clips):
        raise InductorError(RuntimeError("no C++ compiler\nwith details"), inspect.currentframe())

    monkeypatch.setattr(torch, "compile", lambda model: fail)
    monkeypatch.setattr(benchmark, "peak_memory", lambda subject, phase: None)
    with pytest.raises(ConfigError, match=rf"^{NANO} cannot be compiled here \(.*no C\+\+ compiler\): drop --compile$"):
        run_benchmark(Benchmark(NANO, CPU, compile=True, repeats=1))


def test_a_batch_that_does_not_fit_a_gpu_is_one_sentence(monkeypatch):
    def full(subject, phase):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...")

    monkeypatch.setattr(Subject, "step", full)
    monkeypatch.setattr(benchmark, "peak_memory", lambda subject, phase: None)
    with pytest.raises(ConfigError) as caught:
        run_benchmark(Benchmark(NANO, CPU, batch=7, repeats=1))
    assert str(caught.value) == "batch 7 in fp32 does not fit the memory of cpu: make --batch smaller"


@pytest.mark.integration
def test_the_tables_fit_80_columns_and_show_the_figures(nano_run, monkeypatch):
    from io import StringIO

    from rich.console import Console

    text = StringIO()
    Console(file=text, width=80, markup=False, highlight=False).print(*benchmark.benchmark_tables(nano_run), sep="\n")
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    ratio = nano_run["ratios"][0]["training"]
    row = next(line for line in lines if f"{ratio['speed']['median']:.2f}" in line and "training" in line)
    assert f"{ratio['speed']['min']:.2f}–{ratio['speed']['max']:.2f}" in row
    assert f"{ratio['speed']['q1']:.2f}–{ratio['speed']['q3']:.2f}" in row
    assert f"{ratio['memory']:.2f}" in row
    assert any("2×3×8×48×48" in line and "372,112" in line for line in lines)


@pytest.mark.integration
def test_the_script_in_tools_is_the_same_verb():
    script = ROOT / "tools" / "benchmark.py"
    done = subprocess.run([sys.executable, str(script), "--model", "nano"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.startswith("error: model 'nano' is unknown")


def test_a_network_can_be_measured_against_its_own_plain_formula():
    model, plain = Subject(NANO, 1, "fp32", CPU), Subject(f"reference/{NANO}", 1, "fp32", CPU)
    assert model.clips.shape == plain.clips.shape
    assert [subject.model.blocks[0].attn.attend for subject in (model, plain)] == [flash_attention, reference_attention]
    with pytest.raises(ConfigError, match=r"model 'mvitv2_x' is unknown"):
        Benchmark("reference/mvitv2_x", CPU)
    with pytest.raises(ConfigError, match=r"has no plain formula to measure"):
        Subject("reference/torchvision/mvit_v2_s", 1, "fp32", CPU)


def test_graphs_are_measured_on_gpus_in_inference_alone(monkeypatch):
    for name, device in ((NANO, CPU), ("torchvision/mvit_v2_s", torch.device("cuda"))):
        with pytest.raises(ConfigError, match=rf"--graphs records CUDA graphs: {name} on {device} has none: take "):
            Benchmark(name, device, graphs=True)
    eager, order = Subject(NANO, 1, "fp32", CPU), []
    graphs = eager.graphed()
    assert (graphs.mode, graphs.phases, peak_memory(graphs, "inference")) == ("graphs", ("inference",), None)
    monkeypatch.setattr(Subject, "seconds", lambda subject, phase: order.append((subject.mode, phase)) or 1.0)
    monkeypatch.setattr(benchmark, "peak_memory", lambda subject, phase: None)
    monkeypatch.setattr(benchmark, "_build_subjects", lambda *_: [eager, graphs])
    result = run_benchmark(Benchmark(NANO, CPU, train=True, repeats=1))
    assert order == [("eager", "inference"), ("graphs", "inference"), ("eager", "training")]
    [ratio] = result["ratios"]
    assert (ratio["of"], ratio["against"], "training" in ratio) == (f"{NANO}, graphs", NANO, False)


def test_a_batch_that_does_not_fit_the_memory_of_a_cpu_is_one_sentence():
    with pytest.raises(ConfigError) as caught:
        run_benchmark(Benchmark(NANO, CPU, batch=10**9, repeats=1))
    assert str(caught.value) == "batch 1000000000 in fp32 does not fit the memory of cpu: make --batch smaller"
