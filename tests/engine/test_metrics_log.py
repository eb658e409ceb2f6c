"""Logs that a disk, a copy or a kill has damaged."""

import json
import os
import random

import pytest

from mvit_video.engine.metrics_log import MetricsLog, read_metrics, truncate_log
from mvit_video.errors import TrainingError

STEPS, PER_EPOCH = 40, 8
RECORDS = [
    {"step": step, "epoch": step / PER_EPOCH, "loss": 2 / step, "lr": 1e-3 / 7, "top1": None, "skipped": 1}
    for step in range(1, STEPS + 1)
]
EVENTS = [
    {"step": step, "epoch": step // 8, "id": 'a\\b}{"step": ü', "where": "x", "reason": "no", "substitute": None}
    for step in (3, 3, 9)
]


def write(path, lines):
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def lines_of(records):
    return [json.dumps(record).encode() for record in records]


@pytest.mark.parametrize("records", [RECORDS, EVENTS], ids=["steps", "bad videos"])
def test_a_sound_log_is_read_whole_and_left_as_it_is(tmp_path, records):
    write(tmp_path / "log", lines_of(records))
    before = (tmp_path / "log").read_bytes(), (tmp_path / "log").stat().st_ino
    assert read_metrics(tmp_path / "log") == records and truncate_log(tmp_path / "log", STEPS) == []
    assert before == ((tmp_path / "log").read_bytes(), (tmp_path / "log").stat().st_ino)


BROKEN = {
    "null": b"null",
    "half": lines_of(RECORDS)[4][:30],
    "no utf-8": lines_of(RECORDS)[4].replace(b"loss", b"lo\xf3s"),
    "a list": b"[1, 2]",
    "deep": b"[" * 100_000,
    "many digits": b'{"step": ' + b"9" * 5000 + b"}",
    "no step": b'{"epoch": 0.5}',
    "a truth": b'{"step": true, "epoch": 0.5}',
    "another step": lines_of([RECORDS[4] | {"step": 7}])[0],
    "another epoch": lines_of([RECORDS[4] | {"epoch": 0.75}])[0],
    "no epoch": lines_of([{"step": 5, "loss": 0.4}])[0],
    "NaN": b'{"step": 5, "epoch": 0.625, "loss": NaN}',
    "nested": b'{"step": 5, "epoch": 0.625, "loss": {}}',
    "zeros": b"\0" * 4096,
    "a line without an end": b"x" * (3 << 20),
    "nothing": b"",
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=list(BROKEN))
def test_a_broken_line_costs_itself_and_a_sentence(tmp_path, broken):
    lines = lines_of(RECORDS)
    write(tmp_path / "log", [*lines[:4], broken, *lines[5:]])
    kept = [*RECORDS[:4], *RECORDS[5:]]
    assert read_metrics(tmp_path / "log") == kept
    told = truncate_log(tmp_path / "log", STEPS, every_step=True)
    assert len(told) == 1 and told[0].startswith(f"{tmp_path / 'log'}: line") and "broken and skipped" in told[0]
    assert (tmp_path / "log").read_bytes() == b"".join(line + b"\n" for line in lines_of(kept))


@pytest.mark.parametrize("seed", range(200))
def test_one_flipped_bit_costs_no_more_than_its_line_and_nothing_else_changes(tmp_path, seed):
    """A bit that leaves a number a number cannot be seen; it changes that number alone."""
    draw, path = random.Random(seed), tmp_path / "log"
    write(path, lines_of(RECORDS))
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content))
    content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    hit = bytes(content[:place]).count(b"\n") + 1
    records = {record["step"]: record for record in read_metrics(path)}
    assert len(records) >= STEPS - 1
    for record in RECORDS:
        if record["step"] not in (hit, hit + 1):
            assert records[record["step"]] == record
    told = truncate_log(path, STEPS, every_step=True)
    assert len(records) == STEPS or told or place == len(content) - 1


def test_a_last_line_that_a_kill_has_cut_short_goes_without_a_word(tmp_path):
    write(tmp_path / "log", lines_of(RECORDS))
    with (tmp_path / "log").open("ab") as log:
        log.write(b'{"step": 41, "ep')
    assert truncate_log(tmp_path / "log", STEPS, every_step=True) == [] and read_metrics(tmp_path / "log") == RECORDS


def test_records_that_are_gone_are_counted(tmp_path):
    write(tmp_path / "log", lines_of(RECORDS[:10]))
    assert truncate_log(tmp_path / "log", STEPS, every_step=True) == [
        f"{tmp_path / 'log'}: has no records of 30 of the 40 steps done"
    ]


def test_of_two_records_of_a_step_the_later_one_counts(tmp_path):
    """As two runs in one folder left them, before folders were locked."""
    again = [record | {"loss": 9.0} for record in RECORDS[2:5]]
    write(tmp_path / "log", lines_of([*RECORDS[:5], *again, *RECORDS[5:]]))
    assert read_metrics(tmp_path / "log") == [*RECORDS[:2], *again, *RECORDS[5:]]


def test_lines_that_lost_their_end_are_two_records(tmp_path):
    write(tmp_path / "log", lines_of(RECORDS))
    lines = (tmp_path / "log").read_bytes().split(b"\n")
    (tmp_path / "log").write_bytes(b"\n".join([lines[0] + b"\x0b" + lines[1], *lines[2:]]))
    assert read_metrics(tmp_path / "log") == RECORDS
    truncate_log(tmp_path / "log", STEPS)
    assert (tmp_path / "log").read_bytes() == b"\n".join(lines)


def test_a_log_of_another_system_with_its_line_ends_is_read(tmp_path):
    (tmp_path / "log").write_bytes(b"\r\n".join(lines_of(RECORDS)) + b"\r\n")
    assert read_metrics(tmp_path / "log") == RECORDS and truncate_log(tmp_path / "log", STEPS) == []


@pytest.mark.parametrize("what", ["deleted", "moved", "replaced"])
def test_a_log_that_is_deleted_or_moved_while_it_is_written_ends_the_run_with_its_name(tmp_path, what):
    (tmp_path / "run").mkdir()
    log = MetricsLog(tmp_path / "run/metrics.jsonl")
    log.write(step=1)
    if what == "deleted":
        log.path.unlink()
    elif what == "moved":
        (tmp_path / "run").rename(tmp_path / "other")
    else:
        log.path.unlink()
        log.path.touch()
    with pytest.raises(TrainingError, match=r"run/metrics.jsonl: was deleted or moved while the run wrote to it"):
        log.write(step=2)
    log.close()


def test_a_disk_that_fails_to_keep_records_is_told(tmp_path, monkeypatch):
    def fails(handle):
        raise OSError(5, "Input/output error")

    log = MetricsLog(tmp_path / "metrics.jsonl")
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(TrainingError, match=r"metrics.jsonl: cannot be written \(Input/output error\)"):
        log.sync()
    log.close()
