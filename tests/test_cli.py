"""The commands as a user runs them: what they print, leave and return, and what bad input gets."""

import errno
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from shared_files import shared
from tiny_checkpoint import write_tiny

from mvit_video import cli, paths
from mvit_video.config.load import load_config

DEMO = str(REPOSITORY / "configs/demo/motion.yaml")


def run(capsys, *words):
    code = cli.main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_train_evaluate_predict_from_the_command_line(capsys, few_videos, tmp_path):
    words = [f"data.root={few_videos}", "train.epochs=2", "train.clips_per_step=8"]
    code, _, err = run(capsys, "train", DEMO, "--output", tmp_path / "run", "--device", "cpu", *words)
    assert code == 0 and "321,544 parameters, 8 classes; 16 training videos, 2 epochs of 2 steps of 8 clips" in err
    weights = tmp_path / "run/model.safetensors"
    assert weights.exists() and len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 4

    code, _, err = run(
        capsys, "evaluate", DEMO, words[0], "--checkpoint", weights, "--protocol", "1x1", "--output", tmp_path / "eval"
    )
    result = json.loads((tmp_path / "eval/results.json").read_text())
    assert code == 0 and result["num_videos"] == 8 and result["protocol"] == "1x1"
    assert f"top-1 {result['top1']:.2f} %" in err

    code, out, _ = run(capsys, "predict", few_videos / "val/00000.mp4", "--checkpoint", weights, "--json", "--top", 3)
    answer = json.loads(out)
    assert code == 0 and answer["path"].endswith("00000.mp4") and len(answer["predictions"]) == 3
    assert set(answer["predictions"][0]) == {"label", "score"}

    code, out, _ = run(capsys, "predict", few_videos / "val/00000.mp4", "--checkpoint", weights)
    assert code == 0 and answer["predictions"][0]["label"] in out and f"{answer['predictions'][0]['score']:.3f}" in out

    code, _, err = run(capsys, "train", DEMO, "--output", tmp_path / "run", *words)
    assert code == 1 and "already contains config.yaml of another run" in err
    code, _, err = run(capsys, "train", DEMO, "--output", tmp_path / "run", "--resume", "auto", *words)
    assert code == 0 and "resuming after step 4" in err
    code, _, err = run(capsys, "evaluate", DEMO, words[0], "--checkpoint", weights, "--output", tmp_path / "eval")
    assert code == 1 and "already contains results.json" in err


@pytest.mark.integration
def test_a_folder_of_class_folders_trains_with_the_shipped_config(capsys, few_videos, tmp_path):
    classes = (few_videos / "classes.txt").read_text().splitlines()
    for split in ("train", "val"):
        for row in (few_videos / f"{split}.csv").read_text().splitlines():
            path, label = row.split(" ")
            (tmp_path / split / classes[int(label)]).mkdir(parents=True, exist_ok=True)
            shutil.copy(few_videos / path, tmp_path / split / classes[int(label)])
    words = [f"data.root={tmp_path}", "train.epochs=1", "data.workers=0", "data.crop_size=32", "data.short_side=40"]
    words += ["train.clips_per_step=16", f"data.cache={tmp_path / 'frames'}"]
    code, _, err = run(capsys, "train", "small", *words, "--output", tmp_path / "run", "--device", "cpu")
    assert code == 0 and "8 classes; 16 training videos, 1 epoch of 1 step of 16 clips" in err
    video = next((tmp_path / "val").rglob("*.mp4"))
    code, out, _ = run(
        capsys, "predict", video, "--checkpoint", tmp_path / "run/model.safetensors", "--json", "--top", 8
    )
    assert code == 0 and {answer["label"] for answer in json.loads(out)["predictions"]} == set(classes)


def test_real_videos_get_labels_and_the_damaged_one_a_line(capsys, small_run):
    folder = shared("videos")
    files = sorted(str(path) for path in folder.iterdir() if path.suffix in (".mp4", ".mkv"))
    code, out, err = run(capsys, "predict", *files, "--checkpoint", small_run.weights, "--json")
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and [answer["path"] for answer in answers] == files
    failed = [answer for answer in answers if "error" in answer]
    assert len(failed) == 1 and failed[0]["path"].endswith("corrupted.mp4")
    assert "corrupted.mp4: frame 32 of 50 is damaged" in failed[0]["error"]

    code, out, err = run(capsys, "predict", *files, "--checkpoint", small_run.weights)
    assert code == 1 and len(err.splitlines()) == 1 and err.startswith("error: ") and "corrupted.mp4" in err
    assert out.count("score") == len(files) - 1


@pytest.mark.integration
def test_demo_data_writes_a_dataset(capsys, tmp_path):
    code, _, err = run(capsys, "demo-data", "--output", tmp_path / "d", "--train", 3, "--val", 2)
    assert code == 0 and "3 training and 2 validation videos are in" in err
    assert len((tmp_path / "d/train.csv").read_text().splitlines()) == 3
    code, _, err = run(capsys, "demo-data", "--output", tmp_path / "d", "--train", 3)
    assert code == 1 and "already contains train of another run" in err
    code, _, _ = run(capsys, "demo-data", "--output", tmp_path / "d", "--train", 2, "--val", 1, "--overwrite")
    assert code == 0 and len((tmp_path / "d/train.csv").read_text().splitlines()) == 2


def test_settings_are_listed_with_their_sentences(capsys):
    code, out, _ = run(capsys, "settings")
    assert code == 0
    assert "data.sampling_rate = 4\n    Distance between the frames of a dense clip" in out


@pytest.mark.parametrize("file", sorted((REPOSITORY / "tools").glob("*.py")), ids=lambda file: file.stem)
def test_worker_processes_that_import_a_file_of_tools_again_start_nothing(file):
    assert callable(runpy.run_path(str(file), run_name="__mp_main__")["main"])


def bad_predict(small_run, path):
    return ["predict", path, "--checkpoint", small_run.weights]


def check_one_line(code, err, message):
    assert code == 1
    assert err.count("\n") == 1 and err.startswith("error: ") and "Traceback" not in err
    assert message in err


def test_files_that_are_no_videos_cost_one_line_each(capsys, small_run, tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("hello")
    for name, message in (
        ("nowhere.mp4", "nowhere.mp4: no such file"),
        ("empty.mp4", "empty.mp4: the file is empty (0 bytes)"),
        ("text.mp4", "text.mp4: cannot be opened as a video"),
    ):
        code, out, err = run(capsys, *bad_predict(small_run, tmp_path / name))
        check_one_line(code, err, message)
        assert out == ""


def test_wrong_checkpoints_cost_one_line(capsys, few_videos, tmp_path):
    (tmp_path / "text.safetensors").write_text("hello")
    for name, message in (("nowhere", "no such file"), ("text", "is not a complete safetensors file")):
        words = ["predict", few_videos / "val/00000.mp4", "--checkpoint", tmp_path / f"{name}.safetensors"]
        code, _, err = run(capsys, *words)
        check_one_line(code, err, f"{name}.safetensors: {message}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.num_frame=8"], "'data.num_frame' is not a setting (did you mean 'data.num_frames'?)"),
        (["model.name=mvitv2_x"], "model 'mvitv2_x' is unknown"),
        (["model.arguments={depthes: [1]}"], "model argument 'depthes' is unknown (did you mean 'depths'?)"),
        (["train.clips_per_step=17"], "train.clips_per_step = 17 is more than the 16 training videos: lower it"),
        (["data.train=nowhere.csv"], "nowhere.csv: no such file"),
        (["data.root=nowhere"], "nowhere/train.csv: no such file"),
        (["data.classes=none.txt"], "none.txt: no such file"),
    ],
)
def test_wrong_settings_cost_one_line(capsys, few_videos, tmp_path, words, message):
    root = [] if words[0].startswith("data.root") else [f"data.root={few_videos}"]
    code, _, err = run(capsys, "train", DEMO, *root, "train.clips_per_step=8", *words, "--output", tmp_path / "run")
    check_one_line(code, err, message)


def test_missing_videos_stop_an_evaluation_unless_they_are_allowed(capsys, small_run, few_videos, tmp_path):
    shutil.copytree(few_videos, tmp_path / "data")
    (tmp_path / "data/val/00005.mp4").unlink()
    words = ["evaluate", DEMO, f"data.root={tmp_path / 'data'}", "--checkpoint", small_run.weights, "--protocol", "1x1"]
    words += ["--output", tmp_path / "eval"]
    code, _, err = run(capsys, *words)
    check_one_line(
        code, err, "1 of 8 videos are missing, the first is 'val/00005.mp4' (row 6 of val.csv): check data.root"
    )
    code, _, err = run(capsys, *words, "--allow-missing")
    result = json.loads((tmp_path / "eval/results.json").read_text())
    assert code == 0 and "they count as wrong, see missing.txt" in " ".join(err.split())
    assert result["num_videos"] == 8 and [bad["path"] for bad in result["undecodable"]] == ["val/00005.mp4"]
    assert (tmp_path / "eval/missing.txt").read_text() == "val/00005.mp4\trow 6 of val.csv\n"


@pytest.mark.integration
def test_allow_missing_is_the_setting_of_that_name(capsys, few_videos, tmp_path):
    shutil.copytree(few_videos, tmp_path / "data")
    (tmp_path / "data/train/00005.mp4").unlink()
    words = [f"data.root={tmp_path / 'data'}", "train.epochs=1", "train.clips_per_step=8", "--output", tmp_path / "run"]
    code, _, err = run(capsys, "train", DEMO, *words, "--allow-missing", "--device", "cpu")
    assert code == 0 and "15 training videos" in err
    assert load_config(tmp_path / "run/config.yaml").data.allow_missing is True


def test_a_wrong_row_costs_one_line_that_names_it(capsys, few_videos, tmp_path):
    for content, message in (
        ("a.mp4 0\nb.mp4 swim\n", "row 2 has the label 'swim'"),
        ("a.mp4\n", "row 1 is 'a.mp4', expected"),
    ):
        shutil.copytree(few_videos, tmp_path / "data", dirs_exist_ok=True)
        (tmp_path / "data/train.csv").write_text(content)
        code, _, err = run(capsys, "train", DEMO, f"data.root={tmp_path / 'data'}", "--output", tmp_path / "run")
        check_one_line(code, err, message)


def test_an_output_that_cannot_be_made_costs_one_line(capsys, few_videos, tmp_path):
    (tmp_path / "file").touch()
    for output, message in (
        ("file", "file: is a file, expected a folder"),
        ("file/run", "cannot be written to (Not a directory): choose another --output"),
    ):
        words = [f"data.root={few_videos}", "train.clips_per_step=8"]
        code, _, err = run(capsys, "train", DEMO, *words, "--output", tmp_path / output)
        check_one_line(code, err, message)


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "make room, or write to another place (--output, --json)"),
        (errno.EROFS, "write to another place (--output, --json)"),
        (errno.EACCES, "change its permissions, or write to another place (--output, --json)"),
    ],
)
def test_a_file_that_cannot_be_written_is_told_with_the_cure(capsys, few_videos, monkeypatch, number, cure):
    def refuse(*_):
        raise OSError(number, os.strerror(number), "bad.json")

    monkeypatch.setattr(paths, "write_json", refuse)
    words = ["--annotations", "train.csv", "--root", few_videos, "--json", "bad.json"]
    code, _, err = run(capsys, "verify", *words)
    assert code == 1 and err.endswith(f"error: bad.json: {os.strerror(number)}: {cure}\n")


@pytest.mark.integration
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_behind_standard_output_is_named():
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "mvit_video", "models"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "error: standard output: No space left on device\n")


def test_debug_shows_the_traceback(few_videos):
    with pytest.raises(Exception, match="no such file"):
        cli.main(["train", "nowhere.yaml", "--output", "x", "--debug"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (["train", DEMO], "the following arguments are required: --output"),
        (["train", DEMO, "--output", "x", "--speed"], "unrecognized arguments: --speed"),
        (
            ["train", DEMO, "--output", "x", "--resume", "auto", "--overwrite"],
            "--resume and --overwrite cannot be combined",
        ),
        (["predict", "a.mp4", "--checkpoint", "c", "--top", "0"], "'0' is not a whole number from 1"),
    ],
)
def test_wrong_usage_exits_with_two(capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "first_line"),
    [
        ("train", "usage: mvit-video train"),
        ("evaluate", "usage: mvit-video evaluate"),
        ("infer", "usage: mvit-video predict"),
    ],
)
def test_the_tools_are_the_verbs(script, first_line):
    words = [sys.executable, str(REPOSITORY / f"tools/{script}.py"), "--help"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.startswith(first_line)


@pytest.mark.integration
def test_the_agreement_tool_compares_both_forms_of_attention_with_fp32(few_videos, tmp_path):
    checkpoint = write_tiny(tmp_path / "tiny.safetensors")
    words = [sys.executable, str(REPOSITORY / "tools/attention_agreement.py"), checkpoint, "val.csv", few_videos]
    lines = subprocess.run([*map(str, words)], capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["8 clips; fp32", "bf16, fused", "bf16, blocks"]


@pytest.mark.integration
def test_the_package_runs_as_a_module():
    words = [sys.executable, "-m", "mvit_video", "models"]
    assert "mvitv2_s_16x4" in subprocess.run(words, capture_output=True, text=True, check=True).stdout
