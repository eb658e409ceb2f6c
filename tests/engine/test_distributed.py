import json
import os
import subprocess
import sys

import torch
from conftest import REPOSITORY

from mvit_video.engine.distributed import all_gather_json, all_reduced, is_rank_zero, process_group, rank, world_size

PROGRAM = """
import json, sys, torch
from mvit_video.engine.distributed import all_gather_json, is_rank_zero, process_group, rank, all_reduced, world_size
with process_group():
    values = all_gather_json([f"é{place}" for place in range(rank())])
    table = torch.zeros(5, dtype=torch.float64)
    table[rank() :: world_size()] = torch.arange(5, dtype=torch.float64)[rank() :: world_size()] / 3
    total = all_reduced(table)
    if is_rank_zero():
        print(json.dumps([world_size(), values, total.tolist(), table.tolist()]))
"""


def test_one_process_is_first_and_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group():
        assert (rank(), world_size(), is_rank_zero()) == (0, 1, True)
        assert all_gather_json({"a": [1]}) == [{"a": [1]}]
        table = torch.arange(3.0)
        assert torch.equal(all_reduced(table), table) and all_reduced(table) is not table


def test_three_processes_know_all_values_in_order_and_sums_to_the_last_bit(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    done = subprocess.run(
        [*words, tmp_path / "program.py"],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    world, values, total, own = json.loads(line)
    assert world == 3 and values == [[], ["é0"], ["é0", "é1"]]
    assert total == [place / 3 for place in range(5)]
    assert own == [0, 0, 0, 1, 0], "summing leaves each process's own as it was"
