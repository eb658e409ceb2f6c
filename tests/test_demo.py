import json

import pytest
from conftest import REPOSITORY

from mvit_video import cli


@pytest.mark.long
def test_the_demonstration_reaches_ninety_percent_by_motion_alone(tmp_path):
    words = ["demo", str(REPOSITORY / "configs/demo/motion.yaml"), "--output", str(tmp_path / "out")]
    assert cli.main(words) == 0
    result = json.loads((tmp_path / "out/results.json").read_text())
    assert (result["num_videos"], result["num_classes"], result["protocol"]) == (160, 8, "2x3")
    assert result["top1"] >= 90 and result["top1_shuffled_frames"] < 50
    assert result["top1_frame_only"] <= 25 and result["top1_reversed_frames"] < 12.5
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and page.count("<canvas") == 1
    assert "turning counter-clockwise" in page
    assert (tmp_path / "out/model.safetensors").exists()
    assert cli.main(words) == 1, "a second call without --overwrite must refuse"
