"""What the benchmark of the time to the first label measures. Nothing here asserts a speed."""

import runpy
import time
from pathlib import Path

import pytest
from numbered_video import write_numbered
from tiny_checkpoint import write_tiny

TOOL = Path(__file__).resolve().parents[1] / "tools/first_label.py"


def test_the_parts_add_up_to_the_total(tmp_path):
    video, checkpoint = write_numbered(tmp_path / "video.mp4", 20), write_tiny(tmp_path / "tiny.safetensors")
    tool = runpy.run_path(str(TOOL))
    parts = tool["parts_of_first_label"](str(video), str(checkpoint), time.monotonic())
    assert parts.pop(tool["CLOCK"]) > 0
    assert parts.pop("total") == pytest.approx(sum(parts.values()))
    assert "torch" in parts and parts["first view"] > 0


@pytest.mark.integration
def test_a_network_of_any_size_is_measured_and_what_cannot_be_is_told_in_one_sentence(tmp_path, monkeypatch):
    video, tool = write_numbered(tmp_path / "video.mp4", 20), runpy.run_path(str(TOOL))
    monkeypatch.setitem(tool["write_random_network"].__globals__, "__file__", str(TOOL))
    assert tool["measure_first_label"](str(video), "mvitv2_nano_8x3", 1)["first view"][0] > 0
    with pytest.raises(SystemExit, match=r"^error: .*missing\.mp4: no such file$"):
        tool["main"]([str(tmp_path / "missing.mp4"), "--model", "mvitv2_nano_8x3"])
    with pytest.raises(SystemExit, match=r"^error: model 'zzz' is unknown"):
        tool["main"]([str(video), "--model", "zzz"])
