"""Progress bars, and lines in a log file where there is no terminal."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich import errors, progress

Item = TypeVar("Item")

_SECONDS_BETWEEN_LINES = 30.0


def track(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """Yield `items`, of which there are `total`, and show a progress bar."""
    bar = progress.Progress()
    with _shown(bar):
        yield from bar.track(items, total=total, description=description)


@contextlib.contextmanager
def progress_bar(start: int, end: int, enabled: bool) -> Iterator[Callable[[int, str], None]]:
    """A live bar on a terminal, or a line every 30 seconds in a log file. Yields `advance(count, metrics)`.

    Lines are also written if another live display of rich is on the terminal already: see `_shown`.
    """
    columns = (
        progress.TextColumn("outer step"),
        progress.MofNCompleteColumn(),
        progress.BarColumn(),
        progress.TextColumn("{task.fields[speed]}"),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[metrics]}"),
    )
    bar = progress.Progress(*columns, disable=not enabled)
    with _shown(bar) as is_shown:
        task_id = bar.add_task("fit", total=end, completed=start, metrics="compiling", speed="")
        began = last_line = time.monotonic()

        def advance(count: int, metrics: str) -> None:
            nonlocal last_line
            task, now = bar.tasks[0], time.monotonic()
            done = task.completed + count
            speed = f"{(done - start) / (now - began):.1f} steps/s"
            bar.update(task_id, advance=count, metrics=metrics, speed=speed)
            if enabled and not (is_shown and bar.console.is_terminal) and now - last_line > _SECONDS_BETWEEN_LINES:
                last_line = now
                bar.console.print(f"outer step {done:.0f}/{end}, {speed}, {metrics}")

        yield advance


@contextlib.contextmanager
def _shown(bar: progress.Progress) -> Iterator[bool]:
    """Show `bar`; yields whether that is possible. Before 14.1, rich shows a single live display at a time."""
    try:
        if not bar.disable:  # Before 14, one that is disabled writes an empty line at its end.
            bar.start()
    except errors.LiveError:
        yield False
        return
    try:
        yield True
    finally:
        if not bar.disable:
            bar.stop()
