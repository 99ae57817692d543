"""The cost of low-precision matmuls: the error of the meta-gradient, and the result of training.

    python -m benchmarks.precision [--data-dir DATA_DIR]

On a GPU or TPU by `matmul_precision`. A CPU has float32 only: there the operands of every matmul are rounded to the
format and summed in float32, which is what the hardware computes.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import tyro
from jax import lax

import jaxmaml
from benchmarks.common import reporting
from jaxmaml.execution.rewriting.replacement import rewritten
from jaxmaml.jax_internals import CONVOLUTION, DOT_GENERAL

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Values of `matmul_precision`, and the bits of their fractions; all have float32's eight bits of the exponent.
FORMATS = {"float32": 23, "tensorfloat32": 10, "bfloat16": 7}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
      sinusoid_steps, character_steps: The number of outer steps of a training.
      num_tasks: The number of new tasks for the evaluation.
      data_dir: The folder of Omniglot's zips; by default procedural characters are used.
      seed: The seed of all random draws.
      output_dir: The folder of the result file and the figure.
    """

    sinusoid_steps: int = 5000
    character_steps: int = 1000
    num_tasks: int = 600
    data_dir: pathlib.Path | None = None
    seed: int = 0
    output_dir: pathlib.Path = pathlib.Path("results")


class Problem(NamedTuple):
    """A model, its tasks and how it is trained; `metric` is the field of the evaluation."""

    loss_fn: jaxmaml.LossFn
    params: Any
    train: Callable[[Any], jaxmaml.Task]
    test: Callable[[Any], jaxmaml.Task]
    step_size: float
    num_tasks: int
    outer_steps: int
    metric: str


def main(config: Config) -> None:
    mesh = jaxmaml.task_mesh()
    result: dict[str, Any] = {
        "command": reporting.command_line("benchmarks.precision"),
        "config": {**dataclasses.asdict(config), "data_dir": None, "output_dir": None},
        "environment": reporting.environment(),
        "protocol": "one inner step, exact second-order gradients; gradient errors are Euclidean, as a share of the "
        "gradient in float64, over one batch of tasks, before training and after that in float32; trained from one "
        "start on the same tasks, evaluated in float32"
        + ("; operands of every matmul rounded, sums in float32" if jax.default_backend() == "cpu" else ""),
        "problems": {},
    }
    histories = {}
    images = "Omniglot" if config.data_dir else "procedural characters"
    for name, make in (("sinusoid, 10-shot", sinusoid), (f"{images}, 5-way 1-shot", characters)):
        problem = make(config)
        result["problems"][name], histories[name] = measure(config, name, problem, mesh)
        print(markdown({name: result["problems"][name]}))
        reporting.write_json(config.output_dir / "precision.json", result)
    figure(histories, config.output_dir / "precision.png")


def sinusoid(config: Config) -> Problem:
    model, sample = jaxmaml.nn.MLP(), jaxmaml.tasks.sinusoid(num_shots=10)
    return Problem(
        jaxmaml.mean_squared_error(model.apply),
        model.init(jax.random.key(config.seed), jnp.zeros((1, 1))),
        sample,
        sample,
        step_size=0.01,
        num_tasks=25,
        outer_steps=config.sinusoid_steps,
        metric="query_loss",
    )


def characters(config: Config) -> Problem:
    model = jaxmaml.nn.Conv4.omniglot(num_ways=5)
    splits = jaxmaml.tasks.omniglot.load(config.data_dir) if config.data_dir else jaxmaml.tasks.strokes.load()

    def episodes(classes, num_queries):
        options = {"num_ways": 5, "num_shots": 1, "num_queries": num_queries, "rotate": True}
        return jaxmaml.tasks.image_episodes(classes.images, **options)

    return Problem(
        jaxmaml.cross_entropy(model.apply),
        model.init(jax.random.key(config.seed), jnp.zeros((1, 28, 28, 1))),
        episodes(splits.train, 1),
        episodes(splits.test, 15),
        step_size=2.0,  # On the mean cross-entropy: the paper's 0.4 on a sum over 5 ways.
        num_tasks=32,
        outer_steps=config.character_steps,
        metric="accuracy",
    )


def measure(config: Config, name: str, problem: Problem, mesh: Any) -> tuple[dict[str, dict], dict[str, np.ndarray]]:
    """The row of each format, and the query loss during each training."""
    task_key, train_key, test_key = jax.random.split(jax.random.key(config.seed + 1), 3)
    tasks = jax.vmap(problem.train)(jax.random.split(task_key, problem.num_tasks))
    evaluator = make_learner(problem, "float32", optax.adam(1e-3))  # One for all, to be compiled once.
    rows, histories, trained = {}, {}, {}
    for precision in FORMATS:
        print(f"{name}: {precision}", flush=True)
        learner = make_learner(problem, precision, optax.adam(1e-3), mesh=mesh)
        trained[precision], history = jaxmaml.fit(
            learner,
            learner.init(jax.tree.map(jnp.copy, problem.params)),
            problem.train,
            train_key,
            num_steps=problem.outer_steps,
            num_tasks=problem.num_tasks,
            steps_per_dispatch=min(100, problem.outer_steps),
        )
        histories[precision] = np.asarray(history.query_loss)
        options = {"num_inner_steps": 1, "num_tasks": config.num_tasks, "chunk_size": 4}
        result = jaxmaml.evaluate(evaluator, problem.loss_fn, trained[precision], problem.test, test_key, **options)
        curve = getattr(result, problem.metric)
        rows[precision] = {problem.metric: float(curve.mean[1]), "ci95": float(curve.ci95[1])}
    for when, params in (("start", problem.params), ("end", trained["float32"].params)):
        errors = gradient_errors(problem, params, tasks)
        for precision, error in errors.items():
            rows.setdefault(precision, {})[f"gradient_error_{when}"] = error
    return rows, histories


def gradient_errors(problem: Problem, params: Any, tasks: jaxmaml.Task) -> dict[str, float]:
    """`|g - g64| / |g64|` of each format, and for comparison of first-order MAML."""

    def gradient(params, tasks, precision="float32", **options):
        # `optax.trace` without decay has the last gradient as its state.
        learner = make_learner(problem, precision, optax.trace(0.0), **options)
        state, _ = jax.jit(learner.update)(learner.init(params), tasks)
        return np.concatenate([np.ravel(leaf).astype(float) for leaf in jax.tree.leaves(state.opt_state)])

    with jax.enable_x64(True):
        wide = lambda leaf: leaf.astype(float) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf  # noqa: E731
        exact = gradient(*jax.tree.map(wide, jax.device_get((params, tasks))))
    found = {precision: gradient(params, tasks, precision) for precision in FORMATS}
    found["float32, first order"] = gradient(params, tasks, derivative="first_order")
    return {name: float(np.linalg.norm(g - exact) / np.linalg.norm(exact)) for name, g in found.items()}


def make_learner(problem: Problem, precision: str, outer_optimizer: Any, **options: Any) -> jaxmaml.MetaLearner:
    emulated = jax.default_backend() == "cpu"
    learner = jaxmaml.maml(
        problem.loss_fn,
        optax.sgd(problem.step_size),
        outer_optimizer,
        num_inner_steps=1,
        matmul_precision=None if emulated else precision,
        **options,
    )
    if not emulated or precision == "float32":
        return learner
    return learner._replace(update=with_rounded_operands(learner.update, FORMATS[precision]))


def with_rounded_operands(function: Callable, bits: int) -> Callable:
    """`function` with the operands of every matmul rounded to `bits` bits of the fraction."""
    round_to = functools.partial(lax.reduce_precision, exponent_bits=8, mantissa_bits=bits)

    def replacement(eqn):
        if eqn.primitive not in (DOT_GENERAL, CONVOLUTION):
            return None
        return lambda x, y: eqn.primitive.bind(round_to(x), round_to(y), **eqn.params)

    return rewritten(function, replacement)


def markdown(results: dict[str, dict[str, dict]]) -> str:
    """Results as a Markdown table."""
    lines = ["| | matmul precision | gradient error, start | end | trained with |", "| --- | --- | --: | --: | --: |"]
    for name, rows in results.items():
        for precision, row in rows.items():
            start, end = (_percent(row[f"gradient_error_{when}"]) for when in ("start", "end"))
            if "accuracy" in row:
                ends = f"{100 * row['accuracy']:.2f} ± {100 * row['ci95']:.2f}%"
            else:
                ends = f"loss {row['query_loss']:.3f} ± {row['ci95']:.3f}" if "query_loss" in row else "-"
            lines.append(f"| {name} | {precision} | {start} | {end} | {ends} |")
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share > 0.1 else f"{100 * share:.2g}%"


def figure(histories: dict[str, dict[str, np.ndarray]], path: pathlib.Path) -> None:
    """Query loss against outer steps, averaged over a fiftieth of them."""
    fig, axes = plt.subplots(1, len(histories), figsize=(5 * len(histories), 3.4), layout="constrained")
    for axis, (name, curves) in zip(axes, histories.items(), strict=True):
        for style, (precision, losses) in zip(("-", "--", ":"), curves.items(), strict=True):
            width = max(1, len(losses) // 50)
            means = losses[: len(losses) // width * width].reshape(-1, width).mean(1)
            axis.plot(width * (np.arange(len(means)) + 0.5), means, style, label=precision)
        axis.set(title=name, xlabel="outer steps", ylabel="query loss", yscale="log")
        axis.grid(alpha=0.25, which="both")
    axes[0].legend(title="matmul precision")
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=150)
    print(f"wrote {path}")


if __name__ == "__main__":
    main(tyro.cli(Config))
