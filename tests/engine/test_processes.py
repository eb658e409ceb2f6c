"""`torchrun -m mvit_video train`: two processes in one run, from the command line to the disk."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from conftest import REPOSITORY
from run_records import numbers_of_steps
from safetensors.torch import load_file
from two_processes import environment, torchrun, torchrun_words

from mvit_video.cli import main
from mvit_video.config.load import load_config
from mvit_video.engine import build
from mvit_video.engine.checkpoint import newest_state
from mvit_video.engine.metrics_log import read_metrics
from mvit_video.errors import ConfigError

KILLED = REPOSITORY / "tests/killed_program.py"
MODULE = ("-m", "mvit_video")
SETTINGS = (
    "train.epochs=2", "train.clips_per_step=8", "train.clips_per_pass=3", "train.checkpoint_every_steps=1",
    "train.ema_decay=0.9", "train.warmup_epochs=0", "train.optimizer=sgd", "train.base_lr=0.5", "data.workers=0",
    "data.crop_size=24", "data.short_side=24", "model.arguments={depths: [1, 1], drop_path_rate: 0, dropout_rate: 0}",
)  # fmt: skip
DROPOUT = "model.arguments={depths: [1, 1], drop_path_rate: 0.2, dropout_rate: 0.3}"


def words(data, run, *more):
    config = str(REPOSITORY / "configs/demo/motion.yaml")
    return ["train", config, f"data.root={data}", *SETTINGS, *more, "--device", "cpu", "--output", str(run)]


@pytest.fixture
def spoilt(few_videos, tmp_path):
    """Three of sixteen training videos and one of eight for validation cannot be decoded."""
    shutil.copytree(few_videos, tmp_path / "data")
    for name in ("train/00002", "train/00003", "train/00009", "val/00005"):
        (tmp_path / f"data/{name}.mp4").write_text("not a video")
    return tmp_path / "data"


@pytest.mark.integration
def test_two_processes_train_as_one_where_videos_are_bad(spoilt, tmp_path):
    """Losses to 1e-6 of steps of unequal parts, weights, validation of every video once, the same events; one speaks."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(words(spoilt, one, "data.on_error=skip")) == 0
    done = torchrun(*MODULE, *words(spoilt, two, "data.on_error=skip"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("done: weights saved to") == done.stderr.count("2 processes with all weights") == 1
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    for expected, actual in zip(*(read_metrics(run / "metrics.jsonl") for run in (one, two)), strict=True):
        assert actual["loss"] == pytest.approx(expected["loss"], abs=1e-6)
        assert actual["top1"] == pytest.approx(expected["top1"]) and actual["lr"] == expected["lr"]
    assert read_metrics(one / "validation.jsonl") == read_metrics(two / "validation.jsonl")
    events = [sorted(json.dumps(event) for event in read_metrics(run / "events.jsonl")) for run in (one, two)]
    assert events[0] == events[1] and len(events[0]) == 6
    for name in ("model.safetensors", "model_ema.safetensors"):
        expected, actual = (load_file(run / name) for run in (one, two))
        assert all(torch.allclose(expected[key], actual[key], atol=1e-6) for key in expected)


@pytest.mark.integration
def test_two_processes_evaluate_what_they_have_trained_as_one(few_videos, tmp_path):
    """Both weights, which the first process has written before the second one looks for them."""
    one, two = tmp_path / "one", tmp_path / "two"
    more = ("evaluation.after_training=true", "evaluation.protocol=2x1", "train.epochs=1")
    assert main(words(few_videos, one, *more)) == 0
    done = torchrun(*MODULE, *words(few_videos, two, *more), timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("of 8 held-out videos, 2x1") == 2 and done.stderr.count("done: weights saved to") == 1
    for folder in ("evaluation", "evaluation_ema"):
        expected, actual = (json.loads((run / folder / "results.json").read_text()) for run in (one, two))
        assert expected["top1"] == actual["top1"] and actual["num_videos"] == 8


def test_mixing_over_parts_that_cannot_be_paired_is_refused(monkeypatch):
    monkeypatch.setattr(build, "world_size", lambda: 2)
    odd = load_config(REPOSITORY / "configs/demo/motion.yaml", ["train.clips_per_step=6", "train.epochs=1"])
    assert build.step_sampler(odd, 60).places.tolist() == [0, 1, 2]
    mixed = load_config(REPOSITORY / "configs/demo/motion.yaml", ["train.clips_per_step=6", "train.mixup=0.8"])
    with pytest.raises(
        ConfigError,
        match=r"= 6 gives each of 2 processes an odd number of videos \(3\), which .*: make it a multiple of 4",
    ):
        build.step_sampler(mixed, 60)


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def whole(request, few_videos, tmp_path_factory):
    """Two processes that were left alone, with dropout; and the command that trains so."""
    run = tmp_path_factory.mktemp("processes") / request.param
    more = (f"train.parallel={request.param}", DROPOUT)
    done = torchrun(*MODULE, *words(few_videos, run, *more))
    assert done.returncode == 0, done.stderr
    return run, more


def the_same(run, whole):
    assert numbers_of_steps(run / "metrics.jsonl") == numbers_of_steps(whole / "metrics.jsonl")
    for name in ("validation.jsonl", "model.safetensors", "model_ema.safetensors", "best.json"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    return True


@pytest.mark.long
def test_torchrun_starts_killed_processes_again_and_no_bit_is_lost(whole, few_videos, tmp_path):
    """The second process is killed in the third step's second pass."""
    whole, more = whole
    command = words(few_videos, tmp_path / "run", *more, "--resume", "auto")
    done = torchrun(KILLED, "SIGKILL", "step", 6, *command, options=["--max-restarts", "1"])
    assert done.returncode == 0, done.stderr
    assert "resuming after step 2" in done.stderr and the_same(tmp_path / "run", whole)


@pytest.mark.long
def test_a_signal_to_one_process_stops_all_after_the_same_step(whole, few_videos, tmp_path):
    whole, more = whole
    run = tmp_path / "run"
    command = words(few_videos, run, *more, "--resume", "auto")
    done = torchrun(KILLED, "SIGTERM", "step", 3, *command)
    assert done.returncode == 1 and "exitcode  : 75" in done.stderr, "torchrun has a code of its own"
    assert done.stderr.count("after step 2, whose state is in") == 1 and "]: Traceback" not in done.stderr
    assert newest_state(run)[0].step == 2
    done = torchrun(*MODULE, *command)
    assert done.returncode == 0 and the_same(run, whole)


@pytest.mark.long
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_to_torchrun_saves_the_state(whole, few_videos, tmp_path, name):
    whole, more = whole
    run = tmp_path / "run"
    command = words(few_videos, run, *more, "--resume", "auto")
    handled = ["--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1", "--shutdown-timeout", "100"]
    start = torchrun_words(*MODULE, *command, options=handled)
    for _ in range(4):  # on a busy machine the four steps may be over when the signal comes
        shutil.rmtree(run, ignore_errors=True)
        process = subprocess.Popen(start, env=environment(), stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not read_metrics(run / "metrics.jsonl"):
            time.sleep(0.002)
        process.send_signal(signal.Signals[name])
        if f"stopped by {name} after step" in process.communicate(timeout=100)[1]:
            break
    else:
        pytest.fail(f"no run was stopped by {name}")
    assert newest_state(run)[0].step == len(read_metrics(run / "metrics.jsonl")) < 4
    done = torchrun(*MODULE, *command)
    assert done.returncode == 0 and the_same(run, whole)


@pytest.mark.long
def test_an_error_in_one_process_ends_all_and_is_told_once(spoilt, tmp_path):
    """A bad video, which is one process's; and a folder that only the first one looks at."""
    run = tmp_path / "run"
    done = torchrun(*MODULE, *words(spoilt, run), timeout=100)
    assert done.returncode == 1 and done.stderr.count("error: ") == 1
    assert "cannot be opened" in done.stderr and "remove it from the list" in done.stderr
    (run / "model.safetensors").touch()  # a run that has ended does not give way
    done = torchrun(*MODULE, *words(spoilt, run), timeout=100)
    assert done.returncode == 1 and done.stderr.count("error: ") == 1, done.stderr
    assert "already contains config.yaml of another run" in done.stderr and "]: Traceback" not in done.stderr


@pytest.mark.long
def test_a_run_moves_between_one_process_and_two_and_says_so(few_videos, tmp_path):
    """Under FSDP first, then alone, then with DDP; it ends where one process would have, to rounding."""
    assert main(words(few_videos, tmp_path / "whole")) == 0
    run = tmp_path / "run"
    command = words(few_videos, run, "--resume", "auto")
    torchrun(KILLED, "SIGTERM", "step", 1, *command, "train.parallel=fsdp")
    assert newest_state(run)[0].step == 1
    stopped = subprocess.run(
        [sys.executable, str(KILLED), "SIGTERM", "step", "2", *command],
        capture_output=True, text=True, timeout=200, env=environment(),
    )  # fmt: skip
    assert stopped.returncode == 75, stopped.stderr
    assert (
        "the environment has changed (processes 1, was 2; parallel None, was fsdp): results will be similar, but not"
        in stopped.stderr
    )
    done = torchrun(*MODULE, *command)
    assert done.returncode == 0, done.stderr
    expected, actual = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", run))
    assert all(torch.allclose(expected[key], actual[key], atol=1e-5) for key in expected)


@pytest.mark.long
def test_the_slurm_job_saves_and_requeues_itself_and_then_ends(few_videos, tmp_path):
    """With srun and scontrol that stand for Slurm's, on one machine of two processes."""
    stubs = {
        "srun": 'shift; exec "$@"',
        "scontrol": f'[ "$1" = show ] && echo localhost || echo "$@" >> {tmp_path}/asked',
        "python3": f'exec {sys.executable} "$@"',
    }
    (tmp_path / "bin").mkdir()
    for name, text in stubs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    slurm = {"SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_ID": "7"}
    surroundings = environment(PATH=f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}", PORT=port, **slurm)
    run, config = tmp_path / "run", str(REPOSITORY / "configs/demo/motion.yaml")
    job = ["bash", str(REPOSITORY / "tools/slurm/train.sbatch"), config, str(run), f"data.root={few_videos}", *SETTINGS]
    process = subprocess.Popen(job, env=surroundings, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not read_metrics(run / "metrics.jsonl"):
        time.sleep(0.002)
    process.send_signal(signal.SIGUSR1)
    assert "stopped by SIGUSR1 after step" in process.communicate(timeout=100)[1]
    assert process.returncode == 0 and (tmp_path / "asked").read_text() == "requeue 7\n"
    assert not (run / "model.safetensors").exists()
    done = subprocess.run(job, env=surroundings, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "resuming after step" in done.stderr, done.stderr
    assert (run / "model.safetensors").exists() and (tmp_path / "asked").read_text() == "requeue 7\n"
