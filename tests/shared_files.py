"""Real videos, datasets and golden numbers that lie beside the repository, not in it."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("MVIT_VIDEO_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def shared(path: str) -> Path:
    """A file or folder of ../shared (or of $MVIT_VIDEO_SHARED); the test is skipped where it is absent."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"{path} is not in {SHARED}: put the shared files beside the repository")
    return found
