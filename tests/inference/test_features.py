import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoint import write_tiny

from mvit_video import cli
from mvit_video.data.dataset import ViewDataset
from mvit_video.data.lists.read import read_videos
from mvit_video.data.video.source import VideoFiles
from mvit_video.errors import ConfigError
from mvit_video.inference import features
from mvit_video.inference.features import Task, extract_features
from mvit_video.inference.predictor import Predictor
from mvit_video.model.weights.fingerprint import weights_digest

FILES = ["features-00000.npz", "features-00001.npz", "features-00002.npz", "features.json", "index.csv"]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor.from_checkpoint(write_tiny(tmp_path_factory.mktemp("tiny") / "model.safetensors"), "cpu")


@pytest.fixture
def task(few_videos, monkeypatch):
    """8 videos in shards of 3, 3 and 2: what one shard may hold is the size of three videos' pooled features."""
    monkeypatch.setattr(features, "SHARD_BYTES", 3 * 6 * 32 * 4)
    return Task(read_videos("val.csv", str(few_videos)), str(few_videos), "pooled")


def samples(task, predictor):
    dataset = ViewDataset(task.videos, VideoFiles(task.root), predictor.card.preprocessing, 2, 3, "return")
    return [dataset[row] for row in range(len(dataset))]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def index_of(folder):
    with open(folder / "index.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_pooled_features_are_what_the_head_sees(predictor, task, tmp_path):
    assert extract_features(predictor, task, tmp_path / "out", False) == []
    index = index_of(tmp_path / "out")
    assert len(index) == 8 * 6
    for record, sample in zip(task.videos.records, samples(task, predictor), strict=True):
        rows = [row for row in index if row["video"] == record.path]
        assert [(row["clip"], row["crop"]) for row in rows] == [(c, x) for c in "01" for x in "012"]
        assert {row["label"] for row in rows} == {str(record.label)}
        assert {row["class"] for row in rows} == {task.videos.classes[record.label]}
        with np.load(tmp_path / "out" / rows[0]["shard"]) as shard:
            actual = torch.from_numpy(shard["features"][[int(row["row"]) for row in rows]])
        with torch.inference_mode():
            expected = predictor.model(sample["video"])
            logits = predictor.model.head(actual)
        assert torch.allclose(logits, expected, atol=1e-5) and expected.std() > 0.05


def test_clip_starts_are_seconds_of_the_video(predictor, task, tmp_path):
    extract_features(predictor, task, tmp_path / "out", False)
    starts = [float(row["start"]) for row in index_of(tmp_path / "out")[:6]]
    frames, window = 36, 8 * 2 * 15 / 30  # the demonstration's videos have 36 frames at 15 a second
    assert starts[:3] == [0.0] * 3 and starts[3:] == [pytest.approx(int(frames - window) / 15, abs=1e-3)] * 3


@pytest.mark.parametrize("stage", ["1", "2"])
def test_stage_features_are_the_maps_of_the_backbone(predictor, task, tmp_path, stage):
    task = Task(task.videos, task.root, stage)
    extract_features(predictor, task, tmp_path / "out", False)
    with np.load(tmp_path / "out/features-00000.npz") as shard:
        actual, video = shard["features"], shard["video"]
    with torch.inference_mode():
        expected = predictor.model.forward_features(samples(task, predictor)[0]["video"])[int(stage) - 1]
    assert actual.shape[1:] == expected.shape[1:] and actual.ndim == 5
    assert np.abs(actual[video == 0] - expected.numpy()).max() < 1e-5


def test_an_interrupted_call_goes_on_and_ends_in_the_same_bytes(predictor, task, tmp_path, monkeypatch):
    extract_features(predictor, task, tmp_path / "whole", False)
    assert sorted(contents(tmp_path / "whole")) == [*FILES, "undecodable.csv"]
    made, whole_shard = [], features._Maker.shard

    def killed_at_the_second(maker, records):
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(records)
        return whole_shard(maker, records)

    monkeypatch.setattr(features._Maker, "shard", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        extract_features(predictor, task, tmp_path / "parts", False)
    assert sorted(contents(tmp_path / "parts")) == ["features-00000.npz", "features.json"]

    made.clear()
    monkeypatch.setattr(
        features._Maker, "shard", lambda maker, records: made.append(records) or whole_shard(maker, records)
    )
    extract_features(predictor, task, tmp_path / "parts", False)
    assert [len(records) for records in made] == [3, 2]
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")

    made.clear()
    damaged = tmp_path / "parts/features-00001.npz"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    extract_features(predictor, task, tmp_path / "parts", False)
    assert len(made) == 1 and contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_another_checkpoint_stage_protocol_or_list_is_refused(predictor, task, tmp_path):
    extract_features(predictor, task, tmp_path / "out", False)
    before = contents(tmp_path / "out")
    other = Predictor.from_checkpoint(write_tiny(tmp_path / "other.safetensors", seed=4), "cpu")
    cure = "choose another --output, or pass --overwrite"
    with pytest.raises(ConfigError, match=f"contains features of a different checkpoint .*: {cure}"):
        extract_features(other, task, tmp_path / "out", False)
    with pytest.raises(ConfigError, match="a different stage \\(pooled, now 2\\)"):
        extract_features(predictor, Task(task.videos, task.root, "2"), tmp_path / "out", False)
    more = Predictor(predictor.model, predictor.card, predictor.device, type(predictor.protocol).parse("1x1"))
    with pytest.raises(ConfigError, match="a different protocol \\(2x3, now 1x1\\)"):
        extract_features(more, task, tmp_path / "out", False)
    trained_on = Task(read_videos("train.csv", task.root), task.root, "pooled")
    with pytest.raises(ConfigError, match="a different list"):
        extract_features(predictor, trained_on, tmp_path / "out", False)
    assert contents(tmp_path / "out") == before
    extract_features(more, task, tmp_path / "out", overwrite=True)
    assert json.loads((tmp_path / "out/features.json").read_text())["protocol"] == "1x1"


def test_an_unknown_stage_is_refused(predictor, task, tmp_path):
    with pytest.raises(ConfigError, match="--stage 5: allowed for 'mvitv2_s_16x4' are pooled, 1, 2"):
        extract_features(predictor, Task(task.videos, task.root, "5"), tmp_path / "out", False)


def test_the_verb_lists_bad_videos_and_returns_one(capsys, few_videos, tmp_path):
    checkpoint = write_tiny(tmp_path / "model.safetensors")
    rows = ["val/00000.mp4 0", "bad.mp4 1", "val/00001.mp4 1"]
    for row in rows:
        place = tmp_path / row.split(" ")[0]
        place.parent.mkdir(exist_ok=True)
        place.write_bytes((few_videos / place.relative_to(tmp_path)).read_bytes() if "val" in row else b"no video")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    words = ["features", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "out"), "--device", "cpu"]
    here = ["--annotations", "list.csv", "--root", str(tmp_path), "--protocol", "1x1"]
    for _ in range(2):  # the second call finds the shard, and says the same
        assert cli.main([*words, *here]) == 1
        err = capsys.readouterr().err
        assert "error: bad.mp4: cannot be opened as a video" in err and "features of 2 videos, 1x1 views each" in err
    assert [row["video"] for row in index_of(tmp_path / "out")] == ["val/00000.mp4", "val/00001.mp4"]
    assert "bad.mp4,bad.mp4: cannot be opened" in (tmp_path / "out/undecodable.csv").read_text()

    config = tmp_path / "config.yaml"
    config.write_text(f"data: {{root: {tmp_path}, test: list.csv}}\n")
    assert cli.main([*words, str(config), "--overwrite", "--protocol", "2x1"]) == 1
    assert len(index_of(tmp_path / "out")) == 4
    assert cli.main(words) == 1 and cli.main([*words, str(config), *here]) == 1
    assert capsys.readouterr().err.count("expected either a CONFIG, or --annotations FILE with --root DIR") == 2


def test_a_video_that_could_not_be_decoded_is_tried_again(predictor, few_videos, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.mp4").write_bytes((few_videos / "val/00000.mp4").read_bytes())
    (folder / "list.txt").write_text("a.mp4\nlate.mp4\nb.mp4\n")
    task = Task(read_videos("list.txt", str(folder), need_labels=False), str(folder), "pooled")
    made, shard = [], features._Maker.shard
    monkeypatch.setattr(features._Maker, "shard", lambda maker, records: made.append(1) or shard(maker, records))

    def reasons():
        return extract_features(predictor, task, tmp_path / "out", False)

    assert reasons() == reasons() == [("late.mp4", "late.mp4: no such file")] and len(made) == 1
    (folder / "late.mp4").touch()
    assert reasons() == [("late.mp4", "late.mp4: the file is empty (0 bytes)")], "what is true now"
    (folder / "late.mp4").write_bytes((few_videos / "val/00001.mp4").read_bytes())
    assert reasons() == [] and reasons() == [] and len(made) == 3
    assert len({row["video"] for row in index_of(tmp_path / "out")}) == 3


def test_lists_without_labels_are_fine(capsys, few_videos, tmp_path):
    root = tmp_path / "data"
    (root / "val").mkdir(parents=True)
    (root / "val/00000.mp4").write_bytes((few_videos / "val/00000.mp4").read_bytes())
    (root / "unlabelled.txt").write_text("val/00000.mp4\n")
    words = [
        "--annotations",
        "unlabelled.txt",
        "--root",
        str(root),
        "--output",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    assert cli.main(["features", "--checkpoint", str(write_tiny(tmp_path / "model.safetensors")), *words]) == 0
    assert {(row["video"], row["label"], row["class"]) for row in index_of(tmp_path / "out")} == {
        ("val/00000.mp4", "", "")
    }


def copies(few_videos, folder, names):
    """Videos of the demonstration under these names."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((few_videos / f"val/{number:05}.mp4").read_bytes())


def pictures(folder, names):
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(1, 10):
            Image.fromarray(np.full((32, 40, 3), 9 * number, np.uint8)).save(folder / name / f"{number:05}.jpg")


FORMS = {
    "a list where the user stands": (["--annotations", "mine.csv", "--root", "videos"], ["a/x.mp4"]),
    "class folders": (["--annotations", "videos", "--root", "."], ["videos/a/x.mp4", "videos/b/y.mp4"]),
    "class folders of images": (["--annotations", "frames", "--root", "."], ["frames/a/1", "frames/b/2"]),
    "images of a configuration": (["f.yaml"], ["a/1", "b/2"]),
    "auto": (["auto.yaml"], ["a/x.mp4", "b/y.mp4"]),
    "auto with a list for validation": (["auto.yaml", "data.root=both"], ["val/c/z.mp4"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_features_takes_every_list_that_verify_takes(form, few_videos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    copies(few_videos, tmp_path / "videos", ["a/x.mp4", "b/y.mp4"])
    copies(few_videos, tmp_path / "both", ["val/c/z.mp4", "train/c/t.mp4", "train/d/u.mp4"])
    pictures(tmp_path / "frames", ["a/1", "b/2"])
    (tmp_path / "mine.csv").write_text("a/x.mp4 0\n")
    (tmp_path / "f.yaml").write_text("data: {root: frames, val: ., decoder: frames}\n")
    (tmp_path / "auto.yaml").write_text("data: {root: videos, train: auto}\n")
    words, expected = FORMS[form]
    checkpoint = str(write_tiny(tmp_path / "model.safetensors"))
    command = [
        "features",
        *words,
        "--checkpoint",
        checkpoint,
        "--output",
        "out",
        "--device",
        "cpu",
        "--protocol",
        "1x1",
    ]
    assert cli.main(command) == 0, capsys.readouterr().err
    assert [row["video"] for row in index_of(tmp_path / "out")] == expected
    assert cli.main(["verify", *words]) == 0


def test_rows_that_may_not_be_read_cost_a_line_and_the_others_are_done(few_videos, tmp_path, capsys):
    copies(few_videos, tmp_path, ["a.mp4"])
    (tmp_path / "list.csv").write_text(
        "../b.mp4 0\na.mp4 1\n" + "".join(f"none{number}.mp4 0\n" for number in range(50))
    )
    command = ["features", "--annotations", "list.csv", "--root", str(tmp_path), "--output", str(tmp_path / "out")]
    checkpoint = str(write_tiny(tmp_path / "model.safetensors"))
    assert cli.main([*command, "--checkpoint", checkpoint, "--device", "cpu", "--protocol", "1x1"]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "../b.mp4: leads out of data.root" in errors[0] and "(row 1 of list.csv)" in errors[0]
    assert errors[1] == "error: 50 videos: no such file; such as 'none0.mp4'"
    assert [row["video"] for row in index_of(tmp_path / "out")] == ["a.mp4"]


def test_the_digest_is_that_of_every_number_the_counters_of_batch_norms_included():
    norm = torch.nn.BatchNorm3d(2)
    before = weights_digest(norm)
    assert before == weights_digest(torch.nn.BatchNorm3d(2))
    norm.num_batches_tracked += 1
    assert weights_digest(norm) != before
