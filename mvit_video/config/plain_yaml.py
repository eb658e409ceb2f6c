"""Untrusted YAML as plain values: no objects, bounded size, depth and aliases, and duplicate keys reported."""

from collections.abc import Iterator
from typing import Any

import yaml

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 50  # settings need four
MAX_VALUES = 100_000  # with aliases expanded: ten lines of them can make a billion values


class InvalidYaml(ValueError):
    """Text that is not YAML or exceeds a limit; the reason reads on after the file's name."""


def plain_values(text: str) -> tuple[Any, dict[str, list[int]]]:
    """Parse YAML into plain values, and the lines of duplicate keys by their dotted names.

    The last of duplicate keys counts, as in PyYAML. Raises InvalidYaml.
    """
    if len(text) > MAX_CHARACTERS:
        raise InvalidYaml(f"is too long: {len(text):,} characters are above the limit of {MAX_CHARACTERS:,}")
    loader: _Loader | None = None
    try:
        loader = _Loader(text)  # refuses control characters
        node = loader.get_single_node()
        if node is None:
            return None, {}
        duplicates = dict(_duplicates(node))  # before merged keys are put into their mapping
        return loader.construct_document(node), duplicates
    except (yaml.YAMLError, ValueError) as reason:  # ValueError: the 30th of February
        raise InvalidYaml(f"is not YAML ({' '.join(str(reason).split())})") from None
    finally:
        if loader is not None:
            loader.dispose()


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits that are enforced while parsing, before anything is built."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0
        self._values: dict[int, int] = {}  # of each node with all that is in it, by the node's id

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        alias = self.check_event(yaml.AliasEvent)
        line = self.peek_event().start_mark.line + 1
        self._level += 1
        if self._level > MAX_DEPTH:
            raise yaml.YAMLError(f"line {line} is nested deeper than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self._level -= 1
        if alias and id(node) not in self._values:
            raise yaml.YAMLError(f"line {line} has an alias that contains itself")
        if not alias:
            count = 1 + sum(self._values[id(child)] for child in _children(node))
            if count > MAX_VALUES:
                raise yaml.YAMLError(f"line {line} expands to more than {MAX_VALUES:,} values")
            self._values[id(node)] = count
        return node


def _children(node: yaml.Node | None) -> Iterator[yaml.Node]:
    for child in node.value if isinstance(node, yaml.CollectionNode) else ():
        yield from child if isinstance(child, tuple) else (child,)


def _duplicates(node: yaml.Node, prefix: str = "") -> Iterator[tuple[str, list[int]]]:
    """Yield (dotted name, lines) of every duplicate key. `<<` may occur several times."""
    lines: dict[str, list[int]] = {}
    for child in node.value if isinstance(node, yaml.CollectionNode) else ():
        key, value = child if isinstance(child, tuple) else (None, child)
        name = str(key.value) if key is not None else ""
        if key is not None and name != "<<":
            lines.setdefault(name, []).append(key.start_mark.line + 1)
        yield from _duplicates(value, f"{prefix}{name}." if key is not None else prefix)
    yield from ((f"{prefix}{name}", places) for name, places in lines.items() if len(places) > 1)
