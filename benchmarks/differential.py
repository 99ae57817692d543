"""Whether jaxmaml computes what plain JAX computes, on random programs.

    python -m benchmarks.differential --minutes 60

A program is a loss of several terms with a choice on every axis (`tests/differential/programs.py`). Its meta-gradient
by jaxmaml under `jit`, with the compile flags that users have, is compared with that of a textbook reference without
`jit`. Programs come in batches of one seed, each in its own process, and one for each core at the same time. A run is
added to the earlier runs with the same version of JAX in the result file, and begins with the first seed that they
lack.
"""

import collections
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
import warnings
from typing import Any

import tyro
from rich.console import Console

from benchmarks.common import reporting

#: The possible verdicts on a program; the last four are faults.
KINDS = ("equal", "refused", "xla", "wrong", "error", "crash", "late")
FAULTS = KINDS[3:]


@dataclasses.dataclass(frozen=True)
class Config:
    """How long to search, and where to begin.

    Attributes:
      minutes: No batch begins after this time.
      first_seed: The seed of the first batch; by default the first that is not in the result file.
      num_programs: The number of programs in a batch.
      batches: The largest number of batches; `None` for as many as there is time for.
      processes: The number of processes at once.
      patience: The time for a batch in seconds; the rest of the batch is `late`.
      output_dir: The folder of the result file.
    """

    minutes: float = 60.0
    first_seed: int | None = None
    num_programs: int = 20
    batches: int | None = None
    processes: int = os.cpu_count() or 1
    patience: float = 1200.0
    output_dir: pathlib.Path = pathlib.Path("results")


def main(config: Config) -> None:
    environment = reporting.environment()
    path = config.output_dir / f"differential_jax_{environment['jax']}.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    seed = config.first_seed
    if seed is None:
        seed = max((run["last_seed"] + 1 for run in runs), default=0)
    found, last_seed, minutes = search(config, seed)
    runs.append(
        {
            "command": reporting.command_line("benchmarks.differential"),
            "environment": environment,
            "minutes": round(minutes, 1),
            "first_seed": seed,
            "last_seed": last_seed,
            "programs_per_seed": config.num_programs,
            **summary(found),
        }
    )
    totals = {kind: sum(run["programs"].get(kind, 0) for run in runs) for kind in KINDS}
    reporting.write_json(path, {"totals": totals, "runs": runs})
    faults = {kind: count for kind, count in runs[-1]["programs"].items() if kind in FAULTS}
    if faults:
        sys.exit(f"faults: {', '.join(f'{count} {kind}' for kind, count in faults.items())}; see {path}")


def search(config: Config, seed: int) -> tuple[list[dict[str, Any]], int, float]:
    """Run seeds for this long; return what was found, the last seed, and the minutes taken."""
    console, found = Console(), []
    began, last = time.monotonic(), seed - 1
    with concurrent.futures.ThreadPoolExecutor(config.processes) as pool:
        waiting: dict[Any, int] = {}
        while True:
            minutes = (time.monotonic() - began) / 60
            more = config.batches is None or last - seed + 1 < config.batches
            while more and minutes < config.minutes and len(waiting) < config.processes:
                last += 1
                waiting[pool.submit(batch, last, config.num_programs, config.patience)] = last
                more = config.batches is None or last - seed + 1 < config.batches
            if not waiting:
                return found, last, minutes
            for done in concurrent.futures.wait(waiting, return_when="FIRST_COMPLETED").done:
                waiting.pop(done)
                found += done.result()
            counts = collections.Counter(each["kind"] for each in found)
            console.print(f"{(time.monotonic() - began) / 60:.1f} minutes, {len(found)} programs: {dict(counts)}")


def batch(seed: int, num_programs: int, patience: float) -> list[dict[str, Any]]:
    """Run the programs of a seed in a process of its own: kind, error and program of each."""
    command = [sys.executable, "-m", "benchmarks.differential", "--run-seed", str(seed), str(num_programs)]
    environment = {**os.environ, "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""), "JAX_ENABLE_X64": "1"}
    late = False
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=_ROOT
    ) as process:
        try:
            out, errors = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            late = True
            process.kill()
            out, errors = process.communicate()
    found = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    if late or process.returncode:
        found.append({"kind": "late" if late else "crash", "seed": seed, "what": errors[-2000:]})
    return found


_ROOT = pathlib.Path(__file__).parents[1]


def run_seed(seed: int, num_programs: int) -> None:
    """Print a line of JSON for each program of a seed. Every second seed has a mesh of single-threaded devices."""
    import hypothesis

    import jaxmaml
    from tests.differential import programs, verdicts

    if seed % 2:
        jaxmaml.task_mesh()
    warnings.simplefilter("ignore")

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=num_programs,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),  # pyright: ignore[reportArgumentType]
    )
    @hypothesis.given(programs.programs())
    def each(program: programs.Program) -> None:
        program = program._replace(mesh=program.mesh and seed % 2 == 1)
        began = time.monotonic()
        try:
            verdict = verdicts.verdict_of(program)
            kind, what = verdict.kind, {**verdict._asdict(), "error": verdict.error if verdict.error < 1e300 else None}
        except Exception as error:
            kind, what = "error", f"{type(error).__name__}: {error}"[:2000]
        line = {"kind": kind, "seed": seed, "seconds": round(time.monotonic() - began, 1), "what": what}
        print(json.dumps({**line, "program": program._asdict()}), flush=True)

    each()


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts by kind, by algorithm and by term, and all that is not equal."""
    programs = [each["program"] for each in found if "program" in each]
    return {
        "programs": dict(collections.Counter(each["kind"] for each in found)),
        "algorithms": dict(collections.Counter(program["algorithm"] for program in programs)),
        "terms": dict(collections.Counter(term for program in programs for term in program["terms"])),
        "largest_error_of_equal": max(
            (each["what"]["error"] for each in found if each["kind"] == "equal" and _is_float64(each)), default=None
        ),
        "findings": [each for each in found if each["kind"] != "equal"],
    }


def markdown(*results: dict[str, Any]) -> str:
    """The verdicts, one row for each version of JAX."""
    lines = ["| JAX | Python | minutes | programs | " + " | ".join(KINDS) + " |", "| --- | --- |" + " --: |" * 9]
    for result in results:
        environment = result["runs"][-1]["environment"]
        minutes = sum(run["minutes"] for run in result["runs"])
        totals = result["totals"]
        cells = [environment["jax"], environment["python"], f"{minutes:.0f}", str(sum(totals.values()))]
        lines.append("| " + " | ".join(cells + [str(totals[kind]) for kind in KINDS]) + " |")
    return "\n".join(lines)


def _is_float64(each: dict[str, Any]) -> bool:
    return not each["program"]["mixed_dtypes"]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run-seed"]:
        run_seed(*map(int, sys.argv[2:4]))
    else:
        main(tyro.cli(Config))
