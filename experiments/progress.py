"""A progress bar with the time left for people, plain lines for logs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich import progress as rich_progress
from rich.console import Console


class Progress:
    """Counts steps over all runs of a study."""

    def __init__(self, bar: rich_progress.Progress | None, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=total) if bar else None

    def describe(self, text: str) -> None:
        """Says what runs now."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text)

    def advance(self, steps: int) -> None:
        """Counts steps done."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, steps)

    def line(self, text: str) -> None:
        """Prints a line; above the bar, if there is one."""
        print(text, flush=True) if self._bar is None else self._bar.console.print(
            text, highlight=False, markup=False, soft_wrap=True
        )


@contextlib.contextmanager
def show(total: int, *, enabled: bool) -> Iterator[Progress]:
    """Shows progress over ``total`` steps; with ``enabled=False`` only lines."""
    if not enabled:
        yield Progress(None, total)
        return
    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("steps, left"),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True)) as bar:
        yield Progress(bar, total)
