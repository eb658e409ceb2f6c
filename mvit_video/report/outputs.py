"""Files that predict --timeline and explain write to a folder."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from mvit_video.figures import png
from mvit_video.inference.explain import Explanation, explain_video
from mvit_video.inference.predictor import Predictor, open_video
from mvit_video.inference.timeline import label_timeline, write_timeline
from mvit_video.paths import check_fresh, fresh_folder, write_json, write_whole
from mvit_video.progress import Bar, progress_bar
from mvit_video.report.annotate import put_caption, refuse_source, write_annotated, write_copy
from mvit_video.report.render import heat_figure, heated, timeline_figure

TIMELINE_FILES = ("timeline.json", "timeline.csv", "timeline.srt", "timeline.png", "annotated.mp4")
EXPLAIN_FILES = ("explain.json", "explain.png", "explain.mp4")
STRIP_FRAMES = 8

Say = Callable[[str], None]


def folders_for(
    paths: Sequence[str], output: str | Path, files: tuple[str, ...], overwrite: bool
) -> list[tuple[str, Path]]:
    """Assign an output folder to each video: `output` for one, subfolders by name for several.

    Changes nothing. Raises ConfigError if `files` exist without `overwrite`, or if a video is one of them.
    """
    folders: list[Path] = []
    for path in paths:
        folder, name, count = Path(output), Path(path).name, 1
        while len(paths) > 1 and (folder in folders or folder == Path(output)):
            folder, count = Path(output) / (name if count == 1 else f"{name}-{count}"), count + 1
        folders.append(folder)
    for folder in folders:
        for path in paths:
            for file in files:
                refuse_source(path, folder / file)
        check_fresh(folder, files, overwrite)
    return list(zip(paths, folders, strict=True))


def timeline_outputs(predictor: Predictor, path: str, folder: Path, step_seconds: float | None, say: Say) -> str | None:
    """Write TIMELINE_FILES of a video; existing ones are replaced once the timeline is ready.

    If the video cannot be decoded to its end, the timeline ends there, and the reason is returned.
    """
    with ExitStack() as stack:
        bar: list[Bar] = []

        def advance(done: int, total: int) -> None:
            if not bar:
                bar.append(stack.enter_context(progress_bar(Path(path).name, total)))
            bar[0].advance()

        timeline = label_timeline(predictor, path, step_seconds, advance)
    fresh_folder(folder, TIMELINE_FILES, overwrite=True)
    classes = predictor.card.classes
    write_timeline(folder, path, timeline, classes, str(predictor.precision))
    write_whole(folder / "timeline.png", png(timeline_figure(timeline, classes)))
    write_annotated(path, folder / "annotated.mp4", timeline, predictor.guard)
    count, length = len(timeline.segments), timeline.seconds
    say(f"{path}: {count} segments in {length:.1f} s, see {folder / 'timeline.png'} and {folder / 'annotated.mp4'}")
    return timeline.error and f"{timeline.error}; the timeline ends there, at {length:.1f} s"


def explain_outputs(predictor: Predictor, path: str, folder: Path, label: str | None, say: Say) -> None:
    """Write EXPLAIN_FILES of a video; existing ones are replaced once the explanation is ready."""
    explanation = explain_video(predictor, path, label)
    numbers = explanation.best.numbers
    numbers = np.unique(numbers[np.linspace(0, len(numbers) - 1, STRIP_FRAMES).astype(int)])
    with open_video(path, predictor.guard, again=True) as reader:
        frames = reader.frames(numbers)
    fresh_folder(folder, EXPLAIN_FILES, overwrite=True)
    write_whole(folder / "explain.png", png(heat_figure(explanation, numbers.tolist(), list(frames))))
    write_json(folder / "explain.json", {"precision": str(predictor.precision)} | _numbers(explanation))

    def draw(number: int, frame: np.ndarray) -> np.ndarray:
        clip = explanation.clip_at(number)
        warm = heated(frame, clip.at(number), explanation.box)
        return put_caption(warm, f"{explanation.label}  {clip.score:.2f}")

    write_copy(path, folder / "explain.mp4", draw, predictor.guard)
    say(f"{path}: the evidence for '{explanation.label}' is in {folder / 'explain.png'} and {folder / 'explain.mp4'}")


def _numbers(explanation: Explanation) -> dict:
    """Content of explain.json: label, prediction, the heat of each clip, and where and when it peaks."""
    return {
        "label": explanation.label,
        "box": explanation.box,
        **explanation.prediction.as_dict(),
        "clips": [
            {
                "start": float(explanation.shown[clip.numbers[0]]),
                "end": float(explanation.shown[clip.numbers[-1] + 1]),
                "score": clip.score,
                "heat": np.round(clip.heat, 4).tolist(),
            }
            for clip in explanation.clips
        ],
    }
