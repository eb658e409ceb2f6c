"""What a run tries before it starts, sentence by sentence; the network is left as it was."""

import importlib.util
import shutil
from collections import namedtuple

import pytest
import torch
from conftest import REPOSITORY, silent

from mvit_video.config.load import load_config
from mvit_video.engine import preflight
from mvit_video.engine.resolve import resolve
from mvit_video.engine.run import train_run
from mvit_video.errors import ConfigError, DecodeError

CPU = torch.device("cpu")
WORDS = ("data.val=null", "train.epochs=1", "train.clips_per_step=4", "data.workers=0", "data.crop_size=32")


def start(data, run, *words):
    config = load_config(REPOSITORY / "configs/demo/motion.yaml", [f"data.root={data}", *WORDS, *words])
    train_run(resolve(config, run, CPU, silent), lambda videos: lambda model: {"top1": 0.0}, silent)


def test_an_output_that_cannot_be_written_is_refused_before_the_lists_are_read(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"file: is a file, expected a folder for the output"):
        start("nowhere", tmp_path / "file/run")
    with pytest.raises(ConfigError, match=r"^/proc/run: cannot be written to \(No such file or directory\): choose an"):
        start("nowhere", "/proc/run")


def test_a_disk_without_room_for_the_states_is_told_with_both_sizes(few_videos, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 5, 1_000_000))
    with pytest.raises(
        ConfigError, match=r"has 1.0 MB free, but 3 saved states of \d.\d MB .* take \d+.\d MB: free space"
    ):
        start(few_videos, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"4 saved states of \d.\d MB .*and the best one\) and"):
        start(few_videos, tmp_path / "run", "data.val=val.csv")
    assert not (tmp_path / "run").exists()


def test_shared_memory_without_room_for_the_clips_made_ahead_is_told(few_videos, tmp_path, monkeypatch):
    """Four clips of 8×32×32 pixels in three colours, a byte each, five times: two for each worker and the step's own."""
    usage, before = namedtuple("usage", "total used free"), shutil.disk_usage
    memory = tmp_path / "shm"
    memory.mkdir()
    monkeypatch.setattr(preflight, "SHARED_MEMORY", memory)
    small = usage(500_000, 100_000, 400_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: small if path == memory else before(path))
    told = r"data.workers = 2: prefetched clips may take 0.5 MB of shared memory, but \S+ has 0.4 MB free: lower"
    with pytest.raises(ConfigError, match=told):
        start(few_videos, tmp_path / "run", "data.workers=2")
    assert not (tmp_path / "run").exists()
    config = load_config(REPOSITORY / "configs/demo/motion.yaml", [*WORDS, "data.workers=1"])
    assert preflight.check_shared_memory(config) == ["up to 0.3 MB of 0.4 MB free shared memory for prefetched clips"]
    assert preflight.check_shared_memory(load_config(REPOSITORY / "configs/demo/motion.yaml", WORDS)) == []


@pytest.mark.parametrize(
    ("spoilt", "words", "sentence"),
    [
        ({0}, (), r"train/00000.mp4: cannot be opened .* \(row 1 of train.csv\): remove it from the list"),
        (set(range(16)), ("data.on_error=skip",), r"none of 3 sampled videos of .*train.csv can be decoded: "),
    ],
)
def test_videos_that_cannot_be_decoded_stop_a_run_before_its_folder(few_videos, tmp_path, spoilt, words, sentence):
    shutil.copytree(few_videos, tmp_path / "data")
    for number in spoilt:
        (tmp_path / f"data/train/{number:05d}.mp4").write_text("not a video")
    with pytest.raises(DecodeError, match=sentence):
        start(tmp_path / "data", tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


def test_clips_that_a_network_does_not_take_are_found_by_one_pass(few_videos, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight.Trainer, "trial_pass", lambda self, clips, targets: self.network(clips[:, :2]))
    with pytest.raises(
        ConfigError, match=r"cannot be trained on clips of 8×32×32 \(frames×height×width\): clips have shape"
    ):
        start(few_videos, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
            "CUDA out of memory",
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
                "allocate 4926226752 bytes. Error code 12 (Cannot allocate memory)"
            ),
            "can't allocate memory: you tried to allocate 4926226752 bytes",
        ),
    ],
)
def test_memory_that_is_too_small_is_told_with_its_cures(few_videos, tmp_path, monkeypatch, reason, told):
    def full(self, clips, targets):
        raise reason

    monkeypatch.setattr(preflight.Trainer, "trial_pass", full)
    with pytest.raises(
        ConfigError,
        match=rf"a pass of 2 clips does not fit into device memory \({told}\): set train.clips_per_pass=1 or "
        "train.activation_checkpointing=true, or lower data.num_frames or data.crop_size",
    ):
        start(few_videos, tmp_path / "run")


@pytest.mark.parametrize(
    "missing, words, sentence",
    [
        (
            "wandb",
            ["train.wandb_project=mine"],
            "train.wandb_project = mine needs the package wandb, which is not installed",
        ),
        (
            "tensorboard",
            [],
            "train.trackers names tensorboard, which is not installed: run 'pip install tensorboard', or set",
        ),
    ],
)
def test_a_tracker_that_is_not_installed_is_one_sentence(few_videos, tmp_path, monkeypatch, missing, words, sentence):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(ConfigError, match=sentence):
        start(few_videos, tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()
