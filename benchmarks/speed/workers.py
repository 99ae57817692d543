"""Processes of implementations, prepared one after another or several at once."""

import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from typing import IO, Any, cast

from benchmarks.speed.implementations import BASELINES

#: The suffix of implementations that run in another checkout.
BEFORE = "_before"


class Worker:
    """A `benchmarks.speed.worker` process, which writes its result to `path`; from `before` if its name says so."""

    def __init__(self, case: str, name: str, path: pathlib.Path, before: pathlib.Path | None = None):
        folder = before if name.endswith(BEFORE) else None  # Python imports from where it is started.
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            # In checkouts of earlier versions the module is elsewhere.
            "benchmarks.worker" if folder and (folder / "benchmarks/worker.py").exists() else "benchmarks.speed.worker",
            case,
            name.removesuffix(BEFORE),
            str(path),
        ]
        # PyTorch's processes need no GPU memory for JAX.
        environment = {**os.environ, **({"JAX_PLATFORMS": "cpu"} if name in BASELINES else {})}
        self.path, self.prepared = path, False
        self.errors = path.with_suffix(".txt")
        with self.errors.open("w") as errors:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
            # In its own process group, so that its children, such as torch's compilers, end with it.
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, text=True, start_new_session=True, **pipes
            )
        self.stdin, self.stdout = (cast(IO[str], pipe) for pipe in (self.process.stdin, self.process.stdout))

    def listen(self, deadline: float) -> None:
        """Wait for its first line, until `deadline`."""
        timer = threading.Timer(max(0.0, deadline - time.monotonic()), self.kill)
        timer.start()
        self.prepared = self._next_word() is not None
        timer.cancel()

    def ask(self, word: str) -> Any:
        """Its answer; `None` if the process has ended."""
        try:
            self.stdin.write(f"{word}\n")
            self.stdin.flush()
        except BrokenPipeError:
            return None
        return self._next_word()

    def _next_word(self) -> Any:
        for line in self.stdout:
            if line.startswith(("{", "[")):
                return json.loads(line)
        return None

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def last_words(self) -> str:
        self.kill()
        return (self.errors.read_text().strip().splitlines() or ["not prepared in time"])[-1][:400]


def prepare(
    cases: tuple[str, ...],
    implementations: tuple[str, ...],
    folder: pathlib.Path,
    processes: int,
    patience: float,
    before: pathlib.Path | None = None,
) -> dict[str, dict[str, Worker]]:
    """Start the implementations of `cases`, `processes` at once, and wait for them, at most `patience` seconds.

    Returns:
      The workers of each case by name, without those that were not started in time.
    """
    deadline = time.monotonic() + patience
    workers: dict[str, dict[str, Worker]] = {case: {} for case in cases}

    def start(case, name):
        if time.monotonic() < deadline:
            workers[case][name] = worker = Worker(case, name, folder / f"{case}_{name}.npz", before)
            worker.listen(deadline)

    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        # Ordered by implementation, so that every case lacks the same ones if time runs out.
        started = [pool.submit(start, case, name) for name in implementations for case in cases]
    for each in started:
        each.result()
    return workers
