"""Writers of metrics for `fit`: files of JSON lines, TensorBoard."""

import json
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

from jaxmaml import checks

#: `(step, metrics) -> None`. If it has a method `forget_after(step)`, that is called when training is resumed.
Writer = Callable[[int, dict[str, float]], None]

_FLUSH_SECONDS = 1


def jsonl(path: str | pathlib.Path) -> Writer:
    r"""Build a writer that appends a line of JSON for every dispatch and validation.

    When a run is resumed from a checkpoint, the lines of later steps are removed, and written again. Values that are
    not finite are written as `null`, since JSON cannot represent them.

    Args:
      path: The file; it and its folder are created if they do not exist.
    Returns:
      A writer for `fit(..., metrics=[...])`.
    Raises:
      ValueError: When training is resumed, if the file has lines of another format.
    Example:
      >>> import pathlib, tempfile, jaxmaml
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder) / "metrics.jsonl"
      ...     write = jaxmaml.metrics.jsonl(path)
      ...     write(100, {"query_loss": 0.5})
      ...     path.read_text()
      '{"step": 100, "query_loss": 0.5}\n'
    """
    return _JsonLines(pathlib.Path(path).expanduser())


class _JsonLines:
    def __init__(self, path: pathlib.Path):
        self._path = path

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")

    def forget_after(self, step: int) -> None:
        if not self._path.exists():
            return
        # A killed run may have left an incomplete line.
        lines = [line for line in self._path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        try:
            kept = [line for line in lines if json.loads(line)["step"] <= step]
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{self._path} has lines that jaxmaml.metrics.jsonl did not write.") from None
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(kept))
        partial.replace(self._path)


def tensorboard(directory: str | pathlib.Path) -> Writer:
    """Build a writer for TensorBoard, by tensorboardX; values are in the file after about a second.

    Args:
      directory: The folder of the event files.
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
    folder = str(pathlib.Path(directory).expanduser())
    # A thread of tensorboardX writes the values, by default every two minutes.
    return _TensorBoard(
        lambda purge_step: tensorboardX.SummaryWriter(folder, purge_step=purge_step, flush_secs=_FLUSH_SECONDS)
    )


class _TensorBoard:
    def __init__(self, open_writer: Callable[[int | None], Any]):
        self._open, self._writer, self._purge_step = open_writer, None, None

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        if self._writer is None:
            self._writer = self._open(self._purge_step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def forget_after(self, step: int) -> None:
        self._purge_step = step + 1


def check(writers: Any) -> tuple[Writer, ...]:
    """Return `writers` as a tuple, or raise if one is not callable."""
    if not callable(writers) and not isinstance(writers, Iterable):
        raise TypeError(f"`metrics` must be a writer or some of them, got {writers!r}.")
    writers = (writers,) if callable(writers) else tuple(writers)
    for writer in writers:
        checks.function("metrics", writer)
    return writers


def forget_after(writers: tuple[Writer, ...], step: int) -> None:
    """Tell the writers that training is resumed at `step`, so that later values will be written again."""
    for writer in writers:
        forget = getattr(writer, "forget_after", None)
        if forget is not None:
            forget(step)
