"""YAML of strangers as plain values: no objects, within bounds of size, depth and aliases, and no key lost in silence."""

from collections.abc import Iterator
from typing import Any

import yaml

MOST_LETTERS = 1_000_000
MOST_LEVELS = 50  # settings need four
MOST_VALUES = 100_000  # with aliases written out: ten lines of them can stand for a billion values


class NotYaml(ValueError):
    """A text that is no YAML, or beyond the bounds: the reason, in words that fit behind the file's name."""


def plain_values(text: str) -> tuple[Any, dict[str, list[int]]]:
    """What a YAML text says, and by their dotted names the lines of keys that stand more than once in their mapping.

    The last of equal keys counts, as YAML's readers have it. Raises NotYaml.
    """
    if len(text) > MOST_LETTERS:
        raise NotYaml(f"is no configuration: {len(text):,} characters are above the limit of {MOST_LETTERS:,}")
    loader: _Loader | None = None
    try:
        loader = _Loader(text)  # which refuses letters that no text has
        node = loader.get_single_node()
        if node is None:
            return None, {}
        repeats = dict(_repeats(node))  # before merged keys are put into their mapping
        return loader.construct_document(node), repeats
    except (yaml.YAMLError, ValueError) as reason:  # ValueError: the 30th of February
        raise NotYaml(f"is not YAML ({' '.join(str(reason).split())})") from None
    finally:
        if loader is not None:
            loader.dispose()


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with bounds, kept while the text is read: what is beyond them is never built."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0
        self._values: dict[int, int] = {}  # of each node with all that is in it, by the node's id

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        alias = self.check_event(yaml.AliasEvent)
        line = self.peek_event().start_mark.line + 1
        self._level += 1
        if self._level > MOST_LEVELS:
            raise yaml.YAMLError(f"line {line} is nested deeper than {MOST_LEVELS} levels")
        node = super().compose_node(parent, index)
        self._level -= 1
        if alias and id(node) not in self._values:
            raise yaml.YAMLError(f"line {line} has an alias for what it stands in")
        if not alias:
            count = 1 + sum(self._values[id(child)] for child in _children(node))
            if count > MOST_VALUES:
                raise yaml.YAMLError(f"line {line} stands for more than {MOST_VALUES:,} values")
            self._values[id(node)] = count
        return node


def _children(node: yaml.Node | None) -> Iterator[yaml.Node]:
    for child in node.value if isinstance(node, yaml.CollectionNode) else ():
        yield from child if isinstance(child, tuple) else (child,)


def _repeats(node: yaml.Node, prefix: str = "") -> Iterator[tuple[str, list[int]]]:
    """(dotted name, lines) of every key that its mapping has more than once. `<<` may stand several times."""
    lines: dict[str, list[int]] = {}
    for child in node.value if isinstance(node, yaml.CollectionNode) else ():
        key, value = child if isinstance(child, tuple) else (None, child)
        name = str(key.value) if key is not None else ""
        if key is not None and name != "<<":
            lines.setdefault(name, []).append(key.start_mark.line + 1)
        yield from _repeats(value, f"{prefix}{name}." if key is not None else prefix)
    yield from ((f"{prefix}{name}", places) for name, places in lines.items() if len(places) > 1)
