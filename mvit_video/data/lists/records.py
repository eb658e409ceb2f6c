"""A labelled video, and a list of them with the names of their classes."""

from dataclasses import dataclass
from pathlib import Path

NO_LABEL = -1


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One video: a file or a folder of frames. `path` is relative to the data root and is the video's id.

    `label` is the first of its labels, NO_LABEL only where a list without labels was asked for. `row` is 0 where the
    list is a folder.
    """

    path: str
    label: int
    row: int = 0
    more_labels: tuple[int, ...] = ()

    @property
    def labels(self) -> tuple[int, ...]:
        return () if self.label == NO_LABEL else (self.label, *self.more_labels)


@dataclass(frozen=True)
class VideoList:
    """Videos with the names of their classes, in the order of the labels; `source` is where both were read.

    `notes` are sentences that the user should see. `missing` are the videos whose files are not there, where that is
    allowed (see `check_files_exist`). `named` is False where nothing names the classes: they are then called by folders or
    numbers.
    """

    records: tuple[VideoRecord, ...]
    classes: tuple[str, ...]
    source: str
    notes: tuple[str, ...] = ()
    missing: tuple[VideoRecord, ...] = ()
    named: bool = True

    def __len__(self) -> int:
        return len(self.records)

    @property
    def with_several_labels(self) -> tuple[VideoRecord, ...]:
        return tuple(record for record in self.records if record.more_labels)

    def where(self, record: VideoRecord) -> str:
        """`row 812 of train.csv`, for messages."""
        return f"row {record.row} of {Path(self.source).name}" if record.row else f"in {self.source}"
