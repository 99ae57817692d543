"""Memory and time of an outer step against inner steps and tasks.

python -m benchmarks.memory

Inner steps: an MLP with four hidden layers of 128 on 256 points, 4 tasks, and Conv4-32 on 84 x 84 images, one task.
Tasks: Conv4-64 on Omniglot's shapes. Memory is what XLA reserves beside inputs and outputs. Programs that would not
fit are compiled and not run, so that their time is missing.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import tyro
from rich.console import Console

import jaxmaml
from benchmarks.common import reporting
from benchmarks.speed.cases import CASES, Case
from jaxmaml.jax_internals import set_flag

matplotlib.use("Agg")
from matplotlib import pyplot as plt

MODES = {
    "jaxmaml": {},
    'jaxmaml, remat="steps"': {"remat": "steps"},
    'jaxmaml, remat="recursive"': {"remat": "recursive"},
    "plain JAX": {"derivative": "reverse", "remat": "none", "chunk_size": None},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
      inner_steps: The numbers of inner steps of the MLP.
      conv_inner_steps: The numbers of inner steps of Conv4 on 84 x 84 images.
      num_tasks: The numbers of tasks on Omniglot's shapes.
      time_limit: The largest time of a step in seconds; a problem that would take longer, by a smaller one, is not run.
      memory_limit: The largest memory in bytes; a program that needs more is not run.
      output_dir: The folder of the result file and the figure.
    """

    inner_steps: tuple[int, ...] = (1, 3, 10, 30, 100, 300, 1000)
    conv_inner_steps: tuple[int, ...] = (1, 10, 100, 1000)
    num_tasks: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    time_limit: float = 20.0
    memory_limit: float = 6e9
    output_dir: pathlib.Path = pathlib.Path("results")


def main(config: Config) -> None:
    set_flag("jax_enable_compilation_cache", False)
    console = Console()
    points = mlp_tasks(num_tasks=4, num_points=256)
    network = jaxmaml.nn.MLP((128, 128, 128, 128, 1))
    mlp = (jaxmaml.mean_squared_error(network.apply), network.init(jax.random.key(0), jnp.ones((1, 1))), points)
    images = dataclasses.replace(CASES["mini-imagenet-5w1s-5steps"], num_tasks=1, num_queries=1)
    studies = {
        "inner steps: MLP 4 x 128, 256 points, 4 tasks": study(
            config, console, config.inner_steps, lambda n: mlp, lambda n: n, optax.sgd(0.01)
        ),
        "inner steps: MLP 4 x 128, inner Adam": study(
            config, console, config.inner_steps, lambda n: mlp, lambda n: n, optax.adam(1e-3, eps_root=1e-8)
        ),
        "inner steps: Conv4-32, 84 x 84, 1 task": study(
            config, console, config.conv_inner_steps, lambda n: problem(images), lambda n: n, optax.sgd(0.01)
        ),
        "tasks: Conv4-64, Omniglot 5-way 1-shot, 1 inner step": study(
            config,
            console,
            config.num_tasks,
            lambda n: problem(dataclasses.replace(CASES["omniglot-5w1s-1step"], num_tasks=n)),
            lambda n: 1,
            optax.sgd(0.4),
            modes=("jaxmaml", "plain JAX"),
        ),
    }
    result = {
        "command": reporting.command_line("benchmarks.memory"),
        "config": {**dataclasses.asdict(config), "output_dir": None},
        "environment": reporting.environment(),
        "protocol": "float32, one outer step, one device; bytes are XLA's temporaries; milliseconds are medians of 3 "
        "or more; plain JAX is vmap over all tasks, scan over inner steps, reverse over reverse, with the same models",
        "studies": studies,
    }
    reporting.write_json(config.output_dir / "memory.json", result)
    figure(studies, config.output_dir / "memory.png")


def mlp_tasks(num_tasks: int, num_points: int) -> jaxmaml.Task:
    rng = np.random.default_rng(0)

    def batch():
        x = rng.uniform(-5, 5, (num_tasks, num_points, 1)).astype(np.float32)
        return jnp.asarray(x), jnp.asarray(np.sin(x + rng.normal(size=(num_tasks, 1, 1)).astype(np.float32)))

    return jaxmaml.Task(batch(), batch())


def problem(case: Case) -> tuple[jaxmaml.LossFn, Any, jaxmaml.Task]:
    return case.loss_fn(), *jax.tree.map(jnp.asarray, case.problem())


def study(
    config: Config,
    console: Console,
    sizes: tuple[int, ...],
    make: Callable[[int], tuple],
    num_inner_steps: Callable[[int], int],
    inner_optimizer: optax.GradientTransformation,
    modes: tuple[str, ...] = tuple(MODES),
) -> dict[str, list[dict]]:
    """Bytes and milliseconds of each mode at each size; modes take turns, so that their ratios are meaningful."""
    rows: dict[str, list[dict]] = {mode: [] for mode in modes}
    for size in sizes:
        loss_fn, params, tasks = make(size)
        for mode in modes:
            learner = jaxmaml.maml(
                loss_fn, inner_optimizer, optax.sgd(1.0), num_inner_steps=num_inner_steps(size), **MODES[mode]
            )
            state = learner.init(params)
            start = time.perf_counter()
            compiled = jax.jit(learner.update).lower(state, tasks).compile()
            row = {"size": size, "compile_seconds": time.perf_counter() - start}
            row["bytes"] = reporting.temporaries(compiled)
            last = rows[mode][-1] if rows[mode] else None
            expected = 0.0 if last is None else (last["ms"] or np.inf) / 1e3 * size / last["size"]
            timed = expected < config.time_limit and row["bytes"] < config.memory_limit
            row["ms"] = milliseconds(compiled, state, tasks) if timed else None
            rows[mode].append(row)
            shown = f"{row['ms']:.1f} ms" if timed else "not timed"
            console.print(f"{mode:28s} {size:5d}: {row['bytes'] / 1e6:9.1f} MB  {shown}")
    return rows


def milliseconds(compiled: Callable, *args: Any) -> float:
    jax.block_until_ready(compiled(*args))
    seconds: list[float] = []
    while len(seconds) < 3 or (sum(seconds) < 1.0 and len(seconds) < 50):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        seconds.append(time.perf_counter() - start)
    return 1e3 * float(np.median(seconds))


def markdown(rows: dict[str, list[dict]], sizes: tuple[int, ...]) -> str:
    """A study as a Markdown table of megabytes and milliseconds at `sizes`."""
    lines = [
        "| | " + " | ".join(f"{size}: MB | ms" for size in sizes) + " |",
        "| --- |" + " --: |" * (2 * len(sizes)),
    ]
    for mode, measured in rows.items():
        at = {row["size"]: row for row in measured}
        cells = []
        for size in sizes:
            cells += [
                reporting.short(at[size]["bytes"] / 1e6),
                "-" if at[size]["ms"] is None else reporting.short(at[size]["ms"]),
            ]
        lines.append(f"| {mode} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(studies: dict[str, dict[str, list[dict]]], path: pathlib.Path) -> None:
    fig, axes = plt.subplots(2, len(studies), figsize=(4 * len(studies), 6.5), sharex="col", layout="constrained")
    for column, (title, modes) in zip(axes.T, studies.items(), strict=True):
        what, setting = title.split(": ", 1)
        for mode, rows in modes.items():
            sizes = [row["size"] for row in rows]
            style = {"marker": "o", "ms": 3.5, "label": mode, "color": "0.45" if mode == "plain JAX" else None}
            column[0].loglog(sizes, [row["bytes"] / 1e6 for row in rows], **style)
            timed = [row for row in rows if row["ms"] is not None]
            column[1].loglog([row["size"] for row in timed], [row["ms"] for row in timed], **style)
        column[0].set_title(setting, fontsize=9)
        column[1].set_xlabel(what)
        for axis in column:
            axis.grid(alpha=0.25)
    axes[0, 0].set_ylabel("memory, MB")
    axes[1, 0].set_ylabel("time, ms")
    axes[0, 0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=150)
    print(f"wrote {path}")


if __name__ == "__main__":
    main(tyro.cli(Config))
