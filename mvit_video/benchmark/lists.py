"""What a long list costs: `python -m mvit_video.benchmark.lists --rows 1000000 --workers 4`.

A list of `path label` rows is written and read, then worker processes are started from the one that has read it, as a loader
does, and each looks at every row in an order of its own. Private memory is what a process has for itself alone (Linux).
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from mvit_video.data.lists.read import read_videos
from mvit_video.data.lists.records import VideoList

CLASSES = 400


def benchmark_lists(rows: int, workers: int, method: str = "fork") -> dict:
    """Seconds and megabytes of reading, and of each worker: until its first row (by the clock), and for looking at all rows
    (of the processor, as for reading)."""
    with tempfile.TemporaryDirectory() as folder:
        text = "".join(
            f"train/class {row % CLASSES:03}/{row:011}_000010_000020.mp4 {row % CLASSES}\n" for row in range(rows)
        )
        (Path(folder) / "train.csv").write_text(text)
        del text
        before, start = memory("Rss"), time.process_time()
        videos = read_videos("train.csv", folder)
        result = {"rows": rows, "read_seconds": time.process_time() - start}
    result |= {"peak_megabytes": memory("VmHWM") - before, "kept_megabytes": memory("Rss") - before}
    context: Any = multiprocessing.get_context(method)
    found = []
    for number in range(workers):
        ours, theirs = context.Pipe()
        start = time.perf_counter()
        worker = context.Process(target=_look, args=(theirs, videos, number))
        worker.start()
        ours.recv()
        seconds = time.perf_counter() - start
        found.append({"start_seconds": seconds} | ours.recv())
        worker.join()
    return result | {"method": method, "workers": found}


def memory(kind: str) -> float:
    """Megabytes of this process: Rss, VmHWM (the most it has had so far), or Private."""
    file = "status" if kind == "VmHWM" else "smaps_rollup"
    lines = Path(f"/proc/self/{file}").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


def _look(connection: Connection, videos: VideoList, seed: int) -> None:
    connection.send(videos.records[0].path)
    before, start = memory("Private"), time.process_time()
    order = np.random.default_rng(seed).permutation(len(videos))
    letters = 0
    for row in order:
        record = videos.records[row]
        letters += len(record.path) + record.label
    del order
    seconds = time.process_time() - start
    connection.send({"look_seconds": seconds, "private_megabytes": memory("Private") - before, "letters": letters})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--method", choices=multiprocessing.get_all_start_methods(), default="fork")
    arguments = parser.parse_args()
    print(json.dumps(benchmark_lists(arguments.rows, arguments.workers, arguments.method), indent=2))


if __name__ == "__main__":
    main()
