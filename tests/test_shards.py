"""--shard and merge: the parts of each verb make what one process writes, and nothing else is taken for a part."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from small_results import DEMO, INPUT, random_checkpoint, settings

from mvit_video import cli
from mvit_video.data.lists.read import read_videos
from mvit_video.errors import ConfigError
from mvit_video.inference import features
from mvit_video.shards import PART, Shard, parse_shard, read_parts, write_part

COUNT = 3


@pytest.fixture(scope="module")
def data(few_videos, tmp_path_factory):
    """8 validation videos, one listed twice, one damaged."""
    root = tmp_path_factory.mktemp("sharded") / "data"
    shutil.copytree(few_videos, root)
    (root / "val.csv").write_text((root / "val.csv").read_text() + "val/00002.mp4 2\n")
    (root / "val/00005.mp4").write_text("not a video")
    return root


@pytest.fixture(scope="module")
def weights(data, tmp_path_factory):
    classes = read_videos("val.csv", str(data)).classes
    return random_checkpoint(tmp_path_factory.mktemp("weights") / "model.safetensors", settings(data), classes)


def words_of(verb, data, weights):
    network = ["--checkpoint", weights, "--device", "cpu"]
    listed = ["--annotations", data / "val.csv", "--root", data]
    return {
        "verify": listed,
        "prepare": [*listed, "--short-side", 32, "--workers", 1],
        "features": [*listed, *network],
        "predict": [*(data / f"val/0000{number}.mp4" for number in range(8)), *network],
        "evaluate": [DEMO, f"data.root={data}", *INPUT, *network, "--protocol", "2x1", "--frames", "shuffled:3"],
    }[verb]


def call(verb, words, output):
    return cli.main([verb, *map(str, words), "--output", str(output)])


@pytest.fixture(scope="module")
def merged(data, weights, tmp_path_factory):
    """Of a verb: its parts, and what they are merged into (in another order than that of the shards)."""
    made = {}

    def make(verb):
        if verb not in made:
            folder = tmp_path_factory.mktemp(verb)
            parts = [folder / f"part{number}" for number in range(1, COUNT + 1)]
            for number, part in enumerate(parts, 1):
                assert call(verb, [*words_of(verb, data, weights), "--shard", f"{number}/{COUNT}"], part) in (0, 1)
            assert call("merge", [parts[1], parts[2], parts[0]], folder / "merged") == 1  # one video is bad
            made[verb] = parts, folder / "merged"
        return made[verb]

    return make


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name[0] != "."}


def test_verify(merged, data, weights, tmp_path):
    _, folder = merged("verify")
    assert (
        cli.main(["verify", *map(str, words_of("verify", data, weights)), "--json", str(tmp_path / "whole.json")]) == 1
    )
    whole, found = (json.loads(path.read_text()) for path in (tmp_path / "whole.json", folder / "verify.json"))
    for result in (whole, found):
        assert all(bad.pop("seconds") >= 0 for bad in result["bad"])
    assert found == whole and [bad["path"] for bad in whole["bad"]] == ["val/00005.mp4"] and whole["num_videos"] == 9


def test_verify_of_lists_with_refused_rows_and_folders(data, tmp_path):
    """Rows without a number, and rows that may not be read, keep their places."""
    root = tmp_path / "data"
    shutil.copytree(data, root)
    (root / "val/00001.mp4").write_text("not a video either")
    for name in ("train", "val"):
        lines = (root / f"{name}.csv").read_text()
        (root / f"{name}.csv").write_text(f"../{name}.mp4 0\n{lines}")
    words = [str(DEMO), f"data.root={root}"]
    assert cli.main(["verify", *words, "--json", str(tmp_path / "whole.json")]) == 1
    parts = [str(tmp_path / f"part{number}") for number in (1, 2)]
    for number, part in enumerate(parts, 1):
        cli.main(["verify", *words, "--shard", f"{number}/2", "--output", part])
    assert cli.main(["merge", *parts, "--output", str(tmp_path / "merged")]) == 1
    whole, found = (json.loads((tmp_path / name).read_text()) for name in ("whole.json", "merged/verify.json"))
    strip = [[(bad["list"], bad["row"], bad["path"], bad["reason"]) for bad in one["bad"]] for one in (whole, found)]
    assert strip[0] == strip[1] and len(strip[0]) == 4


def test_prepare(merged, data, weights, tmp_path):
    parts, folder = merged("prepare")
    assert call("prepare", words_of("prepare", data, weights), tmp_path / "whole") == 1
    assert files(folder) == files(tmp_path / "whole")
    for name in files(folder):
        one, other = ((place / name).read_bytes() for place in (folder, tmp_path / "whole"))
        if name == "manifest.jsonl":  # which says how long each video took
            one, other = (
                [json.loads(line) | {"encoding_seconds": 0} for line in text.splitlines()] for text in (one, other)
            )
        assert one == other, name
    videos = [len(list(part.rglob("*.mp4"))) for part in parts]
    assert sum(videos) == 7 and max(videos) < 4


def test_prepare_goes_on_in_its_own_folder_only(merged, data, weights, tmp_path, capsys):
    part = shutil.copytree(merged("prepare")[0][0], tmp_path / "part")
    words = words_of("prepare", data, weights)
    assert call("prepare", [*words, "--shard", f"1/{COUNT}"], part) == 0
    assert "from an earlier run" in capsys.readouterr().err
    assert call("prepare", [*words, "--shard", f"2/{COUNT}"], part) == 1
    assert f"{part}: contains shard 1/3 of a job: choose another --output for 2/3" in capsys.readouterr().err


def test_features(data, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(features, "MOST_VIDEOS", 2)  # so that there are several files to share out
    words = words_of("features", data, weights)
    assert call("features", words, tmp_path / "whole") == 1
    parts = [tmp_path / f"part{number}" for number in range(1, COUNT + 1)]
    for number, part in enumerate(parts, 1):
        call("features", [*words, "--shard", f"{number}/{COUNT}"], part)
    assert call("merge", parts[::-1], tmp_path / "merged") == 1
    assert files(tmp_path / "merged") == files(tmp_path / "whole")
    for name in files(tmp_path / "whole"):
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert [len(list(part.glob("*.npz"))) for part in parts] == [2, 2, 1]
    capsys.readouterr()
    assert call("features", [*words, "--shard", f"2/{COUNT}"], parts[0]) == 1
    assert "contains features of a different shard (1/3, now 2/3)" in capsys.readouterr().err


def test_predict(merged, data, weights, capsys):
    parts, folder = merged("predict")
    capsys.readouterr()
    assert cli.main(["predict", *map(str, words_of("predict", data, weights)), "--format", "jsonl"]) == 1
    whole = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [each["path"] for each in found] == [each["path"] for each in whole] and len(whole) == 8
    for one, other in zip(found, whole, strict=True):
        assert one.get("error") == other.get("error")
        labels = [[each["label"] for each in result.get("predictions", [])] for result in (one, other)]
        scores = [[each["score"] for each in result.get("predictions", [])] for result in (one, other)]
        assert labels[0] == labels[1] and scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert [len((part / "predictions.jsonl").read_text().splitlines()) for part in parts] == [3, 3, 2]


@pytest.mark.integration
def test_evaluate(merged, data, weights, tmp_path):
    _, folder = merged("evaluate")
    assert call("evaluate", words_of("evaluate", data, weights), tmp_path / "whole") == 0
    assert files(folder) == files(tmp_path / "whole")
    for name in ("per_class.csv", "confusion.csv"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    whole, found = (json.loads((place / "results.json").read_text()) for place in (tmp_path / "whole", folder))
    measured = ("seconds", "clips_per_second", "views_per_second", "processes")
    assert found.keys() == whole.keys() and found["processes"] == COUNT
    same = [name for name in whole if name not in (*measured, "expected_calibration_error")]
    assert {name: found[name] for name in same} == {name: whole[name] for name in same}
    assert found["expected_calibration_error"] == pytest.approx(whole["expected_calibration_error"], abs=1e-6)
    assert [bad["path"] for bad in found["undecodable"]] == ["val/00005.mp4"]
    with np.load(tmp_path / "whole/scores.npz") as one, np.load(folder / "scores.npz") as other:
        assert all(np.array_equal(one[name], other[name]) for name in ("names", "labels", "decoded", "classes"))
        assert np.allclose(one["scores"], other["scores"], atol=1e-6)
    assert "<html" in (folder / "report.html").read_text()


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "a/b", "1", "1/2/3", "-1/4", "1.0/2", ""])
def test_a_shard_out_of_range_is_one_sentence(text):
    with pytest.raises(
        ConfigError, match=f"^--shard {text}: expected I/N with I from 1 to N, such as 1/8 for the first of eight$"
    ):
        parse_shard(text)


@pytest.mark.parametrize("verb", ["verify", "prepare", "features", "predict", "evaluate"])
def test_every_verb_refuses_a_shard_out_of_range_before_it_works(verb, data, tmp_path, capsys):
    words = words_of(verb, data, tmp_path / "none")
    assert call(verb, [*words, "--shard", "4/3"], tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error == "error: --shard 4/3: expected I/N with I from 1 to N, such as 1/8 for the first of eight\n"
    assert not (tmp_path / "out" / PART).exists()


@pytest.mark.parametrize(("count", "total"), [(1, 5), (3, 8), (5, 2)])
def test_shards_take_every_row_once(count, total):
    places = [place for number in range(count) for place in Shard(number + 1, count).places(total)]
    assert sorted(places) == list(range(total))


def parts_in(folder, *shards, **changes):
    for place, shard in enumerate(shards):
        (folder / str(place)).mkdir()
        verb, job = changes.get(f"verb{place}", "verify"), {"list": changes.get(f"list{place}", "a")}
        write_part(folder / str(place), verb, parse_shard(shard), job, {})
    return [folder / str(place) for place in range(len(shards))]


@pytest.mark.parametrize(
    ("shards", "changes", "message"),
    [
        (["1/3", "3/3"], {}, "^shard 2/3 is missing \\(1 of 3 are\\): name all parts$"),
        (["1/2", "1/2"], {}, "1: is shard 1/2, which .*0 is too: name each shard once$"),
        (["1/2", "2/3"], {}, "1: is shard 2/3 of verify, and .*0 is 1/2 of verify: merge parts of one job$"),
        (["1/2", "2/2"], {"verb1": "predict"}, "is shard 2/2 of predict, and .* is 1/2 of verify"),
        (["1/2", "2/2"], {"list1": "b"}, "1: has another list than .*0: merge parts of one job$"),
    ],
)
def test_missing_doubled_and_foreign_parts_are_refused(shards, changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        read_parts(parts_in(tmp_path, *shards, **changes))


@pytest.mark.parametrize("content", [None, "{", "[]", '{"verb": "verify", "shard": "9/2", "job": {}, "content": {}}'])
def test_an_unfinished_or_damaged_part_is_refused(content, tmp_path):
    if content is not None:
        (tmp_path / PART).write_text(content)
    with pytest.raises(
        ConfigError, match="contains no finished part" if content is None else "is not what --shard writes"
    ):
        read_parts([tmp_path])


def test_a_merge_replaces_nothing_unasked(merged, capsys):
    parts, folder = merged("verify")
    assert call("merge", parts, folder) == 1
    assert "choose another --output, or pass --overwrite" in capsys.readouterr().err
    assert call("merge", [*parts, "--overwrite"], folder) == 1
    assert call("merge", parts, parts[0]) == 1
    assert "is itself a part: choose another --output" in capsys.readouterr().err


def test_a_shard_and_its_folder_need_each_other(data, tmp_path, capsys):
    for words in (
        ["verify", "--annotations", "x", "--root", "y", "--shard", "1/2"],
        ["predict", "x.mp4", "--shard", "1/2"],
    ):
        assert cli.main(words) == 1
        assert "must be used together" in capsys.readouterr().err


@pytest.mark.integration
def test_the_slurm_jobs_write_parts_and_join_them(data, tmp_path):
    """One video is bad, which fails no task; a verb that cannot begin does."""
    surroundings = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    jobs, output = REPOSITORY / "tools/slurm", str(tmp_path / "out")
    words = ["verify", "--annotations", str(data / "val.csv"), "--root", str(data)]
    for number in (1, 2):
        array = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": "2"}
        job = ["bash", str(jobs / "shards.sbatch"), output, *words]
        subprocess.run(job, env=surroundings | array, check=True, timeout=100)
    merging = subprocess.run(["bash", str(jobs / "merge.sbatch"), output], env=surroundings, timeout=100)
    assert merging.returncode == 1 and len(json.loads(Path(output, "verify.json").read_text())["bad"]) == 1
    array = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2"}
    job = [
        "bash",
        str(jobs / "shards.sbatch"),
        str(tmp_path / "none"),
        "verify",
        "--annotations",
        "none",
        "--root",
        "none",
    ]
    assert subprocess.run(job, env=surroundings | array, timeout=100).returncode == 1
