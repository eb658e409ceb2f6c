"""What a loop shows: a bar and its numbers in a terminal, whole lines in a log file."""

import io
import re
import sys

import pytest

from mvit_video import progress
from mvit_video.progress import progress_bar

TEXT = "epoch 103.5, loss 3.055, batch top-1 62 %, lr 2.1e-05, 412.4 clips/s"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("columns", [80, 200])
def test_the_bar_the_count_the_time_left_and_the_numbers_fit_into_80_columns(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar("training", 187_400, 1000) as bar:
        bar.advance(text=TEXT)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", sys.stderr.getvalue()).replace("\r", "\n")
    lines = [line.rstrip() for line in shown.splitlines()]
    assert any(re.match(r"training .*1001/187400 0:00:\d\d left \S+$", line) for line in lines), lines
    assert f"  {TEXT}" in lines


def test_a_log_file_gets_whole_lines_with_the_time_left_in_hours(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar("training", 100_000) as bar:
        for _ in range(40):
            now[0] += 1.0
            bar.advance(text=TEXT)
    assert sys.stderr.getvalue() == f"training: 31 of 100000, {TEXT}, 1 day, 3:46:09 left\n"


@pytest.mark.parametrize(("seconds", "text", "lines"), [(1, "", 0), (1, "loss 1.0", 1), (20, "", 2)])
def test_a_short_loop_leaves_no_line_in_a_log_file_unless_it_has_something_to_say(monkeypatch, seconds, text, lines):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar("validating", 3) as bar:
        for _ in range(3):
            now[0] += seconds
            bar.advance(text=text)
    assert len(sys.stderr.getvalue().splitlines()) == lines


def test_other_processes_show_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar("training", 1, visible=False) as bar:
        bar.advance(text=TEXT)
    assert sys.stderr.getvalue() == ""
