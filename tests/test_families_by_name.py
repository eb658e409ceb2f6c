"""Every family through the commands by its name: train, evaluate, predict, explain, features, export and benchmark."""

import json

import numpy as np
import pytest
from conftest import REPOSITORY

from mvit_video import cli
from mvit_video.engine.metrics_log import read_metrics

pytestmark = pytest.mark.integration
STAGES = dict(depths="[1,1]", embed_dims="[32,64]", num_heads="[1,2]", mlp_ratios="[2,2]", sr_ratios="[4,2]")
FAMILIES = {
    "cswin_t_16x4": dict(depths="[1,1,1]", embed_dim="16", num_heads="[2,2,4]", stripe_widths="[1,2,2]"),
    "maxvit_t_16x4": dict(depths="[1,1]", embed_dims="[32,64]", stem_width="8", window="2", grid="4"),
    "pvt_v2_b1_16x4": STAGES,
    "twins_svt_s_16x4": STAGES | dict(windows="[4,4]"),
    "mvitv2_nano_8x3": dict(token_mixing="hwin", positions="lepe"),
    "torchvision/swin3d_t": {},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_goes_through_every_command(name, few_videos, tmp_path, capsys):
    arguments = [f"model.arguments.{key}={value}" for key, value in FAMILIES[name].items()]
    size = ["data.num_frames=4", "data.crop_size=32"]
    words = [f"data.root={few_videos}", f"model.name={name}", "data.workers=0", *size, *arguments]
    words += ["train.epochs=1", "train.clips_per_step=8", "train.deterministic=false", "evaluation.protocol=1x1"]
    demo, weights = REPOSITORY / "configs/demo/motion.yaml", tmp_path / "run/model.safetensors"
    video, given = few_videos / "val/00000.mp4", ["--checkpoint", weights, "--device", "cpu"]

    def run(*line, code=0):
        assert cli.main([str(word) for word in line]) == code, capsys.readouterr().err
        return capsys.readouterr()

    run("train", demo, *words, "--output", tmp_path / "run", "--device", "cpu")
    assert len(read_metrics(tmp_path / "run/metrics.jsonl")) == 2
    run("evaluate", demo, *words, *given, "--output", tmp_path / "eval")
    assert json.loads((tmp_path / "eval/results.json").read_text())["num_decoded"] == 8
    assert len(json.loads(run("predict", video, *given, "--json").out)["predictions"]) == 5
    run("explain", video, *given, "--output", tmp_path / "explained")
    assert (tmp_path / "explained/explain.png").exists()

    features = ["features", demo, f"data.root={few_videos}", *given, "--output"]
    if name.startswith("torchvision/"):
        assert "features" in run(*features, tmp_path / "pooled", code=1).err
    else:
        run(*features, tmp_path / "pooled")
        run(*features, tmp_path / "maps", "--stage", "2")
        shapes = [np.load(tmp_path / kind / "features-00000.npz")["features"].shape for kind in ("pooled", "maps")]
        assert [len(shape) for shape in shapes] == [2, 5] and all(shape[0] == 8 for shape in shapes)
    for form in ("onnx", "pt2"):
        said = run("export", *given[:2], "--format", form, "--batch", "1", "--output", tmp_path / f"network.{form}").err
        assert "the same label for 100% of random clips" in said

    record = tmp_path / "benchmark.json"
    run("benchmark", "--model", name, *size, *arguments, "--repeats", 1, "--device", "cpu", "--json", record)
    (network,) = json.loads(record.read_text())["networks"]
    assert network["input"] == [1, 3, 4, 32, 32] and {*network["arguments"]} == {*FAMILIES[name]}


def test_a_benchmark_takes_the_settings_of_its_networks_and_no_others(capsys):
    assert cli.main(["benchmark", "--model", "mvitv2_nano_8x3", "data.crop_siz=32"]) == 1
    said = capsys.readouterr().err
    assert "'data.crop_siz'" in said and "did you mean 'data.crop_size'" in said and said.count("\n") == 1
    words = ["--model", "mvitv2_nano_8x3", "model.arguments.token_mixing=windw 2x2x2", "--device", "cpu"]
    assert cli.main(["benchmark", *words]) == 1
    assert "did you mean" in capsys.readouterr().err
