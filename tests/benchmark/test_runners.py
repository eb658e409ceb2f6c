"""What `benchmark --runner` measures, compares and says. Nothing here asserts a speed."""

import json
from io import StringIO

import numpy as np
import pytest
from numbered_video import write_numbered
from onnx_files import with_batch
from rich.console import Console
from tiny_checkpoint import write_tiny

from mvit_video.benchmark import runners
from mvit_video.benchmark.runners import RunnerBenchmark, batches, clips_of, run_runner_benchmark, runner_tables
from mvit_video.cli import main
from mvit_video.errors import CheckpointError, ConfigError, DecodeError
from mvit_video.inference.export import to_int8
from mvit_video.inference.predictor import Predictor
from mvit_video.inference.runners import RUNNERS, Loaded, Runner
from mvit_video.model.weights.load import load_checkpoint


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return [str(write_numbered(folder / f"{count}.mp4", count)) for count in (20, 33, 60)]


@pytest.fixture
def no_memory(monkeypatch):
    """Measuring memory takes a process for each runner."""
    monkeypatch.setattr(runners, "is_known", lambda: False)


@pytest.mark.integration
def test_the_command_measures_runners_in_turn_and_writes_all_of_it(tiny, tiny_onnx, videos, tmp_path, capsys):
    words = [
        "--runner",
        "torch,onnxruntime,openvino",
        "--checkpoint",
        str(tiny),
        "--onnx",
        str(tiny_onnx),
        "--batch",
        "2",
    ]
    output = tmp_path / "a.json"
    assert main(["benchmark", *words, "--repeats", "3", "--videos", *videos, "--json", str(output)]) == 0
    result = json.loads(output.read_text())
    assert [record["name"] for record in result["runners"]] == ["torch", "onnxruntime", "openvino"]
    assert result["clips"] == 3 and result["failed"] == []
    torch_bytes = result["runners"][0]["peak_memory_bytes"]
    for record in result["runners"]:
        assert len(record["seconds"]) == len(record["cpu_seconds"]) == 3 and min(record["seconds"]) > 0
        assert record["agreement"]["same_label_percent"] == 100 and record["agreement"]["largest_difference"] < 1e-5
        assert 0 < record["peak_memory_bytes"] <= torch_bytes and record["bytes"] > 10_000
    assert set(result["runners"][0]["speed"]["values"]) == {1.0}
    assert result["conditions"]["versions"]["openvino"] and "openvino" in capsys.readouterr().out


def test_scores_are_compared_with_those_of_the_checkpoint_on_the_middle_clip_of_each_video(
    tiny, videos, no_memory, monkeypatch
):
    """A runner of known errors: its logits are the network's, but for one clip where the best class gets another's."""
    network = RUNNERS["torch"].load(str(tiny), 1, "fp32")

    def swapped(clips):
        logits = network.run(clips).copy()
        seen.extend(len(clips) for _ in range(1))
        if len(seen) == 1:  # the first batch that is compared
            order = logits[0].argsort()
            logits[0, order[-2:]] = logits[0, order[-2:][::-1]]
        return logits

    seen = []
    monkeypatch.setitem(RUNNERS, "wrong", Runner(lambda *_: Loaded(swapped), ("fp32",), reads_onnx=False))
    result = run_runner_benchmark(RunnerBenchmark(("wrong",), str(tiny), videos=tuple(videos), batch=2, repeats=1))
    predictor = Predictor.from_checkpoint(tiny, "cpu", protocol="1x1")
    best = [prediction.predictions for prediction in predictor(videos)]
    gap = best[0][0][1] - best[0][1][1]
    [record] = result["runners"]
    assert result["clips"] == 3 and seen == [2] * (runners.WARM_UP + 1 + 2)
    assert record["agreement"]["same_label_percent"] == pytest.approx(100 * 2 / 3)
    assert record["agreement"]["largest_difference"] == pytest.approx(gap, abs=1e-5)
    assert record["agreement"]["mean_difference"] == pytest.approx(gap / 3, abs=1e-5)


def test_runs_alternate_after_the_warm_up(tiny, no_memory, monkeypatch):
    order = []
    for name in ("first", "second"):

        def run(clips, name=name):
            order.append(name)
            return np.zeros((len(clips), 5), np.float32)

        monkeypatch.setitem(RUNNERS, name, Runner(lambda *_, run=run: Loaded(run), ("fp32",), reads_onnx=False))
    result = run_runner_benchmark(RunnerBenchmark(("first", "second"), str(tiny), repeats=3))
    assert order[: 2 * (runners.WARM_UP + 3)] == ["first", "second"] * (runners.WARM_UP + 3)
    assert [len(record["seconds"]) for record in result["runners"]] == [3, 3]


@pytest.mark.integration
def test_every_runner_of_files_runs_every_file_and_the_tables_name_it(tiny, tiny_onnx, no_memory, tmp_path):
    int8 = tmp_path / "int8.onnx"
    int8.write_bytes(to_int8(tiny_onnx.read_bytes()))
    result = run_runner_benchmark(
        RunnerBenchmark(("torch", "onnxruntime", "openvino"), str(tiny), (str(tiny_onnx), str(int8)), repeats=1)
    )
    names = [f"{name} {file.name}" for name in ("onnxruntime", "openvino") for file in (tiny_onnx, int8)]
    assert [record["name"] for record in result["runners"]] == ["torch", *names]
    full, small = (record for record in result["runners"] if record["runner"] == "onnxruntime")
    assert small["bytes"] < full["bytes"]
    assert small["agreement"]["largest_difference"] > 100 * full["agreement"]["largest_difference"]
    text = StringIO()
    Console(file=text, width=80, markup=False, highlight=False).print(*runner_tables(result), sep="\n")
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80 and "100.00 %" in text.getvalue() and "8 clips" in text.getvalue()


@pytest.mark.integration
def test_a_file_of_a_fixed_batch_is_measured_with_it_and_with_no_other(tiny, tiny_onnx, videos, no_memory, tmp_path):
    two = str(with_batch(tiny_onnx, tmp_path / "two.onnx", 2))
    result = run_runner_benchmark(
        RunnerBenchmark(("onnxruntime", "openvino"), str(tiny), (two,), tuple(videos), batch=2, repeats=1)
    )
    assert result["clips"] == 3
    assert all(record["agreement"]["largest_difference"] < 1e-5 for record in result["runners"])
    with pytest.raises(ConfigError, match=r"two.onnx: takes 2 clips at a time: pass --batch 2"):
        run_runner_benchmark(RunnerBenchmark(("onnxruntime",), str(tiny), (two,), repeats=1))


@pytest.mark.integration
def test_a_file_of_another_checkpoint_is_refused(tiny, tiny_onnx, no_memory, tmp_path):
    import onnx

    other = str(write_tiny(tmp_path / "other.safetensors", cls_token=False))
    with pytest.raises(
        CheckpointError, match=r"model.onnx: was exported from another checkpoint than .*\(its arguments"
    ):
        run_runner_benchmark(RunnerBenchmark(("onnxruntime",), other, (str(tiny_onnx),)))
    bare = onnx.load(tiny_onnx)
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    for name in ("onnxruntime", "openvino"):
        with pytest.raises(CheckpointError, match=r"bare.onnx: was not written by `mvit-video export --format onnx`"):
            run_runner_benchmark(RunnerBenchmark((name,), str(tiny), (str(tmp_path / "bare.onnx"),)))


def test_a_runner_that_is_missing_is_a_line_and_the_others_are_measured(tiny, no_memory, monkeypatch, capsys, tmp_path):
    def missing(*_):
        raise ConfigError("package 'x' cannot be imported: run 'pip install x'")

    monkeypatch.setitem(RUNNERS, "x", Runner(missing, ("fp32",), reads_onnx=False))
    assert main(["benchmark", "--runner", "torch, x", "--checkpoint", str(tiny), "--repeats", "1"]) == 0
    output = capsys.readouterr()
    assert "error: x is skipped: package 'x' cannot be imported" in output.err and "torch" in output.out
    assert main(["benchmark", "--runner", "x", "--checkpoint", str(tiny)]) == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--runner", "tensorflow"], "runner 'tensorflow' is unknown: choose from torch, torch:bf16, "),
        (["--runner", "torch", "--train"], "--train does not go with --runner: drop it"),
        (["--runner", "torch", "--dtype", "bf16"], "--dtype does not go with --runner: drop it"),
        (["--runner", "torch", "data.num_frames=4"], "data.num_frames=4 does not go with --runner: drop it"),
        (["--runner", "torch", "--device", "cuda"], "--device cuda: runners are measured on the CPU: drop it"),
        (["--runner", "onnxruntime"], "runner onnxruntime needs an ONNX file: pass --onnx FILE, which "),
        (["--runner", "torch", "--onnx", "a.onnx"], "--onnx a.onnx: none of the runners reads it: add onnxruntime or "),
        (["--runner", "openvino", "--onnx", "missing.onnx"], "--onnx missing.onnx: no such file"),
        (["--runner", "torch,torch"], "'torch' is named twice: name it once"),
        (["--model", "mvitv2_nano_8x3", "--onnx", "a"], "--onnx is for --runner: add --runner torch, or drop it"),
        (["--model", "mvitv2_nano_8x3", "--videos", "a"], "--videos is for --runner: add --runner torch, or drop it"),
    ],
)
def test_a_wrong_word_is_one_sentence_before_anything_is_measured(words, sentence, tiny, capsys, monkeypatch):
    monkeypatch.setattr(runners, "load_network", None)
    checkpoint = ["--checkpoint", str(tiny)] if "--runner" in words else []
    assert main(["benchmark", *words, *checkpoint]) == 1
    error = capsys.readouterr().err
    assert sentence in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_checkpoint_is_needed_and_a_bad_video_is_named(tiny, no_memory, tmp_path, capsys):
    assert main(["benchmark", "--runner", "torch"]) == 1
    assert "--runner needs --checkpoint FILE" in capsys.readouterr().err
    (tmp_path / "bad.mp4").write_text("no video")
    with pytest.raises(DecodeError, match=r"bad\.mp4"):
        run_runner_benchmark(RunnerBenchmark(("torch",), str(tiny), videos=(str(tmp_path / "bad.mp4"),), repeats=1))


def test_a_bad_video_is_named_before_anything_is_measured(tiny, videos, no_memory, tmp_path, monkeypatch):
    monkeypatch.setattr(runners, "_measure_times", lambda *_: pytest.fail("measured"))
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    with pytest.raises(DecodeError, match=r"bad\.mp4"):
        run_runner_benchmark(RunnerBenchmark(("torch",), str(tiny), (), (*videos, str(tmp_path / "bad.mp4"))))


def test_clips_come_in_batches_and_the_last_may_be_smaller(tiny):
    card = load_checkpoint(tiny)[1]
    clips = list(clips_of((), card))
    assert [len(batch) for batch in batches(clips, 3)] == [3, 3, 2]
    assert np.array_equal(np.concatenate(list(batches(clips, 3))), np.stack(clips))
