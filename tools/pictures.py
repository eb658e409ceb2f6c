"""The pictures of README.md, from the demonstration's own videos: `make pictures`."""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from mvit_video import cli

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="what `make demo` has written")
    parser.add_argument("output", type=Path, help="the folder of the pictures")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    draw(arguments.demo, arguments.output)


def draw(demo: Path, output: Path) -> None:
    checkpoint = ["--checkpoint", str(demo / "model.safetensors")]
    with tempfile.TemporaryDirectory() as scratch:
        run("predict", str(demo / "data/long.mp4"), "--timeline", *checkpoint, "--output", f"{scratch}/timeline")
        small(Path(scratch, "timeline/timeline.png"), output / "timeline.png")
        run("explain", str(demo / "data/val/00003.mp4"), *checkpoint, "--output", f"{scratch}/why")
        small(Path(scratch, "why/explain.png"), output / "heat_map.png")
        photographed(demo / "report.html", Path(scratch, "report.png"))
        small(Path(scratch, "report.png"), output / "report.png")


def run(*words: str) -> None:
    if cli.main(words):
        raise SystemExit(f"mvit-video {' '.join(words)} has failed")


def photographed(page: Path, picture: Path) -> None:
    """The top of a page in a browser without a window."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"none of {', '.join(BROWSERS)} is installed: install one, to photograph {page}")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=6000"]
    command = [browser, *options, "--window-size=1200,1400", f"--screenshot={picture}", page.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True)


def small(source: Path, target: Path) -> None:
    """A picture of at most WIDTH pixels and 256 colours."""
    with Image.open(source) as picture:
        height = round(picture.height * min(WIDTH / picture.width, 1))
        scaled = picture.convert("RGB").resize((min(WIDTH, picture.width), height), Image.Resampling.LANCZOS)
    scaled.quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    main()
