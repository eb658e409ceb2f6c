"""Class names in label order: from a dataset's own file, or from the published lists shipped here."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path

from mvit_video.data.lists.text import read_json, read_text
from mvit_video.errors import AnnotationError

PUBLISHED = {"kinetics400": "Kinetics-400", "ssv2": "Something-Something v2"}


@cache
def published_classes(dataset: str) -> tuple[str, ...]:
    """Load a shipped list: kinetics400 (alphabetical, as published) or ssv2 (in the order of the dataset's label ids)."""
    return tuple(read_classes(str(files("mvit_video.data.lists") / f"{dataset}_classes.txt")))


def read_classes(path: str) -> list[str]:
    """Read class names in label order from a text file, one per line, or a json of {name: id} such as SSv2's labels.json."""
    if path.lower().endswith(".json"):
        return _from_label_ids(read_json(path), path)
    names = [line.strip() for line in read_text(path).split("\n")]
    while names and not names[-1]:
        names.pop()
    rows: dict[str, int] = {}
    for row, name in enumerate(names, 1):
        if not name:
            raise AnnotationError(f"{path}: row {row} is empty, expected a class name in every row")
        if rows.setdefault(name, row) != row:
            raise AnnotationError(f"{path}: row {row} repeats the class '{name}'")
    if not names:
        raise AnnotationError(f"{path}: contains no class names, expected one per line")
    return names


def _from_label_ids(content: object, path: str) -> list[str]:
    if not isinstance(content, dict) or not content:
        raise AnnotationError(f'{path}: expected an object of class names and ids, such as {{"Moving up": "0"}}')
    names: dict[int, str] = {}
    for name, number in content.items():
        text = str(number)
        if not text.isascii() or not text.isdigit() or len(text) > 6:
            raise AnnotationError(f"{path}: the class '{name}' has the id '{text}', expected a whole number from 0")
        if names.setdefault(int(text), without_brackets(name)) != without_brackets(name):
            raise AnnotationError(f"{path}: '{names[int(text)]}' and '{name}' have the same id {text}")
    gap = next((number for number in range(len(names)) if number not in names), None)
    if gap is not None:
        raise AnnotationError(f"{path}: has {len(names)} classes but no id {gap}, expected ids 0 to {len(names) - 1}")
    ordered = [names[number] for number in range(len(names))]
    twice = next((name for place, name in enumerate(ordered) if name in ordered[:place]), None)
    if twice is not None:
        raise AnnotationError(f"{path}: repeats the class '{twice}'")
    return ordered


def without_brackets(template: str) -> str:
    """`Holding [something] next to [something]` -> `Holding something next to something`."""
    return template.replace("[", "").replace("]", "")


def name_key(name: str) -> str:
    """Normalise a class name for comparison: `tying knot (not on a tie)` and `tying_knot_not_on_a_tie` are equal."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def classes_next_to(place: str, root: str, label_ids: bool) -> tuple[list[str], str] | None:
    """(names, file) of classes.txt next to the list, or with `label_ids` of the dataset's labels.json; None if there is none.

    If the list is the root's own class folders, classes.txt is looked for in the root.
    """
    if place.startswith(("http://", "https://")):
        return None
    list_file = Path(place)
    is_root = list_file.resolve() == Path(root).resolve()
    candidates = [(list_file if is_root else list_file.parent) / "classes.txt"]
    if label_ids:
        prefix = list_file.stem.rpartition("-")[0]
        candidates += [list_file.with_name(f"{prefix}-labels.json"), *sorted(list_file.parent.glob("*labels.json"))]
    found = next((file for file in candidates if file.is_file()), None)
    return None if found is None else (read_classes(str(found)), str(found))


def difference_from_published(classes: Sequence[str], dataset: str) -> str:
    """Describe how class names differ from the published ones of `dataset`; an empty string if they do not."""
    published = published_classes(dataset)
    if tuple(classes) == published:
        return ""
    changed = sum(ours != theirs for ours, theirs in zip(classes, published, strict=False))
    label, ours, theirs = first_difference(classes, published)
    what = f"{len(classes)} classes, but {PUBLISHED[dataset]} has {len(published)}"
    if len(classes) == len(published):
        what = f"{changed} of {len(published)} class names differ from {PUBLISHED[dataset]}"
    first = f", the first is class {label}, '{ours}' instead of '{theirs}'" if changed else ""
    return f"{what}{first}: labels of published weights do not match"


def first_difference(one: Sequence[str], other: Sequence[str]) -> tuple[int, str, str]:
    """Label and names of the first class in which two lists of class names differ; "nothing" past the end of one."""
    pairs = zip_longest(one, other, fillvalue="nothing")
    return next((label, *pair) for label, pair in enumerate(pairs) if pair[0] != pair[1])


def class_lookup(classes: Iterable[str]) -> Callable[[str], int | None]:
    """Map a name to its label: by the exact name, else by a unique `name_key`.

    Names that are numbers must match exactly: `-1` is not `1`, and `1;5` not `15`.
    """
    labels = {name: label for label, name in enumerate(classes)}
    keys: dict[str, int | None] = {}
    for name, label in labels.items():
        keys[name_key(name)] = None if name_key(name) in keys else label
    keys = {key: label for key, label in keys.items() if key and not key.isdigit()}
    return lambda name: labels.get(name, keys.get(name_key(name)))
