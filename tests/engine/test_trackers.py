"""TensorBoard's files, read back by TensorBoard."""

import os
import threading
import time
from pathlib import Path

import pytest

from mvit_video.engine.trackers import TENSORBOARD, TensorBoard
from mvit_video.errors import TrainingError


def shown(run):
    """What TensorBoard shows: name -> (step, value) of each point."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / TENSORBOARD)).Reload()
    return {name: [(point.step, point.value) for point in board.Scalars(name)] for name in board.Tags()["scalars"]}


def write(run, steps, value, first_step=0):
    board = TensorBoard(run, first_step)
    for step in steps:
        board.write(step, {"train/loss": value, "speed/clips": step})
    board.close()


def test_what_is_written_is_shown_while_the_run_goes_on(tmp_path):
    board = TensorBoard(tmp_path, 0)
    for step in (1, 2, 3):
        board.write(step, {"train/loss": step / 2, "train/lr": 0.25})
    assert shown(tmp_path) == {
        "train/loss": [(1, 0.5), (2, 1.0), (3, 1.5)],
        "train/lr": [(1, 0.25), (2, 0.25), (3, 0.25)],
    }
    board.close()


@pytest.mark.parametrize("clock", [0, 10_000, -10_000], ids=["right", "forwards", "backwards"])
def test_steps_that_a_resumed_run_makes_again_are_shown_once_whatever_the_clock_says(tmp_path, monkeypatch, clock):
    write(tmp_path, range(1, 6), 1.0)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + clock)
    write(tmp_path, range(4, 8), 2.0, first_step=3)
    monkeypatch.setattr(time, "time", lambda: now)
    write(tmp_path, range(7, 9), 3.0, first_step=6)
    assert shown(tmp_path)["train/loss"] == [
        *((step, 1.0) for step in (1, 2, 3)),
        (4, 2.0),
        (5, 2.0),
        (6, 2.0),
        (7, 3.0),
        (8, 3.0),
    ]


def test_no_thread_of_its_own_meets_the_disk(tmp_path):
    before = threading.active_count()
    board = TensorBoard(tmp_path, 0)
    board.write(1, {"a": 1.0})
    assert threading.active_count() == before
    board.close()


def test_a_disk_that_takes_no_more_is_one_sentence_with_the_files_name(tmp_path):
    board = TensorBoard(tmp_path, 0)
    told = r"tensorboard/events.out.tfevents.*: cannot be written \(No space left on device\)"
    with Path("/dev/full").open("ab", buffering=0) as board._file, pytest.raises(TrainingError, match=told):
        board.write(1, {"a": 1.0})
    board.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_takes_no_file_is_one_sentence(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(
        TrainingError, match=r"tensorboard/events.out.tfevents.*: cannot be written \(Permission denied"
    ):
        TensorBoard(tmp_path, 0)


def test_a_folder_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / TENSORBOARD).touch()
    with pytest.raises(TrainingError, match=r"tensorboard/events.out.tfevents.*: cannot be written"):
        TensorBoard(tmp_path, 0)
