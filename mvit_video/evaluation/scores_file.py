"""scores.npz: the scores of every video, as plain arrays; pickled objects are neither written nor read."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mvit_video.download import local_file
from mvit_video.errors import ConfigError
from mvit_video.evaluation.views import VideoScores
from mvit_video.paths import write_whole

SCORES = "scores.npz"
ARRAYS = ("names", "labels", "scores", "decoded", "classes")
MAX_BYTES = 4 << 30  # unpacked; 700 classes of 35,000 videos are 0.1 GB


def save_scores(path: str | Path, scores: VideoScores, classes: Sequence[str]) -> None:
    """Names and classes as unicode arrays, beside `scores`, `labels` and `decoded` of VideoScores."""
    content = io.BytesIO()
    np.savez_compressed(
        content,
        names=np.array(scores.names, dtype=np.str_),
        labels=scores.labels,
        scores=scores.scores,
        decoded=scores.decoded,
        classes=np.array(classes, dtype=np.str_),
    )
    write_whole(path, content.getvalue())


def load_scores(path: str | Path) -> tuple[VideoScores, tuple[str, ...]]:
    """Scores and classes of a file that `save_scores` wrote, or of its folder.

    Raises ConfigError for a file that is invalid.
    """
    file = Path(path) / SCORES if Path(path).is_dir() else local_file(path)
    try:
        arrays = _read_arrays(local_file(file))
    except (ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile) as reason:
        raise ConfigError(f"{file}: is no {SCORES} of `mvit-video evaluate` ({_first_line(reason)})") from None
    if wrong := _what_is_wrong(**arrays):
        raise ConfigError(f"{file}: {wrong}: write it again with `mvit-video evaluate`")
    scores = VideoScores(arrays["names"].tolist(), arrays["labels"], arrays["scores"], arrays["decoded"])
    return scores, tuple(arrays["classes"].tolist())


def _read_arrays(file: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_BYTES:
            raise ValueError(f"unpacks to {size:,} bytes, at most {MAX_BYTES:,} are read")
    with np.load(file, allow_pickle=False) as content:
        missing = [name for name in ARRAYS if name not in content]
        if missing:
            raise ValueError(f"contains no array '{missing[0]}'")
        return {name: content[name] for name in ARRAYS}


def _what_is_wrong(
    names: np.ndarray, labels: np.ndarray, scores: np.ndarray, decoded: np.ndarray, classes: np.ndarray
) -> str:
    """What is wrong with the arrays of a file; empty if nothing is."""
    kinds = "".join(array.dtype.kind for array in (names, scores, decoded, classes))
    if kinds != "UfbU" or labels.dtype.kind not in "ib":
        return "its arrays have unexpected types"
    count, wide = len(names) if names.ndim == 1 else 0, len(classes) if classes.ndim == 1 else 0
    labels_shape = (count, wide) if labels.dtype.kind == "b" else (count,)
    if not count or not wide or scores.shape != (count, wide) or decoded.shape != (count,):
        return f"its shapes do not match: {names.shape} names, {scores.shape} scores, {classes.shape} classes"
    if labels.shape != labels_shape:
        return f"its labels have shape {labels.shape}, expected {labels_shape}"
    if labels.dtype.kind == "i" and (labels.min() < 0 or labels.max() >= wide):
        return f"its labels go from {labels.min()} to {labels.max()}, expected 0 to {wide - 1}"
    if not (np.isfinite(scores).all() and scores.min() >= 0 and scores.max() <= 1 + 1e-6):
        return "its scores are not all from 0 to 1"
    return ""


def _first_line(reason: BaseException) -> str:
    return (str(reason) or type(reason).__name__).splitlines()[0]
