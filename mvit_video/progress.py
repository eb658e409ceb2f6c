"""A progress bar with rate and time left; in a log file, a line now and then instead."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from mvit_video.printable import printable

SECONDS_BETWEEN_LINES = 30.0


class Bar:
    """What a loop needs: `advance` by some units, with a short text such as `loss 1.23`.

    In a log file a loop without a text leaves no line where it takes less time than is between two.
    """

    def __init__(self, total: int, done: int, console: Console, progress: Progress | None, description: str) -> None:
        self._total, self._done, self._first = total, done, done
        self._console, self._progress, self._description = console, progress, description
        self._start = self._printed = time.monotonic()
        self._task = progress.add_task(description, total=total, completed=done, text="") if progress else None

    def advance(self, count: int = 1, text: str = "") -> None:
        text = printable(text)
        self._done += count
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=self._done, text=text)
        elif time.monotonic() - self._printed > SECONDS_BETWEEN_LINES or self._is_told_to_end(text):
            self._line(text)

    def _is_told_to_end(self, text: str) -> bool:
        return self._done >= self._total and bool(text or self._printed > self._start)

    def _line(self, text: str) -> None:
        self._printed = time.monotonic()
        rate = (self._printed - self._start) / max(self._done - self._first, 1)
        left = timedelta(seconds=round(rate * (self._total - self._done)))
        self._console.print(
            f"{self._description}: {self._done} of {self._total}, {text + ', ' if text else ''}{left} left",
            highlight=False,
            soft_wrap=True,
        )


class _TwoLines(Progress):
    """The bar, and its text below it: both fit into 80 columns."""

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            yield self.make_tasks_table([task])
            if task.fields["text"]:
                yield Text(f"  {task.fields['text']}", no_wrap=True, overflow="ellipsis")


@contextmanager
def progress_bar(description: str, total: int, done: int = 0, visible: bool = True) -> Iterator[Bar]:
    """A bar on stderr, so that stdout stays for results."""
    console = Console(stderr=True, quiet=not visible)
    if not console.is_terminal:
        yield Bar(total, done, console, None, description)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with _TwoLines(*columns, console=console) as progress:
        yield Bar(total, done, console, progress, description)
