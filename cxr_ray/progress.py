"""One progress display for every long command: a live bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

_PLAIN_INTERVAL_S = 10.0


class ProgressLine:
    """One running count; `update` moves it on, `say` prints a line beside it."""

    def __init__(self, title: str, total: float | None, bar: Progress | None) -> None:
        self._title = title
        self._total = total
        self._bar = bar
        self._task = bar.add_task(title, total=total, note="") if bar else None
        self._done = 0.0
        self._last_print = 0.0
        self._last_text = ""

    def update(self, done: float, note: str = "", total: float | None = None) -> None:
        """Show `done` of the total, with a short note behind it."""
        self._done = done
        self._total = total if total is not None else self._total
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, note=note, total=self._total)
            return
        finished = self._total is not None and done >= self._total
        now = time.monotonic()
        if finished or now - self._last_print >= _PLAIN_INTERVAL_S:
            count = f"{done:g}" if self._total is None else f"{done:g}/{self._total:g}"
            text = f"{self._title}: {count} {note}".rstrip()
            if text != self._last_text:
                print(text, file=sys.stderr, flush=True)  # noqa: T201 - the plain form of the display
            self._last_print, self._last_text = now, text

    def advance(self, step: float = 1, note: str = "") -> None:
        self.update(self._done + step, note)

    def say(self, text: str) -> None:
        """A line that stays on the screen."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)  # noqa: T201 - the plain form of the display


@contextmanager
def progress(title: str, total: float | None = None, *, quiet: bool = False) -> Iterator[ProgressLine]:
    """A progress display on standard error for the time of a ``with`` block.

    Args:
        title: What is being done ("Importing").
        total: How many there are; None where that is not known yet.
        quiet: Show nothing (for notebooks and tests).
    """
    console = Console(stderr=True, quiet=quiet)
    if quiet or not console.is_terminal:
        line = ProgressLine(title, total, None)
        if quiet:
            line._last_print = float("inf")
            line.update = line.say = lambda *_args, **_kwargs: None  # type: ignore[method-assign]
        yield line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        Remaining(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=False) as bar:
        yield ProgressLine(title, total, bar)
