"""torch, onnxruntime and OpenVINO run the same network; what cannot run is a sentence."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx_files import with_batch

from mvit_video.errors import ConfigError
from mvit_video.inference import runners
from mvit_video.inference.export import example_clips
from mvit_video.inference.runners import RUNNERS, every_runner, runner_named
from mvit_video.model.weights.card import read_card
from mvit_video.model.weights.load import load_checkpoint


def difference(loaded, tiny):
    """The largest, of logits, from the network called in Python; the clips are new at each call."""
    model, card = load_checkpoint(tiny)
    most = 0.0
    for count in (1, 3):
        clips = example_clips(card, count, seed=count)
        with torch.inference_mode():
            expected = model(clips).numpy()
        most = max(most, float(np.abs(loaded.run(clips.numpy()) - expected).max()))
    return most


@pytest.mark.integration
@pytest.mark.parametrize("word", ["torch", "onnxruntime", "openvino"])
def test_each_runner_gives_the_networks_logits_in_fp32(word, tiny, tiny_onnx):
    name, precision = runner_named(word)
    file = tiny_onnx if RUNNERS[name].reads_onnx else tiny
    assert difference(RUNNERS[name].load(str(file), 1, precision), tiny) < 1e-5


@pytest.mark.integration
@pytest.mark.parametrize("word", ["torch:bf16", "openvino:bf16"])
def test_bf16_rounds_but_little(word, tiny, tiny_onnx):
    name, precision = runner_named(word)
    file = tiny_onnx if RUNNERS[name].reads_onnx else tiny
    try:
        loaded = RUNNERS[name].load(str(file), 1, precision)
    except ConfigError as reason:
        pytest.skip(str(reason))
    assert 1e-5 < difference(loaded, tiny) < 0.05


@pytest.mark.integration
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_runners_of_files_tell_the_batch_and_the_card(name, tiny, tiny_onnx, tmp_path):
    loaded = RUNNERS[name].load(str(tiny_onnx), 1, RUNNERS[name].precisions[0])
    card = load_checkpoint(tiny)[1]
    assert loaded.batch is None and read_card(loaded.metadata, tiny_onnx) == card
    two = with_batch(tiny_onnx, tmp_path / "two.onnx", 2)
    assert RUNNERS[name].load(str(two), 1, RUNNERS[name].precisions[0]).batch == 2


@pytest.mark.integration
def test_a_runs_answer_stays_when_the_next_is_made(tiny_onnx, tiny):
    loaded, card = runners.with_openvino(str(tiny_onnx), 1), load_checkpoint(tiny)[1]
    first, second = (loaded.run(example_clips(card, 1, seed).numpy()) for seed in (1, 2))
    assert not np.array_equal(first, second)


@pytest.mark.integration
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", ["empty", "text", "cut short", "another network"])
def test_a_file_that_is_no_network_of_ours_is_a_sentence(name, kind, tiny_onnx, tmp_path):
    """In a process of its own: what a native parser has refused may leave its process in any state."""
    content = {"empty": b"", "text": b"no network" * 20, "cut short": tiny_onnx.read_bytes()[:-1000]}
    content["another network"] = _adds_one().SerializeToString()
    (tmp_path / "bad.onnx").write_bytes(content[kind])
    code = (
        "from mvit_video.errors import CheckpointError\n"
        "from mvit_video.inference.runners import RUNNERS\n"
        "try:\n"
        f"    RUNNERS[{name!r}].load({str(tmp_path / 'bad.onnx')!r}, 1, RUNNERS[{name!r}].precisions[0])\n"
        "except CheckpointError as reason:\n"
        "    print(reason, flush=True)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert re.search(r"bad\.onnx: .+: write it with `mvit-video export --format onnx`\n$", said)
    assert said.count("\n") == 1 and len(said) < 500
    if kind == "another network":
        assert "its inputs are x, its outputs y, expected clips and logits" in said


def _adds_one():
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_runner_that_is_not_installed_is_a_sentence(name, monkeypatch):
    for module in [each for each in sys.modules if each.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"package '{name}' cannot be imported .*pip install {name}"):
        RUNNERS[name].load("model.onnx", 1, RUNNERS[name].precisions[0])


def test_runners_are_named_with_their_precisions():
    assert every_runner() == ["torch", "torch:bf16", "torch:fp16", "onnxruntime", "openvino", "openvino:bf16"]
    assert runner_named("openvino:bf16") == ("openvino", "bf16") and runner_named("torch") == ("torch", "fp32")
    with pytest.raises(
        ConfigError, match=r"runner 'openvin' is unknown \(did you mean 'openvino'\?\): choose from torch, "
    ):
        runner_named("openvin")
    for word in ("openvino:fp8", "onnxruntime:bf16", "onnxruntime:file", "torch:"):
        with pytest.raises(ConfigError, match=rf"runner '{word}': has no such precision: choose from torch, "):
            runner_named(word)


@pytest.mark.integration
def test_the_process_of_another_runner_never_loads_torch(tiny_onnx):
    code = (
        "import sys\n"
        "from mvit_video.benchmark.runner_memory import first_run\n"
        f"first_run('onnxruntime', 'file', {str(tiny_onnx)!r}, 1, (1, 3, 8, 32, 40))\n"
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.integration
def test_signal_handlers_work_after_several_openvino_networks_have_gone(tiny_onnx):
    code = (
        "import signal, subprocess, sys\n"
        "from mvit_video.inference.runners import with_openvino\n"
        f"networks = [with_openvino({str(tiny_onnx)!r}, 1) for _ in range(3)]\n"
        "while networks:\n"
        "    del networks[0]\n"
        "signal.signal(signal.SIGCHLD, lambda *_: print('told'))\n"
        "subprocess.run([sys.executable, '-c', ''], check=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "told\n"), done.stderr
