"""Lists of labelled videos, from a csv of `path label` rows or a folder of class folders."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mvit_video.errors import AnnotationError
from mvit_video.paths import local_file

VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".3gp"})


@dataclass(frozen=True)
class VideoRecord:
    """One labelled video. `path` is relative to the data root and is the video's id; `row` is 0 in a folder."""

    path: str
    label: int
    row: int = 0


@dataclass(frozen=True)
class VideoList:
    """Videos with the names of their classes, in the order of the labels; `source` is where both were read."""

    records: tuple[VideoRecord, ...]
    classes: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.records)

    def where(self, record: VideoRecord) -> str:
        """`row 812 of train.csv`, for messages."""
        return f"row {record.row} of {Path(self.source).name}" if record.row else f"in {self.source}"


def read_videos(source: str, root: str, classes: Sequence[str] | None = None) -> VideoList:
    """Labelled videos from a list file or a folder, both relative to `root`.

    `classes` are the known names, in label order, where there are any: those of the training list, say, so that
    labels mean the same in every list. Otherwise they are classes.txt beside the list, else the names of the folders,
    else the labels' numbers. Raises AnnotationError that names the file and the row.
    """
    place = source if source.startswith(("http://", "https://")) else str(Path(root) / source)
    if Path(place).is_dir():
        return _read_class_folders(Path(place), Path(root), classes)
    rows = _split_rows(place)
    if not classes and Path(place).with_name("classes.txt").is_file():
        classes = read_classes(str(Path(place).with_name("classes.txt")))
    records = tuple(_record(path, label, row, place, classes) for row, path, label in rows)
    return VideoList(records, tuple(classes or _classes_from_folders(records)), place)


def read_classes(path: str) -> list[str]:
    """Class names from a text file, one a line, in label order."""
    names = [line.strip() for line in _read_text(path).splitlines()]
    while names and not names[-1]:
        names.pop()
    for row, name in enumerate(names, 1):
        if not name:
            raise AnnotationError(f"{path}: row {row} is empty, wanted a class name in every row")
        if name in names[: row - 1]:
            raise AnnotationError(f"{path}: row {row} repeats the class '{name}'")
    if not names:
        raise AnnotationError(f"{path}: holds no class names, wanted one a line")
    return names


def check_files_exist(videos: VideoList, root: str) -> None:
    """Raise AnnotationError with the count and the first row where files of the list are not there."""
    missing = [record for record in videos.records if not (Path(root) / record.path).is_file()]
    if missing:
        raise AnnotationError(
            f"{videos.source}: {len(missing)} of {len(videos)} videos are missing, the first is '{missing[0].path}' "
            f"({videos.where(missing[0])}): check data.root, which is '{root}'"
        )


def _split_rows(place: str) -> list[tuple[int, str, str]]:
    """(row, path, label text) for each row that is not empty; the label is the last field."""
    rows = []
    for row, line in enumerate(_read_text(place).splitlines(), 1):
        if not line.strip():
            continue
        separator = next((mark for mark in ("\t", ",") if mark in line), " ")
        path, found, label = line.strip().rpartition(separator)
        if not found or not path.strip():
            raise AnnotationError(
                f"{place}: row {row} is '{line.strip()}', wanted a path and a label with a space between"
            )
        if row == 1 and label.strip().lower() == "label":
            continue
        rows.append((row, path.strip().strip('"'), label.strip()))
    if not rows:
        raise AnnotationError(f"{place}: holds no videos, wanted rows of `path label`")
    return rows


def _read_text(path: str) -> str:
    file = local_file(path, AnnotationError)
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as reason:
        raise AnnotationError(f"{path}: is not UTF-8 text (byte {reason.start}): save it as UTF-8") from None


def _record(path: str, text: str, row: int, place: str, classes: Sequence[str] | None) -> VideoRecord:
    if classes and text in classes:
        return VideoRecord(path, classes.index(text), row)
    if not text.isascii() or not text.isdigit():
        known = " or a class name" if classes else ""
        raise AnnotationError(f"{place}: row {row} has the label '{text}', wanted a whole number from 0{known}")
    if classes and int(text) >= len(classes):
        raise AnnotationError(
            f"{place}: row {row} has the label {text}, but there are {len(classes)} classes, 0 to {len(classes) - 1}"
        )
    return VideoRecord(path, int(text), row)


def _classes_from_folders(records: Sequence[VideoRecord]) -> list[str]:
    """The folder of each label where folders and labels go together one to one, else the numbers themselves."""
    names: dict[int, str] = {}
    for record in records:
        folder = Path(record.path).parent.name
        if not folder or names.setdefault(record.label, folder) != folder:
            names = {}
            break
    count = max(record.label for record in records) + 1
    if sorted(names) == list(range(count)) and len(set(names.values())) == count:
        return [names[label] for label in range(count)]
    return [str(label) for label in range(count)]


def _read_class_folders(folder: Path, root: Path, classes: Sequence[str] | None) -> VideoList:
    names = sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    names = [name for name in names if _videos_in(folder / name)]
    if not names:
        raise AnnotationError(f"{folder}: holds no class folders with videos, wanted {folder.name}/CLASS/VIDEO.mp4")
    known = list(classes) if classes else names
    records = []
    for name in names:
        if name not in known:
            raise AnnotationError(f"{folder}: the folder '{name}' is none of the {len(known)} known classes")
        records += [VideoRecord(str(path.relative_to(root)), known.index(name)) for path in _videos_in(folder / name)]
    return VideoList(tuple(records), tuple(known), str(folder))


def _videos_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
