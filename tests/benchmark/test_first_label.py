"""What the benchmark of the time to the first label measures. Nothing here asserts a speed."""

import time

import pytest
from numbered_video import write_numbered
from tiny_checkpoint import write_tiny

from mvit_video.benchmark.first_label import CLOCK, parts_of_first_label


def test_the_parts_add_up_to_the_total(tmp_path):
    video, checkpoint = write_numbered(tmp_path / "video.mp4", 20), write_tiny(tmp_path / "tiny.safetensors")
    parts = parts_of_first_label(str(video), str(checkpoint), time.monotonic())
    assert parts.pop(CLOCK) > 0
    assert parts.pop("total") == pytest.approx(sum(parts.values()))
    assert "torch" in parts and parts["first view"] > 0
