"""Decoders that are killed or stopped in the midst of any command cost one video, the timeout, and nothing else."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from processes import alive, children, decoding_processes, gone_within, launchers
from tiny_checkpoint import write_tiny

from mvit_video.data.synthetic import write_video

pytestmark = pytest.mark.integration
VICTIM = "victim.mp4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ordinary videos, and one that takes a second and more to decode."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for name in ("a.mp4", "b.mp4"):
        write_video(folder / name, rng.integers(0, 256, (40, 64, 80, 3), np.uint8), 15)
    write_video(folder / VICTIM, rng.integers(0, 256, (120, 720, 960, 3), np.uint8), 15)
    (folder / "list.csv").write_text(f"a.mp4 0\n{VICTIM} 1\nb.mp4 1\n")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(write_tiny(tmp_path_factory.mktemp("tiny") / "model.safetensors"))


def holds(process, name):
    try:
        return any(os.readlink(link).endswith(f"/{name}") for link in Path(f"/proc/{process}/fd").iterdir())
    except OSError:
        return False


def family(pid):
    """The program's processes, workers of a loader with theirs."""
    return {each for parent in (pid, *children(pid)) for each in decoding_processes(parent)}


class Saboteur(threading.Thread):
    """Sends a signal to each process that decodes the victim, as soon as it has it open."""

    def __init__(self, pid, number):
        super().__init__(daemon=True)
        self.pid, self.number, self.hit = pid, number, set()

    def run(self):
        while alive(self.pid):
            for process in family(self.pid) - self.hit:
                if holds(process, VICTIM):
                    os.kill(process, self.number)
                    self.hit.add(process)
            time.sleep(0.005)


def run_with_saboteur(number, words, folder, program=("-m", "mvit_video")):
    before = set(Path("/dev/shm").iterdir())
    program = subprocess.Popen(
        [sys.executable, *program, *map(str, words)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    saboteur = Saboteur(program.pid, number)
    saboteur.start()
    out, err = program.communicate(timeout=240)
    assert saboteur.hit, "nobody was hit"
    assert all(gone_within(process, 5) for process in saboteur.hit)
    assert set(Path("/dev/shm").iterdir()) <= before
    assert "Traceback" not in err, err
    return program.returncode, out, err


REASONS = {
    signal.SIGKILL: "the decoder died (SIGKILL)",
    signal.SIGSEGV: "the decoder died (SIGSEGV)",
    signal.SIGSTOP: "the decoder did not answer within",
}


PREDICT = """
import json, sys
from mvit_video import Predictor
from mvit_video.data.video.guard import Guard
predictor = Predictor.from_checkpoint(sys.argv[1], "cpu", guard=Guard(timeout=3))
for prediction in predictor.each(sys.argv[2:]):
    print(json.dumps(prediction.as_dict()))
"""


@pytest.mark.integration
@pytest.mark.parametrize("number", REASONS, ids=lambda number: number.name)
def test_a_predictor_loses_one_video(folder, checkpoint, number):
    words = [checkpoint, "a.mp4", VICTIM, "b.mp4"]
    code, out, _ = run_with_saboteur(number, words, folder, program=("-c", PREDICT))
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [row["path"] for row in rows] == ["a.mp4", VICTIM, "b.mp4"]
    assert rows[1]["error"].startswith(f"{VICTIM}: {REASONS[number]}")
    assert "predictions" in rows[0] and "predictions" in rows[2]


@pytest.mark.integration
@pytest.mark.parametrize("number", REASONS, ids=lambda number: number.name)
def test_verify_loses_one_video(folder, tmp_path, number):
    words = ["verify", "--annotations", "list.csv", "--root", ".", "--json", tmp_path / "bad.json"]
    if number == signal.SIGSTOP:
        (tmp_path / "a.yaml").write_text(f"data: {{root: {folder}, train: list.csv, decode_timeout: 10}}")
        words = ["verify", tmp_path / "a.yaml", "--json", tmp_path / "bad.json"]
    assert run_with_saboteur(number, words, folder)[0] == 1
    (bad,) = json.loads((tmp_path / "bad.json").read_text())["bad"]
    assert bad["path"] == VICTIM and bad["reason"].startswith(REASONS[number])


def test_prepare_loses_one_video(folder, tmp_path):
    words = ["prepare", "--annotations", "list.csv", "--root", ".", "--output", tmp_path / "out"]
    code, _, err = run_with_saboteur(signal.SIGKILL, words, folder)
    assert code == 1 and f"error: {VICTIM}: the decoder died (SIGKILL)" in err
    assert sorted(path.name for path in (tmp_path / "out").glob("*.mp4")) == ["a.mp4", "b.mp4"]
    assert not (tmp_path / "out/.unfinished").exists()


@pytest.mark.integration
def test_a_timeline_and_an_explanation_are_one_sentence(folder, checkpoint, tmp_path):
    for words in (["predict", VICTIM, "--timeline"], ["explain", VICTIM]):
        words += ["--checkpoint", checkpoint, "--output", tmp_path / words[0]]
        code, _, err = run_with_saboteur(signal.SIGKILL, words, folder)
        assert code == 1 and f"error: {VICTIM}: the decoder died (SIGKILL)" in err


def test_features_lose_one_video(folder, checkpoint, tmp_path):
    words = [
        "features",
        "--annotations",
        "list.csv",
        "--root",
        ".",
        "--checkpoint",
        checkpoint,
        "--output",
        tmp_path / "out",
    ]
    code, _, err = run_with_saboteur(signal.SIGKILL, words, folder)
    assert code == 1 and f"error: {VICTIM}: the decoder died (SIGKILL)" in err
    assert "features of 2 videos" in err


@pytest.mark.integration
@pytest.mark.parametrize("verb", ["predict", "verify", "prepare"])
def test_an_interrupt_in_the_midst_ends_at_once_and_leaves_no_process(folder, checkpoint, tmp_path, verb):
    """Also while a decoder hangs, which nobody waits for then."""
    words = {
        "predict": ["predict", "--checkpoint", checkpoint, VICTIM],
        "verify": ["verify", "--annotations", "list.csv", "--root", "."],
        "prepare": ["prepare", "--annotations", "list.csv", "--root", ".", "--output", str(tmp_path / "out")],
    }[verb]
    program = subprocess.Popen(
        [sys.executable, "-m", "mvit_video", *words], cwd=folder, stderr=subprocess.PIPE, text=True
    )
    saboteur = Saboteur(program.pid, signal.SIGSTOP)
    saboteur.start()
    end = time.monotonic() + 120
    while not saboteur.hit and time.monotonic() < end:
        time.sleep(0.02)
    processes = family(program.pid) | launchers(program.pid)
    assert len(processes) >= 2
    program.send_signal(signal.SIGINT)
    start = time.monotonic()
    err = program.communicate(timeout=60)[1]
    assert program.returncode == 130 and time.monotonic() - start < 10
    assert err.splitlines()[-1] == "error: interrupted" and "Traceback" not in err
    assert all(gone_within(process, 5) for process in processes)


@pytest.mark.integration
def test_hang_ups_do_not_touch_a_run_that_ignores_them(few_videos, tmp_path):
    """A run under nohup outlives its terminal; so do the decoders of its loader's workers, busy or idle."""
    (tmp_path / "a.yaml").write_text(
        f"model: {{name: mvitv2_nano_8x3}}\n"
        f"data: {{root: {few_videos}, train: train.csv, num_frames: 8, sampling_rate: 3, target_fps: 15, short_side: 48, "
        "crop_size: 48, workers: 1}\n"
        "train: {epochs: 6, clips_per_step: 4, base_lr: 0.01, warmup_epochs: 0}\n"
    )
    words = [sys.executable, "-m", "mvit_video", "train", "a.yaml", "--output", "run", "--device", "cpu"]
    with open(tmp_path / "log", "w") as log:
        run = subprocess.Popen(["nohup", *words], cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    log = tmp_path / "run/metrics.jsonl"
    while run.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.05)
    hang_ups = 0
    while run.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGHUP)
        for process in family(run.pid) | launchers(run.pid):
            with suppress(ProcessLookupError):  # it has ended meanwhile, with the run
                os.kill(process, signal.SIGHUP)
        hang_ups += 1
        time.sleep(0.05)
    assert run.returncode == 0 and hang_ups > 3, (tmp_path / "log").read_text()
    assert len(log.read_text().splitlines()) == 24
