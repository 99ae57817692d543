"""How long one outer step takes: jaxmaml beside plain JAX and other libraries, in one run.

python -m benchmarks.meta_step [--cases NAME ...] [--contenders NAME ...]

Each contender is a process of its own. All compute the loss and meta-gradient of the same tasks first, which must
agree; then they are timed in turn, in several rounds, one at a time.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import IO, Any, cast

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import flops, reporting
from benchmarks.cases import CASES
from benchmarks.contenders import NAMES

# Of the largest entry of the gradient, in float32, where a rounding can turn a ReLU or a maximum over five inner steps
# of 84 x 84 images. tests/test_rivals.py asks for 1e-9 in float64.
_TOLERANCE = 5e-2


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time.

    Attributes:
      cases: Which meta-steps.
      contenders: By whom; those that cannot be imported are left out, and named.
      rounds: How often each has its turn.
      seconds: Length of a turn; at least one step is taken.
      output_dir: Where the result goes.
    """

    cases: tuple[str, ...] = tuple(CASES)
    contenders: tuple[str, ...] = NAMES
    rounds: int = 5
    seconds: float = 2.0
    output_dir: pathlib.Path = pathlib.Path("results")


def main(config: Config) -> None:
    console = Console()
    result = {
        "command": reporting.command_line("benchmarks.meta_step"),
        "config": {**dataclasses.asdict(config), "output_dir": None},
        "environment": reporting.environment(),
        "rivals": reporting.versions("torch", "higher", "torchopt", "learn2learn"),
        "product_flops_per_second": flops.product_rates(),
        "protocol": "float32; milliseconds an outer step: loss and meta-gradient of fixed tasks, on sinusoids with "
        "sampling and Adam's update; each contender alone on the machine in its turn",
        "cases": {},
    }
    for name in config.cases:
        console.print(f"{name}: {dataclasses.asdict(CASES[name])}")
        result["cases"][name] = measured = measure(name, config, console)
        console.print(table(name, measured, result["product_flops_per_second"]))
        reporting.write_json(config.output_dir / "meta_step.json", result)


def measure(case: str, config: Config, console: Console) -> dict:
    """Rounds of turns over the contenders of one case."""
    with tempfile.TemporaryDirectory() as folder:
        workers, rows, results, left_out = {}, {}, {}, {}
        try:
            for name in config.contenders:
                path = pathlib.Path(folder) / f"{name}.npz"
                worker = Worker(case, name, path)
                said = worker.listen()
                if said is None:
                    left_out[name] = worker.last_words()
                    console.print(f"  {name} left out: {left_out[name]}")
                    continue
                workers[name], rows[name], results[name] = worker, said, dict(np.load(path))
            deviations = compare(results)
            seconds = {name: [] for name in workers}
            for _ in range(config.rounds):
                for name, worker in workers.items():
                    # A step of many seconds is not taken five times over.
                    if not seconds[name] or np.median(seconds[name]) < 5 * config.seconds:
                        seconds[name] += worker.ask(config.seconds)
        finally:
            for worker in workers.values():
                worker.process.kill()
    for name, row in rows.items():
        quartiles = np.percentile(seconds[name], (25, 50, 75))
        row |= {"median_ms": 1e3 * quartiles[1], "quartiles_ms": (1e3 * quartiles[[0, 2]]).tolist()}
        row |= {"num_runs": len(seconds[name]), "deviation": deviations[name]}
        print(f"  {name}: {row['median_ms']:.2f} ms", flush=True)
    return {**dataclasses.asdict(CASES[case]), "flops": flops.needed(CASES[case]), "rows": rows, "left_out": left_out}


class Worker:
    """A `benchmarks.worker` process."""

    def __init__(self, case: str, name: str, path: pathlib.Path):
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.worker", case, name, str(path)]
        self.process = subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        pipes = (self.process.stdin, self.process.stdout, self.process.stderr)
        self.stdin, self.stdout, self.stderr = (cast(IO[str], pipe) for pipe in pipes)

    def listen(self) -> Any:
        """Its next line of JSON; `None` where it has ended."""
        for line in self.stdout:
            if line.startswith(("{", "[")):
                return json.loads(line)
        return None

    def ask(self, seconds: float) -> list[float]:
        self.stdin.write(f"{seconds}\n")
        self.stdin.flush()
        return self.listen()

    def last_words(self) -> str:
        return (self.stderr.read().strip().splitlines() or ["no reason given"])[-1]


def compare(results: dict[str, dict]) -> dict[str, float]:
    """Each contender's largest deviation from the first, as a share of the largest entry of the gradient."""
    first = next(iter(results.values()))
    scale = np.abs(first["grads"]).max()
    deviations = {name: float(np.abs(r["grads"] - first["grads"]).max() / scale) for name, r in results.items()}
    worst = max(deviations, key=lambda name: deviations[name])
    if not deviations[worst] < _TOLERANCE:
        raise SystemExit(
            f"{worst} computes another gradient: it deviates by {deviations[worst]:.1e}. Nothing was timed."
        )
    return deviations


def markdown(result: dict) -> str:
    """A result as a Markdown table: jaxmaml's own figures, and how many times as long the others take."""
    others = [name for name in NAMES if not name.startswith("jaxmaml")]
    batched = list(result["product_flops_per_second"].values())[-1]
    lines = [
        "| outer step | ms | of product rate | MB | compile s | " + " | ".join(others) + " |",
        "| --- |" + " --: |" * (4 + len(others)),
    ]
    for case, measured in result["cases"].items():
        rows = measured["rows"]
        best = min((name for name in rows if name.startswith("jaxmaml")), key=lambda name: rows[name]["median_ms"])
        ours = rows[best]
        share = measured["flops"] / (ours["median_ms"] / 1e3) / batched
        ratios = [f"{rows[n]['median_ms'] / ours['median_ms']:.3g}x" if n in rows else "-" for n in others]
        median = ours["median_ms"]
        cells = [
            f"{median:.3g}" if median < 1000 else f"{median:.0f}",
            f"{100 * share:.0f}%",
            f"{ours['memory_bytes'] / 1e6:.3g}",
        ]
        mark = {"jaxmaml_mesh": " (mesh)", "jaxmaml_one_thread": " (one thread)"}.get(best, "")
        lines.append(f"| {case}{mark} | " + " | ".join([*cells, f"{ours['compile_seconds']:.1f}", *ratios]) + " |")
    return "\n".join(lines)


def table(case: str, measured: dict, rates: dict[str, float]) -> Table:
    batched = list(rates.values())[-1]
    view = Table(title=case)
    for column in ("", "median ms", "quartiles", "times jaxmaml", "compile s", "memory MB", "GFLOP/s", "of batched"):
        view.add_column(column, justify="right" if column else "left")
    best = min(row["median_ms"] for name, row in measured["rows"].items() if name.startswith("jaxmaml"))
    for name, row in measured["rows"].items():
        rate = measured["flops"] / row["median_ms"] * 1e3
        view.add_row(
            name,
            f"{row['median_ms']:.4g}",
            "{:.4g} - {:.4g}".format(*row["quartiles_ms"]),
            f"{row['median_ms'] / best:.2f}",
            f"{row['compile_seconds']:.1f}",
            f"{row['memory_bytes'] / 1e6:.4g}",
            f"{rate / 1e9:.1f}",
            f"{100 * rate / batched:.0f}%",
        )
    return view


if __name__ == "__main__":
    main(tyro.cli(Config))
