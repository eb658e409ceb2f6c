"""--precision: that it reaches the network in every verb, and is recorded; and that fp32 is what there was without it."""

import asyncio
import json
import os
import threading
from contextlib import contextmanager

import av
import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from small_results import DEMO, INPUT, random_checkpoint, settings
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from mvit_video import Predictor, api, cli
from mvit_video.data.lists.read import read_videos
from mvit_video.errors import ConfigError
from mvit_video.inference.explain import class_heat
from mvit_video.inference.stream import live_predictions, live_source
from mvit_video.serve.app import _Server
from mvit_video.serve.jobs import Jobs, Limits

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(few_videos, tmp_path_factory):
    classes = read_videos("val.csv", str(few_videos)).classes
    return random_checkpoint(tmp_path_factory.mktemp("weights") / "model.safetensors", settings(few_videos), classes)


@contextmanager
def types_seen():
    """The types that linear layers give, in evaluation and in training mode."""
    seen: set[tuple[bool, torch.dtype]] = set()

    def look(module, inputs, output):
        if isinstance(module, nn.Linear):
            seen.add((module.training, output.dtype))

    handle = register_module_forward_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def run(verb, weights, folder, *words):
    """The verb in bf16 -> the types that its network's layers gave."""
    with types_seen() as seen:
        code = cli.main(
            [verb, *map(str, words), "--checkpoint", str(weights), "--precision", "bf16", "--device", "cpu"]
        )
    assert code == 0
    return seen


BF16, FP32 = {(False, torch.bfloat16)}, {(False, torch.float32)}


def test_predict(weights, few_videos, tmp_path, capsys):
    video = few_videos / "val/00000.mp4"
    assert run("predict", weights, tmp_path, video, "--json") == BF16
    half = json.loads(capsys.readouterr().out)
    with types_seen() as seen:
        assert cli.main(["predict", str(video), "--json", "--checkpoint", str(weights)]) == 0
        plain = capsys.readouterr().out
        assert cli.main(["predict", str(video), "--json", "--checkpoint", str(weights), "--precision", "fp32"]) == 0
    assert seen == FP32 and capsys.readouterr().out == plain
    scores = [{each["label"]: each["score"] for each in one["predictions"]} for one in (half, json.loads(plain))]
    assert scores[0] != scores[1] and scores[0] == pytest.approx(scores[1], abs=0.03)


def test_predict_over_time(weights, few_videos, tmp_path):
    words = ("--timeline", "--output", tmp_path / "out")
    assert run("predict", weights, tmp_path, few_videos / "val/00000.mp4", *words) == BF16
    assert json.loads((tmp_path / "out/timeline.json").read_text())["precision"] == "bf16"


def test_predict_of_a_stream(weights, few_videos, tmp_path):
    """A named pipe that a thread writes a video into."""
    os.mkfifo(tmp_path / "pipe")

    def write():
        with (
            av.open(few_videos / "val/00000.mp4") as source,
            open(tmp_path / "pipe", "wb") as pipe,
            av.open(pipe, "w", "mpegts") as target,
        ):
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    predictor = Predictor.from_checkpoint(weights, "cpu", precision="bf16")
    with types_seen() as seen:
        assert list(live_predictions(predictor, live_source(str(tmp_path / "pipe"))))
    thread.join(10)
    assert seen == BF16


def test_explain(weights, few_videos, tmp_path):
    assert run("explain", weights, tmp_path, few_videos / "val/00000.mp4", "--output", tmp_path / "out") == BF16
    assert json.loads((tmp_path / "out/explain.json").read_text())["precision"] == "bf16"


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_heat_in_half_precision_is_near_that_in_single_precision(weights, name):
    full, half = (Predictor.from_checkpoint(weights, "cpu", precision=word) for word in ("fp32", name))
    clips = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    heats = []
    for predictor in (full, half):
        with predictor.precision.autocast():
            heats.append(class_heat(predictor.model, clips, 3)[0])
    assert all(heat.dtype == torch.float32 for heat in heats)
    assert float((heats[0] - heats[1]).abs().max() / heats[0].max()) < (0.1 if name == "bf16" else 0.02)


@pytest.mark.integration
def test_evaluate(weights, few_videos, tmp_path):
    words = (DEMO, f"data.root={few_videos}", *INPUT, "--protocol", "2x1", "--output")
    assert run("evaluate", weights, tmp_path, *words, tmp_path / "half") == BF16
    report = (tmp_path / "half/report.html").read_text()
    assert json.loads((tmp_path / "half/results.json").read_text())["precision"] == "bf16"
    assert "<td>precision</td>" in report.replace("\n", "") and "bf16" in report
    root = {"root": str(few_videos)}
    found = {}
    for name, words in {"plain": {}, "fp32": {"precision": "fp32"}, "config": {"evaluation.precision": "bf16"}}.items():
        config = settings(few_videos)
        with types_seen() as seen:
            result = api.evaluate(config, weights, protocol="2x1", device="cpu", data=root, **words)
        assert seen == (BF16 if name == "config" else FP32)
        found[name] = result.scores.scores
        assert result.content["precision"] == ("bf16" if name == "config" else "fp32")
    assert np.array_equal(found["plain"], found["fp32"])
    with np.load(tmp_path / "half/scores.npz") as half:
        assert np.array_equal(half["scores"], found["config"])
    assert 0 < np.abs(found["config"] - found["fp32"]).max() < 0.03


def test_features(weights, few_videos, tmp_path):
    words = ("--annotations", few_videos / "val.csv", "--root", few_videos, "--output")
    assert run("features", weights, tmp_path, *words, tmp_path / "half") == BF16
    for name, more in {"plain": (), "fp32": ("--precision", "fp32")}.items():
        assert cli.main([*map(str, ("features", *words, tmp_path / name, "--checkpoint", weights, *more))]) == 0
    jobs = {name: json.loads((tmp_path / name / "features.json").read_text()) for name in ("half", "plain", "fp32")}
    assert [job["precision"] for job in jobs.values()] == ["bf16", "fp32", "fp32"]
    files = {name: (tmp_path / name / "features-00000.npz").read_bytes() for name in jobs}
    assert files["plain"] == files["fp32"] != files["half"]


def test_features_of_another_precision_are_no_part_of_these(weights, few_videos, tmp_path, capsys):
    words = ["features", "--annotations", str(few_videos / "val.csv"), "--root", str(few_videos), "--checkpoint"]
    words += [str(weights), "--output", str(tmp_path)]
    job = tmp_path / "features.json"
    assert cli.main(words) == 0
    before = json.loads(job.read_text())
    del before["precision"]  # as earlier versions wrote it
    job.write_text(json.dumps(before))
    assert cli.main(words) == 0
    assert cli.main([*words, "--precision", "bf16"]) == 1
    assert "contains features of a different precision (fp32, now bf16)" in capsys.readouterr().err


def test_serve(weights):
    """Its jobs take the predictor that the verb makes; the page is told the precision."""
    jobs = Jobs(Predictor.from_checkpoint(weights, "cpu", precision="bf16"), Limits(10**6, 10.0, 1))
    try:
        about = json.loads(bytes(asyncio.run(_Server(jobs).about(None)).body))
    finally:
        jobs.close()
    assert about["precision"] == "bf16"
    page = (REPOSITORY / "mvit_video/serve/page.js").read_text()
    assert "about.precision" in page


def test_serve_s_word_reaches_its_predictor(weights, monkeypatch):
    from mvit_video.serve import app

    seen = []
    monkeypatch.setattr(app, "serve", lambda jobs, host, place: seen.append(jobs))
    assert cli.main(["serve", "--checkpoint", str(weights), "--port", "18473", "--precision", "bf16"]) == 0
    [jobs] = seen
    try:
        with types_seen() as types:
            jobs.predictor.scores(torch.zeros(1, 3, 4, 32, 32))
    finally:
        jobs.close()
    assert types == BF16 and jobs.predictor.precision.name == "bf16"


@pytest.mark.integration
def test_the_check_of_an_export(weights, tmp_path, capsys):
    """The file is in fp32 whatever the precision, and must be right in fp32; the report compares with bf16."""
    words = ["export", "--format", "pt2", "--checkpoint", str(weights), "--batch", "1", "--output"]
    texts = []
    for name in ("fp32", "bf16"):
        with types_seen() as seen:
            assert cli.main([*words, str(tmp_path / f"{name}.pt2"), "--precision", name]) == 0
        assert (seen == FP32) == (name == "fp32")
        texts.append(capsys.readouterr().err)
    assert "network's in fp32 " in texts[0] and "network's in bf16 " in texts[1]
    differences = [float(text.partition("logits up to ")[2].partition(" ")[0]) for text in texts]
    assert differences[0] < 1e-4 < differences[1] < 0.05


@pytest.mark.integration
@pytest.mark.parametrize(("training", "validation"), [("fp32", "bf16"), ("bf16", "fp32")])
def test_validation_during_training(few_videos, tmp_path, training, validation):
    words = {
        "train.epochs": 1,
        "train.precision": training,
        "evaluation.precision": validation,
        "train.clips_per_step": 8,
    }
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    with types_seen() as seen:
        result = api.train(settings(few_videos), tmp_path / "run", device="cpu", **words)
    assert {kind for trains, kind in seen if trains} == {kinds[training]}
    assert kinds[validation] in {kind for trains, kind in seen if not trains}
    assert len(result.validations) == 1 and result.config.evaluation.precision == validation


@pytest.mark.parametrize("verb", ["predict", "explain", "evaluate", "features", "serve", "export"])
def test_a_word_that_is_no_precision_is_refused_before_the_weights_are_read(verb, tmp_path, capsys, few_videos):
    words = {
        "predict": ["x.mp4"],
        "explain": ["x.mp4", "--output", str(tmp_path / "out")],
        "evaluate": [str(DEMO), f"data.root={few_videos}", "--output", str(tmp_path / "out")],
        "features": [
            "--annotations",
            str(few_videos / "val.csv"),
            "--root",
            str(few_videos),
            "--output",
            str(tmp_path),
        ],
        "serve": ["--port", "18474"],
        "export": ["--format", "pt2", "--output", str(tmp_path / "x.pt2")],
    }[verb]
    assert cli.main([verb, *words, "--checkpoint", str(tmp_path / "none"), "--precision", "half"]) == 1
    error = capsys.readouterr().err
    assert error == "error: precision 'half' is unknown: choose from auto, fp32, bf16, fp16\n"


def test_a_predictor_leaves_the_network_that_it_is_given_as_it_is(weights):
    full = Predictor.from_checkpoint(weights, "cpu")
    half = Predictor(full.model, full.card, CPU, precision="bf16")
    views = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    assert all(parameter.dtype == torch.float32 for parameter in full.model.parameters())
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = full.model(views).float().softmax(1).numpy()
    assert np.array_equal(half.scores(views), expected)
    with pytest.raises(ConfigError, match="precision 'tf32' is unknown"):
        Predictor(full.model, full.card, CPU, precision="tf32")
