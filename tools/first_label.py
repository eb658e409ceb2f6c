"""Seconds from start to first label, by part: `python tools/first_label.py VIDEO`.

Each round is a fresh process that does what `mvit-video predict VIDEO --checkpoint FILE --protocol 1x1` does, with random
weights of a network. Seconds are of the CPU in that process, which other programs change less than those of the clock;
decoding runs in another process.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

CLOCK = "total, by the clock"


def parts_of_first_label(video: str, checkpoint: str, started: float) -> dict[str, float]:
    """Seconds of each part in this process, which imports nothing beforehand; `started` is its parent's monotonic time."""
    marks = [0.0, time.process_time()]

    import mvit_video.cli  # noqa: F401
    from mvit_video.data.video.guard_start import launcher

    launcher.start_early()
    marks.append(time.process_time())
    import torch  # noqa: F401

    marks.append(time.process_time())
    from mvit_video.inference.predictor import Predictor

    marks.append(time.process_time())
    predictor = Predictor.from_checkpoint(checkpoint, "cpu", "1x1")
    marks.append(time.process_time())
    predictor(video)
    marks.append(time.process_time())
    names = ("interpreter", "command line", "torch", "other imports", "loading the network", "first view")
    parts = {name: end - start for name, start, end in zip(names, marks, marks[1:], strict=False)}
    return {**parts, "total": marks[-1], CLOCK: time.monotonic() - started}


def write_random_network(path: str | Path, name: str) -> None:
    """A checkpoint of a network with random weights and 400 classes."""
    from mvit_video.config.schema import InputSettings
    from mvit_video.model.registry import build_model, model_entry
    from mvit_video.model.weights.card import ModelCard
    from mvit_video.model.weights.files import save_checkpoint

    classes = tuple(f"class {label}" for label in range(400))
    usual = model_entry(name).defaults
    sizes = InputSettings(num_frames=usual["num_frames"], crop_size=usual["crop_size"], short_side=usual["crop_size"])
    card = ModelCard(name=name, arguments={}, classes=classes, preprocessing=sizes)
    save_checkpoint(path, build_model(name, len(classes)), card)


def measure_first_label(video: str, name: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of each part in each round."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = f"{folder}/random.safetensors"
        write_random_network(checkpoint, name)
        command = [sys.executable, __file__, video, "--checkpoint", checkpoint]
        results = []
        for _ in range(rounds):
            started = ["--started", str(time.monotonic())]
            done = subprocess.run([*command, *started], capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"error: {done.stderr.strip().splitlines()[-1].partition(': ')[2]}")
            results.append(json.loads(done.stdout))
    return {part: [result[part] for result in results] for part in results[0]}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video")
    parser.add_argument("--model", default="mvitv2_s_16x4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--checkpoint", help=argparse.SUPPRESS)  # of the process that is measured
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.checkpoint:
        print(json.dumps(parts_of_first_label(arguments.video, arguments.checkpoint, arguments.started)))
        return
    if arguments.rounds < 1:
        parser.error(f"argument --rounds: {arguments.rounds}: at least 1")
    from mvit_video.errors import MvitVideoError

    try:
        seconds_of_parts = measure_first_label(arguments.video, arguments.model, arguments.rounds)
    except MvitVideoError as reason:
        raise SystemExit(f"error: {reason}") from None
    for part, seconds in seconds_of_parts.items():
        print(f"{part:22s} {median(seconds):6.2f} s ({min(seconds):.2f}-{max(seconds):.2f})")


if __name__ == "__main__":
    main()
