"""The forms that lists come in. Each has a reader, which says whether a list is of its form, and gives its rows as they are
written; `read.py` finds the files and turns labels into numbers.

Readers of plugins come in through the same door as ours, `register_list_reader`, and are asked before them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from mvit_video.plugins import Registry, calling_module


class Row(NamedTuple):
    """One video as its list writes it. `label` is a number or a name, several with `;` between, or empty."""

    number: int
    path: str
    label: str


@dataclass(frozen=True)
class Listing:
    """What a reader finds: rows, and class names with a note on where they come from.

    `paths` says what the path of a row is: a file (or frame folder) relative to the data root; the name of a video, without
    a suffix, that is looked for below the root and is otherwise taken to lie at `usual`, such as `{label}/{name}.mp4`; or a
    folder whose videos are all meant. `split` names the folder that is preferred where a name is found several times.
    `by_name`: labels are names, never numbers. `published`: the shipped class names that an official list goes with.
    `label_ids`: the dataset's own names are in a labels.json beside the list.
    """

    rows: Sequence[Row]
    classes: tuple[str, ...] = ()
    class_note: str = ""
    by_name: bool = False
    published: str = ""
    label_ids: bool = False
    notes: tuple[str, ...] = ()
    paths: Literal["files", "names", "folders"] = "files"
    usual: str = "{name}"
    split: str = ""


class ListReader(Protocol):
    """Reads lists of one form."""

    def matches(self, path: str) -> bool:
        """Whether the list has this form, by its name or its first line. `path` is a file, a folder or an address, or a name
        that stands for several files; there may be nothing of that name."""

    def read(self, path: str, root: str) -> Listing:
        """The rows of the list. Raises AnnotationError that names the file and the row."""


READERS: Registry[ListReader] = Registry("list format", ("mvit_video.data.lists.our_formats",))


def register_list_reader(name: str, reader: ListReader) -> None:
    """Let `reader` read lists of its form wherever a list is named: data.train, `verify --annotations`, `features`.

    Raises ConfigError for a name that is taken.
    """
    READERS.add(name, reader, calling_module())


def reader_of(path: str) -> ListReader:
    """The first reader whose form the list has: of those that plugins register, then of ours."""
    names = READERS.names()
    for name in sorted(names, key=lambda name: READERS.plugin_of(name) is None):
        if READERS.get(name).matches(path):
            return READERS.get(name)
    raise AssertionError(f"no reader takes {path}")
