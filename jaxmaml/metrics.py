"""Where `fit` writes its metrics: files of JSON lines, TensorBoard."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from jaxmaml import checks

#: `(step, metrics)`; called with no metrics when training begins at a step, so that later ones can be forgotten.
Writer = Callable[[int, dict[str, float]], None]


def jsonl(path: str | pathlib.Path) -> Writer:
    r"""Build a writer that appends a line of JSON for every dispatch and validation.

    A run that goes on from a checkpoint forgets the lines after it: they will be written again.

    Args:
      path: Of the file; made with its folder if it does not exist.
    Returns:
      A writer for `fit(..., metrics=[...])`.
    Example:
      >>> import pathlib, tempfile, jaxmaml
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder) / "metrics.jsonl"
      ...     write = jaxmaml.metrics.jsonl(path)
      ...     write(100, {"query_loss": 0.5})
      ...     path.read_text()
      '{"step": 100, "query_loss": 0.5}\n'
    """
    path = pathlib.Path(path)

    def write(step: int, metrics: dict[str, float]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not metrics:
            if path.exists():
                partial = path.with_suffix(".partial")
                partial.write_text("".join(line for line in _whole_lines(path) if json.loads(line)["step"] <= step))
                partial.replace(path)
            return
        with path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    return write


def tensorboard(directory: str | pathlib.Path) -> Writer:
    """Build a writer for TensorBoard, by tensorboardX.

    Args:
      directory: Of the event files.
    Returns:
      A writer for `fit(..., metrics=[...])`.
    Raises:
      ImportError: Without the extra `tensorboard`.
    """
    try:
        import tensorboardX
    except ImportError as error:
        raise ImportError(
            "jaxmaml.metrics.tensorboard needs tensorboardX: pip install 'jaxmaml[tensorboard]'"
        ) from error
    writers: list[Any] = []

    def write(step: int, metrics: dict[str, float]) -> None:
        if not writers:
            writers.append(tensorboardX.SummaryWriter(str(directory), purge_step=step + 1))
        for name, value in metrics.items():
            writers[0].add_scalar(name, value, step)
        writers[0].flush()

    return write


def check(writers: Any) -> tuple[Writer, ...]:
    """Return `writers` as a tuple, or raise where one cannot be called."""
    writers = (writers,) if callable(writers) else tuple(writers)
    for writer in writers:
        checks.function("metrics", writer)
    return writers


def _whole_lines(path: pathlib.Path) -> list[str]:
    """Without the half of one that a killed run may have left."""
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
