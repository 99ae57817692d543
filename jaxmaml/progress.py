"""How training shows that it goes on."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich import progress as rich_progress

_SECONDS_BETWEEN_LINES = 30.0


@contextlib.contextmanager
def progress_bar(start: int, end: int, enabled: bool) -> Iterator[Callable[[int, str], None]]:
    """A live bar on a terminal; in a log file, a line now and then. Yields `advance(count, metrics)`."""
    columns = (
        rich_progress.TextColumn("outer step"),
        rich_progress.MofNCompleteColumn(),
        rich_progress.BarColumn(),
        rich_progress.TextColumn("{task.fields[speed]}"),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[metrics]}"),
    )
    with rich_progress.Progress(*columns, disable=not enabled) as bar:
        task_id = bar.add_task("fit", total=end, completed=start, metrics="compiling", speed="")
        began = last_line = time.monotonic()

        def advance(count: int, metrics: str) -> None:
            nonlocal last_line
            task, now = bar.tasks[0], time.monotonic()
            done = task.completed + count
            speed = f"{(done - start) / (now - began):.1f} steps/s"
            bar.update(task_id, advance=count, metrics=metrics, speed=speed)
            if enabled and not bar.console.is_terminal and now - last_line > _SECONDS_BETWEEN_LINES:
                last_line = now
                bar.console.print(f"outer step {done:.0f}/{end}, {speed}, {metrics}")

        yield advance
