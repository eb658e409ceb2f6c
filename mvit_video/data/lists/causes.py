"""Many videos that are bad for one reason, in one line with their count."""

import re
from collections.abc import Callable, Iterable, Sequence

FEW = 3  # videos of one cause that have a line each


def by_cause(reasons: Sequence[str]) -> list[list[int]]:
    """The places of the reasons, those of one cause together where they are more than a few.

    One cause are reasons that differ in numbers and quoted names alone.

    >>> by_cause(["frame 3 is missing", "no such file", "frame 8 is missing", "frame 5 is missing", "frame 1 is missing"])
    [[0, 2, 3, 4], [1]]
    """
    groups: dict[str, list[int]] = {}
    for place, reason in enumerate(reasons):
        groups.setdefault(_cause(reason), []).append(place)
    alone = [[place] for group in groups.values() if len(group) <= FEW for place in group]
    return sorted([*alone, *(group for group in groups.values() if len(group) > FEW)])


def in_lines(bad: Iterable[tuple[str, str]]) -> list[str]:
    """(video, reason) pairs as lines: the reason of one, which may begin with its name, or of many, with the first's name."""
    pairs = [(name, reason.removeprefix(f"{name}: ")) for name, reason in bad]
    lines = []
    for group in by_cause([reason for _, reason in pairs]):
        name, reason = pairs[group[0]]
        lines.append(f"{name}: {reason}" if len(group) == 1 else f"{len(group)} videos: {reason}; such as '{name}'")
    return lines


class Complaints:
    """Tells of bad videos while they are found: the first of each cause at once, the others by `end`, as `in_lines` does.

    Called with a sentence that begins with the video's name.
    """

    def __init__(self, complain: Callable[[str], None]) -> None:
        self._complain = complain
        self._others: dict[str, list[tuple[str, str]]] = {}

    def __call__(self, text: str) -> None:
        name, _, reason = text.partition(": ")
        if _cause(reason) in self._others:
            self._others[_cause(reason)].append((name, reason))
        else:
            self._others[_cause(reason)] = []
            self._complain(text)

    def end(self) -> None:
        for line in in_lines(pair for others in self._others.values() for pair in others):
            self._complain(line)


def _cause(reason: str) -> str:
    return re.sub(r"'[^']*'|[0-9]+", "…", reason)
