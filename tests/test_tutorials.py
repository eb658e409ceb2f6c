"""Every command of the tutorials in docs/, in their order, on a dozen small videos and with a small network."""

import csv
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from class_folders import class_folders
from conftest import REPOSITORY
from tiny_models import randomise

from mvit_video import build_model, cli
from mvit_video.config.schema import InputSettings
from mvit_video.data.lists.class_names import published_classes
from mvit_video.model.weights.zoo import ZOO
from mvit_video.report.outputs import EXPLAIN_FILES, TIMELINE_FILES

PUBLISHED = "mvitv2_s_16x4_k400"
SHORT = [
    "train.epochs=1",
    "train.warmup_epochs=0",
    "train.clips_per_step=4",
    "train.clips_per_pass=null",
    "data.workers=0",
]
NANO = ["model.name=mvitv2_nano_8x3", "model.arguments={}", "data.num_frames=4", "data.sampling_rate=2"]
LITTLE = ["data.short_side=48", "data.crop_size=48", "data.jitter_scales=[52,60]"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder with configs/ and examples/ in it, as after a clone; the commands run there."""
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [""])
    return tmp_path


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Puts a small network's weights where the published ones of S lie after their download."""

    def put(short_side=48, crop_size=48):
        inputs = InputSettings(num_frames=4, sampling_rate=2, short_side=short_side, crop_size=crop_size)
        words = {"url": "http://localhost/s.pyth", "model": "mvitv2_nano_8x3", "preprocessing": inputs}
        monkeypatch.setitem(ZOO, PUBLISHED, ZOO[PUBLISHED].model_copy(update=words))
        monkeypatch.setenv("MVIT_VIDEO_CACHE", str(tmp_path / "cache"))
        (tmp_path / "cache/localhost").mkdir(parents=True)
        model = randomise(build_model("mvitv2_nano_8x3", num_classes=400), 0)
        torch.save({"model_state": model.state_dict()}, tmp_path / "cache/localhost/s.pyth")

    return put


def do(page: str, section: str = "", smaller: list[str] = ()) -> None:
    """What a page (or one section of it) tells to do: files are written, commands and programs run.

    `smaller` are settings put behind the words of commands that train or evaluate.
    """
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    if section:
        text = re.search(rf"^## {section}\n.*?(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)[0]
    blocks = re.findall(r"^```(yaml|sh|python)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert blocks
    for kind, content in blocks:
        if kind == "sh":
            for line in content.splitlines():
                run(shlex.split(line), smaller)
        elif kind == "yaml":
            Path(re.match(r"# (\S+)\n", content)[1]).write_text(content, encoding="utf-8")
        else:
            Path("block.py").write_text(content, encoding="utf-8")
            runpy.run_path("block.py")


def run(words: list[str], smaller: list[str]) -> None:
    program, *words = words
    if program == "python":
        sys.argv[:] = words
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(words[0], run_name="__main__")
        assert ended.value.code == 0
        return
    assert program == "mvit-video"
    settings = smaller if words[0] in ("train", "evaluate") and "--scores" not in words else []
    assert cli.main([*words, *settings]) == 0, words


def result(folder: str) -> dict:
    return json.loads(Path(folder, "results.json").read_text())


def write_kinetics(videos: Path) -> None:
    """Eight training and three validation videos of two classes, under the names and lists that the dataset has."""
    for split, count in (("train", 8), ("val", 3)):
        rows = [["label", "youtube_id", "time_start", "time_end", "split"]]
        for number in range(count):
            label, name = ("abseiling", "zumba")[number % 2], f"{split}{number:06d}x"
            file = Path("kinetics400", split, label, f"{name}_000003_000013.mp4")
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(videos / f"train/{number:05d}.mp4", file)
            rows.append([label, name, "3", "13", split])
        Path("kinetics400/annotations").mkdir(exist_ok=True)
        with Path(f"kinetics400/annotations/{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)


@pytest.mark.integration
def test_training_on_kinetics(place, publish, few_videos, capsys):
    publish(short_side=256, crop_size=224)
    write_kinetics(few_videos)
    do("kinetics400.md", smaller=[*SHORT, *NANO])
    said = capsys.readouterr()
    assert "0 bad videos of 11" in said.err and "B − A" in said.out
    assert len(list(Path("kinetics400_256").rglob("*.mp4"))) == 11
    for folder, name in (("runs/k400_s/evaluation", "runs/k400_s/model.safetensors"), ("runs/published", PUBLISHED)):
        found = result(folder)
        assert (found["protocol"], found["num_videos"], found["num_classes"]) == ("kinetics-5x1", 3, 400)
        assert found["checkpoint"]["path"] == name and len(found["checkpoint"]["sha256"]) == 64
        assert tuple(found["checkpoint"]["card"]["classes"]) == published_classes("kinetics400")


@pytest.mark.integration
def test_fine_tuning_on_own_videos(place, publish, few_videos):
    publish()
    class_folders(few_videos, place / "my_videos")
    shutil.copy(few_videos / "long.mp4", "new_video.mp4")
    do("finetuning.md", "Your own videos", [*SHORT, "evaluation.protocol=1x1"])
    assert (
        result("my_results")["num_classes"] == 8 and result("my_results")["top1"] == result("my_run/evaluation")["top1"]
    )


@pytest.mark.integration
def test_fine_tuning_on_something_something(place, publish, few_videos):
    publish()
    templates = published_classes("ssv2")[:2]
    Path("ssv2/labels").mkdir(parents=True)
    for split, count in (("train", 8), ("validation", 4)):
        rows = [{"id": f"{split}{number}", "label": "", "template": templates[number % 2]} for number in range(count)]
        Path(f"ssv2/labels/something-something-v2-{split}.json").write_text(json.dumps(rows))
        for number in range(count):
            shutil.copy(few_videos / f"train/{number:05d}.mp4", f"ssv2/{split}{number}.mp4")
    do("finetuning.md", "Something-Something v2", [*SHORT, *NANO, *LITTLE])
    found = result("runs/ssv2_s/evaluation")
    assert (found["protocol"], found["num_videos"], found["num_classes"]) == ("ssv2-1x3", 4, 174)
    assert result("runs/ssv2_s/reversed")["frames"] == "reversed"


@pytest.mark.integration
def test_labelling_videos(place, publish, few_videos, capsys):
    publish()
    Path("clips").mkdir()
    for number, name in enumerate(("one.mp4", "two.mp4")):
        shutil.copy(few_videos / f"val/{number:05d}.mp4", Path("clips", name))
    Path("clips/list.csv").write_text("one.mp4\ntwo.mp4\n")
    shutil.copy(few_videos / "long.mp4", "match.mp4")
    do("labels.md")
    assert {path.name for path in Path("labelled").iterdir()} == set(TIMELINE_FILES)
    assert {path.name for path in Path("why").iterdir()} == set(EXPLAIN_FILES)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [Path(line["path"]).name for line in lines] == ["one.mp4", "two.mp4", "match.mp4"]
    with np.load("features/features-00000.npz") as shard:
        assert shard["features"].shape == (10, 128) and shard["names"].tolist() == ["one.mp4", "two.mp4"]
