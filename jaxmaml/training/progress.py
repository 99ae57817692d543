"""How training shows that it goes on."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich import errors, progress

Item = TypeVar("Item")

_SECONDS_BETWEEN_LINES = 30.0


def track(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """Yield `items`, of which there are `total`, beside a bar."""
    bar = progress.Progress()
    with _shown(bar):
        yield from bar.track(items, total=total, description=description)


@contextlib.contextmanager
def progress_bar(start: int, end: int, enabled: bool) -> Iterator[Callable[[int, str], None]]:
    """A live bar on a terminal; in a log file, a line now and then. Yields `advance(count, metrics)`.

    Where another display of rich is live on the terminal already, lines are written too: see `_shown`.
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
    """Show `bar`; yields whether it can be. Before 14.1, rich shows one live display at a time, of any thread."""
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
