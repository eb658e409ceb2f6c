"""Whose a run's folder is: another run's that writes there now, one's that never started, the user's."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import REPOSITORY, silent
from two_processes import environment, torchrun_words

from mvit_video import api
from mvit_video.config.load import load_config
from mvit_video.engine.metrics_log import read_metrics
from mvit_video.engine.run_folder import never_started
from mvit_video.engine.trainer import Trainer
from mvit_video.errors import ConfigError
from mvit_video.locks import alone_in
from mvit_video.paths import unfinished

SMALL = (
    "train.epochs=1", "train.clips_per_step=8", "data.workers=0", "data.val=null", "data.crop_size=24", "data.short_side=24",
    "model.arguments={depths: [1, 1]}",
)  # fmt: skip


def config_for(folder, *words):
    return load_config(REPOSITORY / "configs/demo/motion.yaml", [f"data.root={folder}", *SMALL, *words])


def train(config, run, say=silent, **how):
    return api.train(config, run, device="cpu", say=say, **how)


@pytest.fixture
def started_in_vain(few_videos, tmp_path, monkeypatch):
    """The folder of a run that failed in its first step."""

    def fails(*words):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Trainer, "train_step", fails)
    with pytest.raises(RuntimeError):
        train(config_for(few_videos), tmp_path / "run")
    monkeypatch.undo()
    assert (tmp_path / "run/config.yaml").exists() and never_started(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.integration
@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_failed_before_its_first_step_does_not_block_the_next(started_in_vain, few_videos, resume):
    said, notes = [], started_in_vain / "notes.txt"
    notes.write_text("mine")
    config = config_for(few_videos, "train.base_lr=0.1")
    train(config, started_in_vain, said.append, resume=resume)
    assert load_config(started_in_vain / "config.yaml") == config and notes.read_text() == "mine"
    assert len(read_metrics(started_in_vain / "metrics.jsonl")) == 2
    assert any("contains a run that ended before its first step and is replaced" in text for text in said)


def test_a_run_with_a_step_or_a_state_or_weights_does_not_give_way(started_in_vain, few_videos):
    for name in ("metrics.jsonl", "model.safetensors", "best.json", "checkpoints/step_00000001", "evaluation"):
        place = started_in_vain / name
        before = place.read_bytes() if place.is_file() else None
        place.parent.mkdir(exist_ok=True)
        place.write_text("{}")
        assert not never_started(started_in_vain), name
        with pytest.raises(ConfigError, match="of another run: choose another --output, or pass --overwrite"):
            train(config_for(few_videos), started_in_vain)
        assert place.read_text() == "{}"
        place.unlink() if before is None else place.write_bytes(before)
    assert never_started(started_in_vain)


def test_a_users_own_config_yaml_is_never_taken_for_a_run(few_videos, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"already contains config.yaml of another run"):
        train(config_for(few_videos), tmp_path / "run")
    assert (tmp_path / "run/config.yaml").read_text() == "mine"


@pytest.mark.integration
@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}], ids=["anew", "resume", "overwrite"])
def test_a_folder_that_another_run_writes_to_is_refused_and_left_alone(started_in_vain, few_videos, how):
    before = {path.name: path.stat().st_mtime_ns for path in started_in_vain.iterdir()}
    with alone_in(started_in_vain, silent), pytest.raises(ConfigError, match="run: is being written to by process"):
        train(config_for(few_videos), started_in_vain, **how)
    assert before == {path.name: path.stat().st_mtime_ns for path in started_in_vain.iterdir()}


@pytest.mark.integration
def test_what_killed_runs_have_left_half_written_goes_with_the_next(started_in_vain, few_videos):
    for name in ("config.yaml", "model.safetensors"):
        unfinished(started_in_vain / name).touch()
    (started_in_vain / "checkpoints").mkdir()
    (started_in_vain / "checkpoints/.step_00000001.partial").mkdir()
    (started_in_vain / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.5}\n')
    train(config_for(few_videos), started_in_vain, resume=True)
    names = {path.name for path in started_in_vain.rglob("*")}
    assert not [name for name in names if name.startswith(".")]


@pytest.mark.integration
def test_resuming_with_another_rate_or_length_says_how_to_go_on(few_videos, tmp_path):
    run = tmp_path / "run"
    train(config_for(few_videos), run)
    for words in (["train.base_lr=0.1"], ["train.epochs=5"], ["data.flip=true"]):
        with pytest.raises(
            ConfigError, match=r"use the same settings, or another --output \(from its weights: "
        ) as told:
            train(config_for(few_videos, *words), run, resume=True)
        weights = str(told.value).rpartition("model.weights=")[2].rstrip(")")
        assert weights == str(run / "model.safetensors")
    train(config_for(few_videos, "train.base_lr=0.1", f"model.weights={weights}"), tmp_path / "other")
    (run / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model.weights=.*run/checkpoints/step_00000002/model.safetensors\)$"):
        train(config_for(few_videos, "train.epochs=5"), run, resume=True)
    with pytest.raises(ConfigError, match=r"or another --output$"):  # of another network, which takes no such weights
        train(config_for(few_videos, "model.arguments={depths: [1, 2]}"), run, resume=True)


@pytest.mark.integration
def test_of_two_programs_that_start_in_one_folder_at_once_one_trains_and_the_other_is_refused(few_videos, tmp_path):
    words = [
        "data.val=val.csv",
        "train.epochs=4",
        "--device",
        "cpu",
        "--output",
        str(tmp_path / "run"),
        "--resume",
        "auto",
    ]
    config = [str(REPOSITORY / "configs/demo/motion.yaml"), f"data.root={few_videos}", *SMALL]
    command = [sys.executable, "-m", "mvit_video", "train", *config, *words]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) for _ in range(2)]
    said = [process.communicate(timeout=240)[1] for process in started]
    refused = [text for process, text in zip(started, said, strict=True) if process.returncode]
    assert sorted(process.returncode for process in started) == [0, 1], said
    assert "run: is being written to by process" in refused[0] and "Traceback" not in refused[0]
    assert [record["step"] for record in read_metrics(tmp_path / "run/metrics.jsonl")] == list(range(1, 9))
    assert len(read_metrics(tmp_path / "run/validation.jsonl")) >= 1


@pytest.mark.integration
def test_all_records_are_on_the_disk_before_a_state_or_a_best_one_counts_on_them(few_videos, tmp_path, monkeypatch):
    """After a loss of power no state may be ahead of the logs, and no state be deleted for a record that is gone."""
    run, synced, early = tmp_path / "run", {}, []
    logs = [run / name for name in ("metrics.jsonl", "validation.jsonl", "events.jsonl")]
    fsync, replace = os.fsync, os.replace

    def sync(handle):
        fsync(handle)
        synced[os.fstat(handle).st_ino] = os.fstat(handle).st_size

    def move(source, target):
        if Path(target).name.startswith("step_") or Path(target).name == "best.json":
            there = [log for log in logs if log.exists()]
            early.extend((target, log) for log in there if log.stat().st_size > synced.get(log.stat().st_ino, 0))
            moved.append(Path(target).name)
        replace(source, target)

    moved = []
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", move)
    monkeypatch.setattr(Path, "replace", lambda self, target: move(self, target))
    train(config_for(few_videos, "data.val=val.csv", "train.epochs=2", "train.validate_every_epochs=1"), run)
    assert len([name for name in moved if name.startswith("step_")]) == 2 and "best.json" in moved
    assert early == []


@pytest.mark.long
def test_processes_that_outlived_their_torchrun_keep_the_folder_until_they_are_gone(few_videos, tmp_path):
    """The program that started them is killed; they train on, and a requeued run must not write between their lines."""
    run = tmp_path / "run"
    words = [
        "-m",
        "mvit_video",
        "train",
        str(REPOSITORY / "configs/demo/motion.yaml"),
        f"data.root={few_videos}",
        *SMALL,
    ]
    words += ["train.epochs=400", "--device", "cpu", "--output", str(run), "--resume", "auto"]
    starter = subprocess.Popen(torchrun_words(*words), env=environment(), stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(read_metrics(run / "metrics.jsonl")) > 2)
        ranks = children_of(starter.pid)
        starter.kill()
        starter.wait()
        assert [alive(rank) for rank in ranks] == [True, True]
        with pytest.raises(ConfigError, match="run: is being written to by process"):
            train(config_for(few_videos, "train.epochs=400"), run, resume=True)
    finally:
        for rank in children_of(starter.pid) or ranks:
            with suppress(ProcessLookupError):
                os.kill(rank, signal.SIGKILL)
    wait_for(lambda: not any(map(alive, ranks)))
    wait_for(lambda: is_free(run), seconds=20)  # the last thread of a killed process lets go of the lock


def is_free(folder):
    try:
        with alone_in(folder, silent):
            return True
    except ConfigError:
        return False


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] if alive(pid) else []


def alive(pid):
    """A zombie, whose parent has not asked after it, is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
