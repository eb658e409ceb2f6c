"""Plant wrong labels and re-encoded copies in a dataset, and measure how many of them `mvit-video browse` finds.

python tools/planted_faults.py OUTPUT --checkpoint demo_output/model.safetensors    # new videos of the demonstration
python tools/planted_faults.py OUTPUT --data DIR                                    # copies alone, in DIR/train.csv
"""

import argparse
import csv
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import av
import numpy as np
from PIL import Image

from mvit_video import cli
from mvit_video.data.lists.read import read_videos
from mvit_video.data.synthetic import write_dataset
from mvit_video.data.video.reader import VideoReader

COPIES, WRONG_SHARE = 20, 0.05
CHANGES = ((0.5, 35, 1.0), (1.5, 28, 1.0), (0.75, 32, 0.5), (1.0, 23, 0.8))  # size, crf, rate: each times the source's
VIDEOS, SEED = (400, 8), 99  # of the demonstration's kind, which its network has not seen


@dataclass(frozen=True)
class Planted:
    """Paths of copies with their sources, and of training videos with a wrong label."""

    copies: dict[str, str]
    wrong: set[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="a new folder for the dataset and the page")
    parser.add_argument("--checkpoint", help="a network that was trained on other videos")
    parser.add_argument("--data", type=Path, help="plant in a copy of this dataset, which holds train.csv")
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    root = arguments.output / "data"
    if arguments.data:
        shutil.copytree(arguments.data, root)
    else:
        write_dataset(root, *VIDEOS, arguments.seed, workers=2)
    planted = plant(root, arguments.seed, wrong_share=WRONG_SHARE if arguments.checkpoint else 0.0)
    print(json.dumps(measure(root, planted, arguments.output / "page", arguments.checkpoint), indent=2))


def plant(root: Path, seed: int, copies: int = COPIES, wrong_share: float = WRONG_SHARE) -> Planted:
    """Write planted.csv, with wrong labels, and copies.csv of videos in it; both are lists."""
    videos = read_videos("train.csv", str(root))
    rng, records = np.random.default_rng(seed), list(videos.records)
    labels = np.array([record.label for record in records])
    wrong = rng.choice(len(labels), round(wrong_share * len(labels)), replace=False)
    labels[wrong] = (labels[wrong] + rng.integers(1, len(videos.classes), len(wrong))) % len(videos.classes)
    right = np.setdiff1d(np.arange(len(labels)), wrong)
    made = {}
    (root / "copies").mkdir()
    for number, place in enumerate(rng.choice(right, copies, replace=False).tolist()):
        name = f"copies/{number:03}.mp4"
        reencode(root / records[place].path, root / name, *CHANGES[number % len(CHANGES)])
        made[name] = records[place]
    write_list(root / "planted.csv", ((record.path, label) for record, label in zip(records, labels, strict=True)))
    write_list(root / "copies.csv", ((name, record.label) for name, record in made.items()))
    return Planted({name: record.path for name, record in made.items()}, {records[place].path for place in wrong})


def write_list(file: Path, rows: Iterable[tuple[str, int]]) -> None:
    file.write_text("".join(f"{path}\t{label}\n" for path, label in rows))


def reencode(source: Path, target: Path, size: float, crf: int, rate: float) -> None:
    """A copy of other size, compression and rate, which lasts as long."""
    with VideoReader(source) as reader:
        frames, fps = reader.frames(np.arange(len(reader))), reader.fps
    count = max(round(len(frames) * rate), 1)
    height, width = (max(round(side * size / 2), 1) * 2 for side in frames.shape[1:3])
    with av.open(str(target), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps * rate).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt, stream.options = height, width, "yuv420p", {"crf": str(crf)}
        for place in ((np.arange(count) + 0.5) * len(frames) / count).astype(int):
            picture = Image.fromarray(frames[place]).resize((width, height))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())


def measure(root: Path, planted: Planted, page: Path, checkpoint: str | None) -> dict:
    """Precision and recall of pairs of near-duplicates, and of doubtful labels where there is a network."""
    config = root / "planted.yaml"
    config.write_text(f"data: {{root: {json.dumps(str(root))}, train: planted.csv, val: copies.csv}}\n")
    words = ["browse", str(config), "--output", str(page), "--strips", "1"]
    if cli.main([*words, *(["--checkpoint", checkpoint, "--device", "cpu"] if checkpoint else [])]):
        raise SystemExit("browse has failed")
    groups: dict[str, list[str]] = {}
    for row in read_rows(page / "duplicates.csv"):
        groups.setdefault(row["group"], []).append(row["video"])
    found = {frozenset(pair) for group in groups.values() for pair in combinations(group, 2)}
    result = {"copies": score(found, {frozenset(pair) for pair in planted.copies.items()})}
    if checkpoint:
        result["labels"] = score({row["video"] for row in read_rows(page / "doubts.csv")}, planted.wrong)
    return result


def read_rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def score(found: set, planted: set) -> dict[str, float]:
    right = len(found & planted)
    return {
        "planted": len(planted),
        "found": len(found),
        "precision": round(right / max(len(found), 1), 3),
        "recall": round(right / max(len(planted), 1), 3),
    }


if __name__ == "__main__":
    main()
