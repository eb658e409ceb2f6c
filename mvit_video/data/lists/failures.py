"""Bad videos grouped by cause: one line with a count for many videos that fail for the same reason."""

import re
from collections.abc import Callable, Iterable, Sequence

FEW = 3  # videos of one cause that get a line each


def group_by_cause(reasons: Sequence[str]) -> list[list[int]]:
    """Group the indices of reasons by cause; up to FEW of one cause stay apart.

    Reasons that differ only in numbers and quoted names have one cause.

    >>> group_by_cause(["frame 3 is missing", "no such file", "frame 8 is missing", "frame 5 is missing", "frame 1 is missing"])
    [[0, 2, 3, 4], [1]]
    """
    groups: dict[str, list[int]] = {}
    for place, reason in enumerate(reasons):
        groups.setdefault(_cause(reason), []).append(place)
    alone = [[place] for group in groups.values() if len(group) <= FEW for place in group]
    return sorted([*alone, *(group for group in groups.values() if len(group) > FEW)])


def summary_lines(bad: Iterable[tuple[str, str]]) -> list[str]:
    """Summarise (video, reason) pairs in one line per cause; a reason may begin with the video's name."""
    pairs = [(name, reason.removeprefix(f"{name}: ")) for name, reason in bad]
    lines = []
    for group in group_by_cause([reason for _, reason in pairs]):
        name, reason = pairs[group[0]]
        lines.append(f"{name}: {reason}" if len(group) == 1 else f"{len(group)} videos: {reason}; such as '{name}'")
    return lines


class FailureReporter:
    """Reports bad videos as they are found: the first of each cause at once, the others summarised by `end`.

    Called with a sentence that begins with the video's name.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._others: dict[str, list[tuple[str, str]]] = {}

    def __call__(self, text: str) -> None:
        name, _, reason = text.partition(": ")
        if _cause(reason) in self._others:
            self._others[_cause(reason)].append((name, reason))
        else:
            self._others[_cause(reason)] = []
            self._report(text)

    def end(self) -> None:
        for line in summary_lines(pair for others in self._others.values() for pair in others):
            self._report(line)


def _cause(reason: str) -> str:
    return re.sub(r"'[^']*'|[0-9]+", "…", reason)
