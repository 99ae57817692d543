"""How long one outer step takes: jaxmaml beside plain JAX and other libraries, in one run.

python -m benchmarks.meta_step [--cases NAME ...] [--implementations NAME ...]

Each implementation runs in its own process. First all compute the loss and meta-gradient of the same tasks, which must
agree; then they are timed one at a time, in several rounds.
"""

import dataclasses
import os
import pathlib
import tempfile
import threading
from typing import Annotated

import jax
import numpy as np
import tyro
from rich.console import Console

from benchmarks.common import reporting
from benchmarks.speed import flops, tables
from benchmarks.speed.cases import ALL_CASES, CASES
from benchmarks.speed.implementations import NAMES
from benchmarks.speed.workers import BEFORE, Worker, prepare

# As a share of the gradient's largest entry, in float32, where rounding can change the branch of a ReLU or a maximum
# in five inner steps of 84 x 84 images. tests/benchmarks/test_baselines.py asks for 1e-9 in float64.
_TOLERANCE = 5e-2
# The same for programs in TF32, which was 0.47 on Omniglot, 20-way. A gradient of zeros would deviate by 1.
_MOST_ROUNDING = 0.75


@dataclasses.dataclass(frozen=True)
class Config:
    """What to time.

    Attributes:
      cases: Names of `cases.CASES`, or of `cases.CARD_CASES`, which fill a GPU.
      implementations: Names of `implementations.NAMES` and `OTHERS`. Those that cannot be imported are left out and
        reported.
      rounds: The number of turns of each.
      seconds: The length of a turn; at least one step is taken.
      processes: If more than one, the implementations of all cases are prepared first, this many at once; for a GPU
        in a machine of many cores.
      patience: The time for preparing a case, or all cases, in seconds; later implementations are left out.
      before: Root of a checkout of another version, which runs the implementations named `jaxmaml..._before`.
      output_dir: The folder of the result file.
      name: The name of the result file.
    """

    cases: tuple[str, ...] = tuple(CASES)
    implementations: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--contenders"])] = NAMES
    rounds: int = 5
    seconds: float = 2.0
    processes: int = 1
    patience: float = 3600.0
    before: pathlib.Path | None = None
    output_dir: pathlib.Path = pathlib.Path("results")
    name: str = "meta_step"


def main(config: Config) -> None:
    # The implementations share a GPU, and with this process, which measures its ceilings: JAX would take most of its
    # memory for the first of them.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    console, errors = Console(width=160), []
    if config.before is None and any(name.endswith(BEFORE) for name in config.implementations):
        raise SystemExit("The implementations named ..._before need `--before`, a checkout to run them in.")
    result = {
        "command": reporting.command_line("benchmarks.meta_step"),
        "config": {**dataclasses.asdict(config), "output_dir": None, "before": None},
        "environment": reporting.environment(),
        "baselines": reporting.versions("torch", "higher", "torchopt", "learn2learn"),
        "product_flops_per_second": flops.product_rates(),
        "copy_bytes_per_second": flops.copy_rate(),
        "protocol": "float32; milliseconds an outer step: loss and meta-gradient of fixed tasks, on sinusoids with "
        "sampling and Adam's update; each implementation alone on the machine in its turn"
        + ("; matmuls in TF32, except for the results that are compared" if jax.default_backend() == "gpu" else ""),
        "cases": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        together = [config.cases] if config.processes > 1 else [(name,) for name in config.cases]
        for names in together:
            # In a thread, since it takes seconds and other cores are idle.
            threading.Thread(target=lambda names=names: [flops.needed(ALL_CASES[name]) for name in names]).start()
            workers = prepare(names, config.implementations, path, config.processes, config.patience, config.before)
            for name in names:
                console.print(f"{name}: {dataclasses.asdict(ALL_CASES[name])}")
                try:
                    result["cases"][name] = measured = measure(name, workers[name], config)
                except ValueError as error:
                    errors.append(f"{name}: {error}")
                    console.print(errors[-1])
                    continue
                for left_out, why in measured["left_out"].items():
                    console.print(f"  {left_out} left out: {why}")
                console.print(tables.implementations(name, measured, result["product_flops_per_second"]))
                reporting.write_json(config.output_dir / f"{config.name}.json", result)
    if errors:
        raise SystemExit("\n".join(errors))


def measure(case: str, workers: dict[str, Worker], config: Config) -> dict:
    """Time the implementations of one case in rounds, and end their processes."""
    rows, results, seconds, left_out = {}, {}, {}, {}
    try:
        for name in config.implementations:
            worker = workers.get(name)
            said = worker.ask("check") if worker and worker.prepared else None
            if worker and said:
                rows[name], results[name], seconds[name] = said, dict(np.load(worker.path)), []
            else:
                left_out[name] = worker.last_words() if worker else "not prepared in time"
        deviations = compare(results)
        for name, row in rows.items():
            if not row.get("rounding", 0.0) < _MOST_ROUNDING:
                raise ValueError(f"{name} times another gradient than its own, {row['rounding']:.1e} away.")
        for _ in range(config.rounds):
            for name, taken in seconds.items():
                # A step of many seconds is timed once only.
                if not taken or np.median(taken) < 5 * config.seconds:
                    taken += workers[name].ask(str(config.seconds))
    finally:
        for worker in workers.values():
            worker.kill()
    for name, row in rows.items():
        quartiles = np.percentile(seconds[name], (25, 50, 75))
        row |= {"median_ms": 1e3 * quartiles[1], "quartiles_ms": (1e3 * quartiles[[0, 2]]).tolist()}
        row |= {"num_runs": len(seconds[name]), "deviation": deviations[name]}
        print(f"  {name}: {row['median_ms']:.2f} ms", flush=True)
    facts = ALL_CASES[case]
    return {**dataclasses.asdict(facts), "flops": flops.needed(facts), "rows": rows, "left_out": left_out}


def compare(results: dict[str, dict]) -> dict[str, float]:
    """Each implementation's largest deviation from the first, as a share of the largest entry of the gradient."""
    if not results:
        return {}
    first = next(iter(results.values()))
    scale = np.abs(first["grads"]).max()
    deviations = {name: float(np.abs(r["grads"] - first["grads"]).max() / scale) for name, r in results.items()}
    worst = max(deviations, key=lambda name: deviations[name])
    if not deviations[worst] < _TOLERANCE:
        raise ValueError(
            f"{worst} computes another gradient: it deviates by {deviations[worst]:.1e}. Nothing was timed."
        )
    return deviations


if __name__ == "__main__":
    main(tyro.cli(Config))
