"""Print the oldest versions that pyproject.toml allows, one a line, for pip to be held to: `make test-oldest`.

Only of the packages on which results rest; the others follow from these.
"""

import re
from pathlib import Path

NAMES = ("torch", "torchvision", "av", "numpy", "pillow", "onnxruntime")


def oldest(settings: str) -> list[str]:
    """`name==bound` for each `"name>=bound"` of a pyproject.toml."""
    bounds = dict(re.findall(r'"([A-Za-z]+)>=([0-9.]+)"', settings))
    return [f"{name}=={bounds[name]}" for name in NAMES]


def main() -> None:
    print(*oldest((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text()), sep="\n")


if __name__ == "__main__":
    main()
