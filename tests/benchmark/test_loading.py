import json
import shutil

import pytest
import torch
from numbered_video import read_number, write_numbered

from mvit_video.benchmark import loading as loading_speed
from mvit_video.benchmark.clip_readers import draw_clips, readers_to_compare
from mvit_video.cli import main
from mvit_video.config.load import load_config
from mvit_video.data.lists.read import read_videos
from mvit_video.data.prepare.prepare import prepare_dataset
from mvit_video.errors import ConfigError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two roots, originals and what was prepared from them, with train.csv, and a config of the second."""
    folder = tmp_path_factory.mktemp("speed")
    (folder / "original").mkdir()
    for name in ("a.mp4", "b.mkv"):
        write_numbered(folder / "original" / name, 60, options={"bf": "3", "g": "250"})
    (folder / "original/train.csv").write_text("a.mp4 0\nb.mkv 1\n")
    prepare_dataset("train.csv", str(folder / "original"), folder / "new", 256, 2, print)
    (folder / "config.yaml").write_text(
        "data: {num_frames: 4, sampling_rate: 5, target_fps: 25, short_side: 48, crop_size: [48, 144], workers: 0, "
        f"mean: [0, 0, 0], std: [1, 1, 1], train: train.csv, root: {folder}/new}}\n"
    )
    return folder


def test_the_command_measures_everything_it_promises(folder, capsys):
    words = [
        "--clips",
        "4",
        "--against",
        "pytorchvideo",
        "--originals",
        folder / "original",
        "--json",
        folder / "a.json",
    ]
    assert main(["benchmark-data", *map(str, [folder / "config.yaml", *words, "data.workers=1"])]) == 0
    result = json.loads((folder / "a.json").read_text())
    assert set(result) == {"conditions", "stages", "loader", "feed", "views", "contenders", "ratios"}
    assert (result["conditions"]["videos"], result["conditions"]["clips"]) == (2, 4)
    assert result["loader"]["workers"] == 1 and result["loader"]["clips_per_second"] > 0
    assert result["loader"]["bytes_per_clip"] == 3 * 4 * 48 * 144, "training clips travel as bytes"
    assert result["feed"]["bytes_per_clip"] == 3 * 4 * 48 * 144, "so do views that need no scaling"
    assert result["feed"]["clips_per_second"] > 0 and result["feed"]["clips"] >= 4
    others = ["ours on the originals", "pytorchvideo", "pytorchvideo on the originals"]
    assert list(result["contenders"]) == ["ours", *others] and list(result["ratios"]["reading"]) == others
    for kind, key in (("whole", "milliseconds"), ("reading", "reading_milliseconds")):
        assert min(spread["min"] for spread in result["ratios"][kind].values()) > 0
        assert all(
            figures["milliseconds"]["max"] >= figures[key]["max"] > 0 for figures in result["contenders"].values()
        )
    assert 0 < result["views"]["ratio"]["min"] <= result["views"]["ratio"]["median"] <= result["views"]["ratio"]["max"]
    for figures in (result["views"]["one_view_milliseconds"], result["views"]["five_views_milliseconds"]):
        parts = [figures[stage]["mean"] for stage in ("open", "decode", "convert", "augment")]
        assert min(parts) > 0 and sum(parts) == pytest.approx(figures["total"]["mean"])
    assert result["views"]["decoding_ratio"]["median"] > 0
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert all(word in printed for word in (*loading_speed.STAGES, *others, "5 views of a video against 1"))


def test_stages_add_up_to_the_whole(folder):
    config = load_config(folder / "config.yaml")
    result = loading_speed.time_stages(read_videos("train.csv", config.data.root), config, 6)
    means = {stage: spread["mean"] for stage, spread in result["milliseconds"].items()}
    assert min(means.values()) > 0
    assert sum(means[stage] for stage in loading_speed.STAGES) == pytest.approx(means["total"])
    assert result["clips_per_second_and_core"] == pytest.approx(1000 / means["total"])


def test_all_contenders_give_the_same_view_of_the_same_frames(folder):
    config = load_config(folder / "config.yaml")
    drawn = draw_clips(read_videos("train.csv", config.data.root), config.data, 6)
    runners = readers_to_compare(drawn, config.data, "pytorchvideo", str(folder / "original"))
    for number, clip in enumerate(drawn):
        views = {name: runner.finish(runner.read(number)) for name, runner in runners.items()}
        for view in views.values():
            frames = (view * 255).round().byte().permute(1, 2, 3, 0).numpy()
            numbers = [read_number(frame) for frame in frames]
            assert numbers == [clip.first + step for step in (0, 6, 12, 19)]
        assert torch.allclose(views["ours"], views["pytorchvideo"], atol=1e-5)


def test_what_cannot_be_measured_is_one_sentence(folder, capsys, tmp_path):
    config = str(folder / "config.yaml")
    shutil.copytree(folder / "original", tmp_path / "bad")
    (tmp_path / "bad/a.mp4").write_bytes(b"")
    cases = {
        ("data.train=null",): "data.train is not set: name the list of videos to load",
        (f"data.root={tmp_path}/bad",): "a.mp4: the file is empty (0 bytes): remove bad videos from",
        (
            "--originals",
            "x",
            f"data.root={folder}/original",
        ): "contains no manifest.jsonl: --originals is for folders that",
        ("--json", str(tmp_path / "nowhere/a.json")): "does not exist",
    }
    for words, text in cases.items():
        assert main(["benchmark-data", config, "--clips", "2", *words]) == 1
        assert text in capsys.readouterr().err


def test_clips_are_counted_and_not_videos(folder):
    words = ["data.repeated_aug=2", "train.clips_per_step=4"]
    config = load_config(folder / "config.yaml", words)
    videos = read_videos("train.csv", config.data.root)
    loader = loading_speed.time_loader(videos, config, 4)
    assert loader["clips"] == 2 * 2 * 2  # steps, videos in each, clips of each
    assert loader["clips_per_second"] == pytest.approx(8 / loader["seconds"])
    stages = loading_speed.time_stages(videos, config, 4)
    means = {stage: spread["mean"] for stage, spread in stages["milliseconds"].items()}
    assert sum(means[stage] for stage in loading_speed.STAGES) == pytest.approx(means["total"])


def test_class_names_are_known_by_the_config_as_training_knows_them(folder, tmp_path):
    shutil.copytree(folder / "new", tmp_path / "root")
    (tmp_path / "root/train.csv").write_text("a.mp4 jump\nb.mp4 run\n")
    (tmp_path / "root/names.txt").write_text("jump\nrun\n")
    words = [str(folder / "config.yaml"), "--clips", "2", f"data.root={tmp_path}/root", "data.val=none.csv"]
    assert main(["benchmark-data", *words, "data.classes=names.txt"]) == 0


def test_a_video_without_an_original_is_named(folder, tmp_path, capsys):
    shutil.copytree(folder / "new", tmp_path / "root")
    shutil.copy(tmp_path / "root/a.mp4", tmp_path / "root/more.mp4")
    (tmp_path / "root/train.csv").write_text("more.mp4 0\n")
    words = [str(folder / "config.yaml"), "--clips", "2", f"data.root={tmp_path}/root", "--originals", "x"]
    assert main(["benchmark-data", *words]) == 1
    assert "more.mp4: is not in" in (said := capsys.readouterr().err) and "drop --originals" in said


def test_a_list_that_cannot_be_opened_at_all_is_an_error(tmp_path):
    (tmp_path / "train.csv").write_text("a.mp4 0\n")
    with pytest.raises(ConfigError, match="none of its videos can be opened: run `mvit-video verify`"):
        draw_clips(read_videos("train.csv", str(tmp_path)), load_config_for(tmp_path), 2)


def load_config_for(root):
    (root / "c.yaml").write_text(f"data: {{root: {root}}}\n")
    return load_config(root / "c.yaml").data
