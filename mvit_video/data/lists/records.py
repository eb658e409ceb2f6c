"""A labelled video, and a list of them with class names."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any, overload

import numpy as np

from mvit_video.data.lists.shared_arrays import SharedArrays

NO_LABEL = -1
CHUNK = 4096  # records that are read from the arrays together


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """One video: a file or a folder of frames. `path` is relative to the data root and is the video's id.

    `label` is the first of its labels, or NO_LABEL if the list was read without labels. `row` is 0 if the list is a folder.
    """

    path: str
    label: int
    row: int = 0
    more_labels: tuple[int, ...] = ()

    @property
    def labels(self) -> tuple[int, ...]:
        return () if self.label == NO_LABEL else (self.label, *self.more_labels)


class VideoRecords(Sequence[VideoRecord]):
    """A sequence of records, stored in a few arrays and made on access.

    Python stores reference counts in its objects: each worker that reads a tuple of a million records would copy it. Arrays
    are shared by all workers without a copy (`python -m mvit_video.benchmark.lists` measures it).
    """

    def __init__(self, columns: SharedArrays) -> None:
        self._columns = columns
        self._text, self._ends, self.labels, self._rows, self._more, self._more_ends = columns.arrays

    @classmethod
    def of(cls, records: Iterable[VideoRecord]) -> "VideoRecords":
        paths, ends, labels, rows = bytearray(), array("q"), array("i"), array("i")
        more, more_ends = array("i"), array("q")
        for record in records:
            paths += record.path.encode("utf-8", "surrogatepass")
            ends.append(len(paths))
            labels.append(record.label)
            rows.append(record.row)
            more.extend(record.more_labels)
            more_ends.append(len(more))
        if not more:
            more_ends = array("q")
        columns = [np.frombuffer(column, column.typecode).copy() for column in (ends, labels, rows, more, more_ends)]
        return cls(SharedArrays([np.frombuffer(paths, np.uint8).copy(), *columns]))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, place: int) -> VideoRecord: ...

    @overload
    def __getitem__(self, place: slice) -> "VideoRecords": ...

    def __getitem__(self, place: int | slice) -> "VideoRecord | VideoRecords":
        places = range(len(self))[place]
        if isinstance(places, range):
            return self.take(places)
        return next(self._between(places, places + 1))

    def __iter__(self) -> Iterator[VideoRecord]:
        for first in range(0, len(self), CHUNK):
            yield from self._between(first, min(first + CHUNK, len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == another for one, another in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"VideoRecords({', '.join(map(repr, self[:3]))}{', ...' if len(self) > 3 else ''})"

    def __reduce__(self) -> tuple[Any, ...]:
        return VideoRecords, (self._columns,)

    def take(self, places: Iterable[int]) -> "VideoRecords":
        """The records at these indices, in this order."""
        return VideoRecords.of(next(self._between(place, place + 1)) for place in places)

    @property
    def with_several_labels(self) -> tuple[VideoRecord, ...]:
        return tuple(self[place] for place in np.flatnonzero(np.diff(self._more_ends, prepend=0)).tolist())

    def paths(self) -> Iterator[str]:
        """Iterate over the paths only, which is faster than over the records."""
        for first in range(0, len(self), CHUNK):
            yield from self._paths_between(first, min(first + CHUNK, len(self)))

    def _paths_between(self, first: int, last: int) -> Iterator[str]:
        start = int(self._ends[first - 1]) if first else 0
        text, begin = self._text[start : self._ends[last - 1]].tobytes(), 0
        for end in (self._ends[first:last] - start).tolist():
            yield text[begin:end].decode("utf-8", "surrogatepass")
            begin = end

    def _between(self, first: int, last: int) -> Iterator[VideoRecord]:
        several: Iterable[tuple[int, ...]] = repeat(())
        if len(self._more):
            edges = [int(self._more_ends[first - 1]) if first else 0, *self._more_ends[first:last].tolist()]
            several = (tuple(self._more[start:end].tolist()) for start, end in pairwise(edges))
        labels, rows = self.labels[first:last].tolist(), self._rows[first:last].tolist()
        return map(VideoRecord, self._paths_between(first, last), labels, rows, several)


@dataclass(frozen=True)
class VideoList:
    """Videos with class names in label order; `source` is where both were read.

    `records` may be any sequence of records. `notes` are sentences for the user. `missing` are videos without a file (see
    `check_files_exist`), `refused` rows that may not be read, with the reasons (see `read_videos`). `named` is False if
    nothing names the classes, which are then named after folders or numbers.
    """

    records: VideoRecords
    classes: tuple[str, ...]
    source: str
    notes: tuple[str, ...] = ()
    missing: tuple[VideoRecord, ...] = ()
    named: bool = True
    refused: tuple[tuple[VideoRecord, str], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.records, VideoRecords):
            object.__setattr__(self, "records", VideoRecords.of(self.records))

    def __len__(self) -> int:
        return len(self.records)

    @property
    def with_several_labels(self) -> tuple[VideoRecord, ...]:
        return self.records.with_several_labels

    def where(self, record: VideoRecord) -> str:
        """`row 812 of train.csv`, for messages."""
        return f"row {record.row} of {Path(self.source).name}" if record.row else f"in {self.source}"
