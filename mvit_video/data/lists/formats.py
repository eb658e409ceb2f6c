"""The registry of list formats. A reader recognises lists of its format and returns their rows as written; `read.py` finds
the files and converts labels to numbers.

Plugins register readers with `register_list_reader`, as we do; theirs are tried first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from mvit_video.plugins import Registry, calling_module


class Row(NamedTuple):
    """One video as written in its list. `label` is a number or a name, several separated by `;`, or empty."""

    number: int
    path: str
    label: str


@dataclass(frozen=True)
class Listing:
    """What a reader returns: rows, and class names with a note on where they come from.

    `paths` is the kind of the rows' paths: "files", files or frame folders relative to the data root; "names", names of
    videos without suffix, searched for under the root, else assumed at `usual`, such as `{label}/{name}.mp4`; "folders",
    folders of videos. `split` names the folder that is preferred if a name is found more than once.
    `by_name`: labels are names, never numbers. `published`: the shipped class names that belong to an official list.
    `label_ids`: the dataset's class names are in a labels.json next to the list.
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
    """Reads lists of one format."""

    def matches(self, path: str) -> bool:
        """Whether the list has this format, by its name or first line. `path` is a file, a folder, a URL, or a name that
        stands for several files; it need not exist."""

    def read(self, path: str, root: str) -> Listing:
        """The rows of the list. Raises AnnotationError that names the file and the row."""


READERS: Registry[ListReader] = Registry("list format", ("mvit_video.data.lists.builtin_formats",))


def register_list_reader(name: str, reader: ListReader) -> None:
    """Register a reader of lists, for data.train, `verify --annotations`, `features` and so on.

    Raises ConfigError for a name that is taken.
    """
    READERS.add(name, reader, calling_module())


def reader_of(path: str) -> ListReader:
    """Find the first reader that recognises the list: those of plugins, then ours."""
    names = READERS.names()
    for name in sorted(names, key=lambda name: READERS.plugin_of(name) is None):
        if READERS.get(name).matches(path):
            return READERS.get(name)
    raise AssertionError(f"no reader takes {path}")
