"""What a run survives: kills at any moment, signals, full disks; always with the bits of the run that was left alone."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from run_records import numbers_of_steps
from two_processes import environment

from mvit_video.cli import main
from mvit_video.engine.checkpoint import newest_state
from mvit_video.engine.hooks.signals import StopRequest
from mvit_video.engine.metrics_log import MetricsLog, read_metrics
from mvit_video.engine.trainer import Trainer
from mvit_video.errors import TrainingError
from mvit_video.evaluation.evaluate import Evaluator

KILLED = REPOSITORY / "tests/killed_program.py"
SETTINGS = (  # 8 steps, states after 3, 4, 6 and 8, validation after 4 and 8
    "train.epochs=2", "train.clips_per_step=4", "train.checkpoint_every_steps=3", "train.validate_every_epochs=1",
    "train.ema_decay=0.9", "train.warmup_epochs=0", "train.keep_checkpoints=1", "data.workers=0",
    "data.crop_size=24", "data.short_side=24",
    "model.arguments={depths: [1, 1], drop_path_rate: 0.2, dropout_rate: 0.3}",
)  # fmt: skip
RENAMES = 5  # of each save: three networks' files, state.json, then the folder itself
MOMENTS = [
    *(("os.rename", count) for count in (1, 4, 5, 8, 9, 10, 13, 17)),
    *(("os.remove", count) for count in (1, 2, 4, 6)),  # of old states
    *(("shutil.rmtree", count) for count in (1, 3, 5, 8)),
]
FILES = ("validation.jsonl", "model.safetensors", "model_ema.safetensors", "best.json")


def words(data, run, *more):
    config = str(REPOSITORY / "configs/demo/motion.yaml")
    return ["train", config, f"data.root={data}", *SETTINGS, *more, "--device", "cpu", "--output", str(run)]


def hit(name, event, count, command, **options):
    """The finished process of a command that a signal hits."""
    program = [sys.executable, str(KILLED), name, event, str(count), *command]
    return subprocess.run(program, capture_output=True, text=True, timeout=240, env=environment(), **options)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the processes that are hit: sums have the same order then."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(few_videos, tmp_path_factory):
    """The run that was left alone."""
    run = tmp_path_factory.mktemp("survival") / "whole"
    assert main(words(few_videos, run)) == 0
    return run


def the_same(run, whole):
    assert numbers_of_steps(run / "metrics.jsonl") == numbers_of_steps(whole / "metrics.jsonl")
    for name in FILES:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    states = [sorted(path.name for path in (folder / "checkpoints").iterdir()) for folder in (run, whole)]
    assert states[0] == states[1]
    for name in states[0]:
        first, second = (folder / "checkpoints" / name for folder in (run, whole))
        for file in second.glob("*.safetensors"):
            assert (first / file.name).read_bytes() == file.read_bytes(), file
        contents = [json.loads((folder / "state.json").read_text()) for folder in (first, second)]
        for content in contents:
            content["config"]["data"].pop("workers")
            content.pop("digest")  # of what is compared here, and of the number of workers
        assert contents[0] == contents[1]
    return True


@pytest.mark.integration
def test_a_run_that_was_killed_while_it_saved_goes_on_bit_for_bit(whole, few_videos, tmp_path):
    """Between two files of its second state."""
    command = words(few_videos, tmp_path / "run", "--resume", "auto")
    assert hit("SIGKILL", "os.rename", RENAMES + 3, command).returncode == -signal.SIGKILL
    names = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert names == [".step_00000004.partial", "step_00000003"]
    assert main(command) == 0 and the_same(tmp_path / "run", whole)


@pytest.mark.integration
def test_the_best_state_is_kept_beside_the_newest_and_named(whole):
    records = {record["step"]: record["ema_top1"] for record in read_metrics(whole / "validation.jsonl")}
    best = json.loads((whole / "best.json").read_text())
    step = max(records, key=lambda step: (records[step], -step))
    assert sorted(records) == [4, 8]
    assert best == {"state": f"checkpoints/step_{step:08d}", "step": step, "metric": "ema_top1", "value": records[step]}
    assert (whole / best["state"] / "state.json").exists() and (whole / "checkpoints/step_00000008").exists()


def test_a_state_says_of_which_seed_config_and_environment_it_is(whole):
    content = json.loads((whole / "checkpoints/step_00000008/state.json").read_text())
    assert content["seed"] == 0 and content["config"]["train"]["checkpoint_every_steps"] == 3
    found = content["environment"]
    assert (found["torch"], found["device"], found["processes"]) == (torch.__version__, "cpu", 1)


def test_a_signal_ends_the_run_after_its_step_with_its_state_and_code(few_videos, tmp_path, monkeypatch, capsys):
    before, handler, run = Trainer._pass, signal.getsignal(signal.SIGTERM), tmp_path / "run"
    monkeypatch.setattr(Trainer, "_pass", lambda *words: (os.kill(os.getpid(), signal.SIGTERM), before(*words))[1])
    assert main(words(few_videos, run)) == 75 and signal.getsignal(signal.SIGTERM) is handler
    text = capsys.readouterr().err
    assert (
        f"stopped by SIGTERM after step 1, whose state is in {run / 'checkpoints'}: run the same command with --res"
        in text
    )
    assert newest_state(run)[0].step == len(read_metrics(run / "metrics.jsonl")) == 1


@pytest.mark.integration
def test_a_signal_in_a_validation_ends_the_run_after_it_also_in_one_made_up_for_and_in_the_last(
    whole, few_videos, tmp_path, monkeypatch
):
    before, run = Evaluator.scores, tmp_path / "run"
    command = words(few_videos, run, "--resume", "auto")
    monkeypatch.setattr(Evaluator, "scores", lambda *words, **how: (os.kill(os.getpid(), 15), before(*words, **how))[1])
    assert main(command) == 75 and [record["step"] for record in read_metrics(run / "validation.jsonl")] == [4]
    (run / "validation.jsonl").unlink()
    assert main(command) == 75 and [record["step"] for record in read_metrics(run / "validation.jsonl")] == [4]
    assert newest_state(run)[0].step == len(read_metrics(run / "metrics.jsonl")) == 4
    assert main(command) == 75 and [record["step"] for record in read_metrics(run / "validation.jsonl")] == [4, 8]
    assert not (run / "model.safetensors").exists()
    monkeypatch.undo()
    assert main(command) == 0 and the_same(run, whole)


def test_a_second_interrupt_counts_whatever_signal_came_between(capfd):
    request = StopRequest()
    request(signal.SIGINT, None)
    request(signal.SIGTERM, None)
    with pytest.raises(KeyboardInterrupt):
        request(signal.SIGINT, None)
    assert "SIGTERM: finishing the current step or validation" in capfd.readouterr().err


def test_records_that_the_disk_does_not_take_are_an_error(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    told = r"metrics.jsonl: cannot be written \(No space left on device\): make room, then"
    with Path("/dev/full").open("ab", buffering=0) as log._file, pytest.raises(TrainingError, match=told):
        log.write(step=1)


@pytest.mark.long
@pytest.mark.parametrize(("event", "count"), MOMENTS)
def test_a_kill_at_any_moment_of_a_save_leaves_what_the_run_needs(whole, few_videos, tmp_path, event, count):
    command = words(few_videos, tmp_path / "run", "--resume", "auto")
    done = hit("SIGKILL", event, count, command)
    assert done.returncode == -signal.SIGKILL, done.stderr
    if (tmp_path / "run/checkpoints").exists() and event != "os.rename":
        assert newest_state(tmp_path / "run")[0] is not None
    assert main(command) == 0 and the_same(tmp_path / "run", whole)


@pytest.mark.long
@pytest.mark.parametrize("steps", [(2,), (4,), (7,), (2, 1), (4, 1, 1), (1, 3, 4)])
def test_kills_in_steps_also_twice_in_an_epoch_change_no_bit(whole, few_videos, tmp_path, steps):
    command = words(few_videos, tmp_path / "run", "--resume", "auto")
    for step in steps:
        assert hit("SIGKILL", "step", step, command).returncode == -signal.SIGKILL
    assert main(command) == 0 and the_same(tmp_path / "run", whole)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_kills_from_outside_at_random_moments_change_no_bit(whole, few_videos, tmp_path, seed):
    """With two loader processes, which must not live on."""
    command = words(few_videos, tmp_path / "run", "--resume", "auto", "data.workers=2")
    draw = random.Random(seed)
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-m", "mvit_video", *command], env=environment(), stderr=-3)
        log, lines = tmp_path / "run/metrics.jsonl", draw.randrange(1, 7)
        while process.poll() is None and not (log.exists() and len(read_metrics(log)) >= lines):
            time.sleep(0.002)
        time.sleep(draw.random() / 20)
        process.kill()
        process.wait()
    assert main(command) == 0 and the_same(tmp_path / "run", whole)


@pytest.mark.long
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_run_asked_to_stop_finishes_its_step_saves_and_exits_with_75(whole, few_videos, tmp_path, name):
    run = tmp_path / "run"
    command = words(few_videos, run, "--resume", "auto")
    done = hit(name, "step", 2, command)
    assert done.returncode == 75
    assert (
        f"stopped by {name} after step 2, whose state is in {run / 'checkpoints'}: run the same command with"
        in done.stderr
    )
    assert "error" not in done.stderr and "Traceback" not in done.stderr
    assert newest_state(run)[0].step == len(read_metrics(run / "metrics.jsonl")) == 2
    assert not (run / "model.safetensors").exists()
    assert hit(name, "step", 2, command).returncode == 75  # at the end of an epoch: its validation is made up for
    assert newest_state(run)[0].step == 4 and not read_metrics(run / "validation.jsonl")
    assert main(command) == 0 and the_same(run, whole)


@pytest.mark.long
def test_a_second_interrupt_ends_the_run_at_once(few_videos, tmp_path):
    """Sent while a step hangs, so that the first one has no end."""
    script = (
        "import os, signal, sys, time\n"
        "from mvit_video.engine.trainer import Trainer\n"
        "def hang(*_):\n"
        "    os.kill(os.getpid(), signal.SIGINT); time.sleep(0.1); os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
        "Trainer._pass = hang\n"
        "from mvit_video.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    start = [sys.executable, "-c", script, *words(few_videos, tmp_path / "run")]
    done = subprocess.run(start, capture_output=True, text=True, timeout=55, env=environment())
    assert done.returncode == 130 and "error: interrupted" in done.stderr
    assert (
        "SIGINT: finishing the current step or validation and saving the state, Ctrl-C again to stop at once"
        in done.stderr
    )


def largest_file_of(size):
    """For a process to come: a disk that is full as soon as a file has `size` bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.long
def test_a_disk_that_takes_no_more_is_an_error_that_leaves_the_last_state(whole, few_videos, tmp_path):
    run = tmp_path / "run"
    command = words(few_videos, run, "--resume", "auto")
    assert hit("SIGTERM", "step", 3, command).returncode == 75
    before = {file: file.read_bytes() for file in (run / "checkpoints/step_00000003").iterdir()}
    size = (run / "checkpoints/step_00000003/optimizer.safetensors").stat().st_size
    done = hit("SIGTERM", "step", 99, command, preexec_fn=largest_file_of(size // 2))
    assert done.returncode == 1
    assert "step_00000004: cannot be written (File too large): earlier states are kept" in done.stderr
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_00000003"]
    assert all(file.read_bytes() == content for file, content in before.items())
    assert main(command) == 0 and the_same(run, whole)


def may_mount():
    return os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "reason"), [("size=2m", "No space left on device"), ("ro", "Read-only file system")]
)
def test_a_full_disk_and_a_read_only_one_are_told(whole, few_videos, tmp_path, options, reason):
    if not may_mount():
        pytest.skip("needs root's right to mount")
    run = tmp_path / "run"
    command = words(few_videos, run, "--resume", "auto")
    assert hit("SIGTERM", "step", 3, command).returncode == 75
    (run / "checkpoints").rename(tmp_path / "saved")
    (run / "checkpoints").mkdir()
    fill = f"cp -r {tmp_path}/saved/. {run}/checkpoints/"
    mount = f"mount -t tmpfs -o size=2m none {run}/checkpoints && {fill}"  # room for one state and a half
    remount = f" && mount -o remount,ro {run}/checkpoints" if options == "ro" else ""
    check = f"; code=$?; cp -r {run}/checkpoints/step_00000003 {tmp_path}/after; exit $code"
    start = " ".join(f"'{word}'" for word in [sys.executable, "-m", "mvit_video", *command])
    shell = ["unshare", "-m", "sh", "-c", f"{mount}{remount}; {start}{check}"]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=240, env=environment())
    assert done.returncode == 1, done.stderr
    assert f"step_00000004: cannot be written ({reason}): earlier states are kept" in done.stderr
    for file in (tmp_path / "saved/step_00000003").iterdir():
        assert (tmp_path / "after" / file.name).read_bytes() == file.read_bytes()
