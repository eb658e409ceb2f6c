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
