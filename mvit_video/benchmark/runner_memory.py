"""The process that measures a runner's memory: it has loaded nothing else, torch neither unless that is the runner.

python -m mvit_video.benchmark.runner_memory '{"runner": "openvino", "precision": "bf16", "file": "s.onnx", "threads": 1,
"shape": [1, 3, 16, 224, 224], "plugins": []}'
"""

import json
import sys
from collections.abc import Sequence

import numpy as np

from mvit_video.benchmark.resident import forget_peak, resident_peak
from mvit_video.inference.runners import RUNNERS
from mvit_video.plugins import load_plugins


def first_run(
    runner: str, precision: str, file: str, threads: int, shape: Sequence[int], plugins: Sequence[str] = ()
) -> int:
    """Growth of the resident set from here to its peak: the runner's package, the network, and a run of clips (B, 3, T, H, W)."""
    forget_peak()
    before = resident_peak()
    load_plugins(plugins)
    RUNNERS[runner].load(file, threads, precision).run(np.zeros(shape, np.float32))
    return resident_peak() - before


if __name__ == "__main__":
    print(first_run(**json.loads(sys.argv[1])))
