"""Other people's networks through the same engine: trained, resumed, evaluated and asked for labels."""

import json

import pytest
from conftest import REPOSITORY

from mvit_video import cli
from mvit_video.engine.metrics_log import read_metrics

LONG = pytest.mark.long


@pytest.mark.integration
@pytest.mark.parametrize(
    "name",
    [
        "pytorchvideo/x3d_s",
        pytest.param("pytorchvideo/slow_r50", marks=LONG),
        pytest.param("pytorchvideo/mvit_base_16x4", marks=LONG),
        pytest.param("torchvision/swin3d_t", marks=LONG),
    ],
)
def test_a_baseline_trains_evaluates_and_predicts(capsys, few_videos, tmp_path, name):
    words = [f"data.root={few_videos}", f"model.name={name}", "data.num_frames=4", "data.crop_size=32"]
    words += ["train.epochs=1", "train.clips_per_step=8", "data.workers=0", "evaluation.protocol=1x1"]
    demo, weights = REPOSITORY / "configs/demo/motion.yaml", tmp_path / "run/model.safetensors"

    def run(*line):
        code = cli.main([str(word) for word in line])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return captured

    words += ["train.deterministic=false"]
    assert f"{name}: " in run("train", demo, *words, "--output", tmp_path / "run", "--device", "cpu").err
    assert len(read_metrics(tmp_path / "run/metrics.jsonl")) == 2
    run("evaluate", demo, *words, "--checkpoint", weights, "--output", tmp_path / "eval")
    assert json.loads((tmp_path / "eval/results.json").read_text())["num_decoded"] == 8
    answer = json.loads(run("predict", few_videos / "val/00000.mp4", "--checkpoint", weights, "--json").out)
    assert len(answer["predictions"]) == 5
    assert "resuming after step 2" in run("train", demo, *words, "--output", tmp_path / "run", "--resume", "auto").err
