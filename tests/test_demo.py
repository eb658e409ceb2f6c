import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY

from mvit_video import cli, demo
from mvit_video.errors import Interrupted


@pytest.mark.long
def test_the_demonstration_reaches_ninety_percent_by_motion_alone(tmp_path):
    words = ["demo", str(REPOSITORY / "configs/demo/motion.yaml"), "--output", str(tmp_path / "out")]
    assert cli.main(words) == 0
    result = json.loads((tmp_path / "out/results.json").read_text())
    assert (result["num_videos"], result["num_classes"], result["protocol"]) == (160, 8, "2x3")
    assert result["top1"] >= 90 and result["top1_shuffled_frames"] < 50
    assert result["top1_frame_only"] <= 25 and result["top1_reversed_frames"] < 12.5
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("<svg") == 4 and page.count("<canvas") == 1
    assert "turning counter-clockwise" in page
    assert (tmp_path / "out/model.safetensors").exists()
    assert cli.main(words) == 1, "a second call without --overwrite must refuse"


@pytest.mark.long
def test_a_demonstration_that_is_asked_to_stop_ends_with_75_and_does_not_speak_of_going_on(tmp_path):
    output, config = tmp_path / "out", str(REPOSITORY / "configs/demo/motion.yaml")
    command = [sys.executable, "-m", "mvit_video", "demo", config, "--output", str(output), "--device", "cpu"]
    program = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    steps = output / "run/metrics.jsonl"  # it is there, empty, before signals are handled
    try:
        while program.poll() is None and not (steps.exists() and steps.read_text()):
            time.sleep(0.2)
        program.send_signal(signal.SIGTERM)
        said = program.communicate(timeout=300)[1]
    finally:
        program.kill()
    assert program.returncode == 75 and "--resume" not in said
    assert said.splitlines()[-1] == "stopped: run demo again with --overwrite to start over"


def test_a_stopped_demonstration_is_a_sentence_and_exit_code_75(tmp_path, monkeypatch, capsys):
    def stopped(*words, **more):
        raise Interrupted("SIGTERM: run the same command with --resume auto to continue")

    monkeypatch.setattr(demo, "write_dataset", lambda *words, **more: None)
    monkeypatch.setattr(demo, "train", stopped)
    words = ["demo", str(REPOSITORY / "configs/demo/motion.yaml"), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main(words) == 75
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == "stopped: run demo again with --overwrite to start over"
    assert "--resume" not in said and "error" not in said
