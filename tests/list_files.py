"""Lists and empty files for tests that read no image."""

from pathlib import Path


def write(path: Path, content: str | bytes = b"") -> Path:
    """A file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def paths_and_labels(videos) -> list[tuple[str, tuple[int, ...]]]:
    return [(record.path, record.labels) for record in videos.records]
