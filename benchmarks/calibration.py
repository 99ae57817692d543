"""Does Bayesian MAML know what it does not know?

    python -m benchmarks.calibration

Sinusoids with noise on few points leave many curves possible. Each method predicts a mixture of normals at new
points: one for each of its models, all with the same standard deviation, which is fitted to validation tasks. The
  benchmark reports
the negative log-likelihood, the error of the mean, and how often central intervals cover the truth.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

import jaxmaml
from benchmarks.common import reporting

NOISE = 0.3
LEVELS = (0.5, 0.8, 0.9, 0.95)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
      shots: The numbers of support points of the new tasks, which are also those of training.
      num_particles: The number of models in an ensemble.
      outer_steps: The number of outer steps of each method.
      num_tasks: The number of new tasks.
      seed: The seed of all random draws.
      output_dir: The folder of the result file and the figure.
    """

    shots: tuple[int, ...] = (2, 5)
    num_particles: int = 5
    outer_steps: int = 6000
    num_tasks: int = 600
    seed: int = 0
    output_dir: pathlib.Path = pathlib.Path("results")


def main(config: Config) -> None:
    console = Console()
    result: dict[str, Any] = {
        "command": reporting.command_line("benchmarks.calibration"),
        "config": {**dataclasses.asdict(config), "output_dir": None},
        "environment": reporting.environment(),
        "protocol": f"sinusoids with normal noise of {NOISE}; MLP 1-40-40-1, no normalisation; 5 inner steps in "
        "training and after it; 25 tasks with 10 query points, Adam 1e-3; one standard deviation a method, fitted to "
        "200 validation tasks; 50 query points a new task",
        "shots": {},
    }
    pictures = {}
    for shots in config.shots:
        rows, pictures[shots] = measure(config, shots, console)
        result["shots"][str(shots)] = rows
        console.print(table(shots, rows))
        reporting.write_json(config.output_dir / "calibration.json", result)
    figure(result["shots"], pictures, config.output_dir / "calibration.png")


def measure(config: Config, shots: int, console: Console) -> tuple[dict[str, dict], dict]:
    train_key, valid_key, test_key, init_key = jax.random.split(jax.random.key(config.seed), 4)
    model = jaxmaml.nn.MLP()
    loss_fn = jaxmaml.mean_squared_error(model.apply)
    keys = jax.random.split(init_key, config.num_particles)
    # Widely different initial parameters: with the paper's standard deviation of 0.01, all particles would be alike.
    particles = jax.vmap(lambda key: jax.tree.map(lambda p: 30 * p, model.init(key, jnp.zeros((1, 1)))))(keys)
    one = jax.tree.map(lambda leaf: leaf[:1], particles)
    outer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(1e-3))

    def descent(number: int) -> optax.GradientTransformation:
        """Gradient descent at 0.01 for each of `number` models, whose mean loss has smaller gradients."""
        clip = jaxmaml.clip_by_global_norm(10.0 * number**0.5)
        return optax.chain(optax.scale(number), clip, optax.sgd(0.01))

    options: dict[str, Any] = {"num_inner_steps": 5}
    learners = {
        "MAML": (jaxmaml.maml(jaxmaml.ensemble(loss_fn), descent(1), outer, **options), one),
        # The mean loss of independent particles: each initialisation is trained as if alone.
        "ensemble of MAML": (
            jaxmaml.maml(jaxmaml.ensemble(loss_fn), descent(config.num_particles), outer, **options),
            particles,
        ),
        "Bayesian MAML": (
            jaxmaml.bayesian_maml(
                loss_fn, 0.05, outer, repulsion=0.2, transform=jaxmaml.clip_by_global_norm(10.0), **options
            ),
            particles,
        ),
    }
    sample = jaxmaml.tasks.sinusoid(shots, 10, noise_std=NOISE)
    held_out = jaxmaml.tasks.sinusoid(shots, 50, noise_std=NOISE)
    rows, pictures = {}, {}
    for name, (learner, params) in learners.items():
        console.print(f"{shots} points, training: {name}")
        state, _ = jaxmaml.fit(
            learner,
            learner.init(params),
            sample,
            train_key,
            num_steps=config.outer_steps,
            num_tasks=25,
            steps_per_dispatch=1000,
        )

        def predict(key, learner=learner, state=state):
            task = held_out(key)
            fast_params, _ = learner.adapt(state, task.support)
            return jnp.asarray(jax.vmap(model.apply, (0, None))(fast_params, task.query.inputs))[..., 0], task

        draw = jax.jit(jax.vmap(predict))
        means, tasks = draw(jax.random.split(valid_key, 200))
        std = fitted_std(np.asarray(means), np.asarray(tasks.query.targets[..., 0]))
        means, tasks = draw(jax.random.split(test_key, config.num_tasks))
        rows[name] = score(np.asarray(means), np.asarray(tasks.query.targets[..., 0]), std)
        pictures[name] = (jax.tree.map(np.asarray, jax.tree.map(lambda leaf: leaf[:1], tasks)), state, learner, std)
    return rows, pictures


def log_likelihood(means: np.ndarray, targets: np.ndarray, std: float) -> np.ndarray:
    """The log-likelihood in nats `[tasks, points]` of an equal mixture of normals at `means`.

    Args:
      means: `[tasks, models, points]`.
      targets: `[tasks, points]`.
      std: The standard deviation of every normal.
    """
    away = (targets[:, None] - means) / std
    logs = -0.5 * away**2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    top = logs.max(1, keepdims=True)
    return np.log(np.mean(np.exp(logs - top), 1)) + top[:, 0]


def fitted_std(means: np.ndarray, targets: np.ndarray) -> float:
    candidates = np.geomspace(0.1, 5.0, 60)
    return float(max(candidates, key=lambda std: log_likelihood(means, targets, std).mean()))


def score(means: np.ndarray, targets: np.ndarray, std: float) -> dict[str, Any]:
    """Likelihood, error and coverage; 95% intervals over tasks."""
    nll = -log_likelihood(means, targets, std).mean(1)
    error = np.square(means.mean(1) - targets).mean(1)
    # Where the truth lies in the predictive distribution: uniform, if that is calibrated.
    away = (targets[:, None] - means) / std
    ranks = np.mean(np.asarray(jax.scipy.stats.norm.cdf(away)), axis=1)
    coverage = {str(level): float(np.mean(np.abs(ranks - 0.5) < level / 2)) for level in LEVELS}
    levels = np.linspace(0.05, 0.95, 19)
    curve = np.array([np.mean(np.abs(ranks - 0.5) < level / 2) for level in levels])
    # Tasks with a wide prediction should be those with a large error.
    width = np.std(means, axis=1).mean(1)
    spread = float(np.corrcoef(width, np.sqrt(error))[0, 1]) if means.shape[1] > 1 else None
    interval = lambda values: float(1.96 * np.std(values) / np.sqrt(len(values)))  # noqa: E731
    return {
        "std": std,
        "nll": float(nll.mean()),
        "nll_ci95": interval(nll),
        "mse": float(error.mean()),
        "mse_ci95": interval(error),
        "coverage": coverage,
        "calibration_error": float(np.mean(np.abs(curve - levels))),
        "correlation_of_width_and_error": spread,
        "curve": {"levels": levels.tolist(), "coverage": curve.tolist()},
    }


def table(shots: int, rows: dict[str, dict]) -> Table:
    view = Table(title=f"Noisy sinusoids, {shots} points")
    columns = ("", "NLL (nats)", "MSE", "std", *(f"covers {level:.0%}" for level in LEVELS), "calibration error")
    for column in columns:
        view.add_column(column, justify="right" if column else "left")
    for name, row in rows.items():
        view.add_row(*cells(name, row))
    return view


def cells(name: str, row: dict) -> list[str]:
    return [
        name,
        f"{row['nll']:.2f} ± {row['nll_ci95']:.2f}",
        f"{row['mse']:.2f} ± {row['mse_ci95']:.2f}",
        f"{row['std']:.2f}",
        *(f"{100 * value:.0f}%" for value in row["coverage"].values()),
        f"{100 * row['calibration_error']:.1f}%",
    ]


def markdown(rows: dict[str, dict]) -> str:
    """The rows of one number of points as a Markdown table."""
    heads = ["", "NLL (nats)", "MSE", "std", *(f"covers {level:.0%}" for level in LEVELS), "calibration error"]
    lines = ["| " + " | ".join(heads).strip() + " |", "| --- |" + " --: |" * (len(heads) - 1)]
    return "\n".join(lines + ["| " + " | ".join(cells(name, row)) + " |" for name, row in rows.items()])


def figure(shots: dict[str, dict], pictures: dict[int, dict], path: pathlib.Path) -> None:
    """A task as each method sees it, and the coverage of its intervals."""
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    names = list(next(iter(shots.values())))
    figure, panels = plt.subplots(
        len(shots),
        len(names) + 1,
        figsize=(3.6 * (len(names) + 1), 3.2 * len(shots)),
        layout="constrained",
        squeeze=False,
    )
    grid = jnp.linspace(-5, 5, 200)[:, None]
    model = jaxmaml.nn.MLP()
    for line, (number, rows) in zip(panels, shots.items(), strict=True):
        for panel, name in zip(line, names, strict=False):
            tasks, state, learner, std = pictures[int(number)][name]
            support, query = jax.tree.map(lambda leaf: leaf[0], (tasks.support, tasks.query))
            fast_params, _ = jax.jit(learner.adapt)(state, support)
            curves = np.asarray(jax.vmap(model.apply, (0, None))(fast_params, grid))[..., 0]
            for curve in curves:
                panel.plot(grid[:, 0], curve, color="tab:blue", alpha=0.5, linewidth=1)
                panel.fill_between(
                    grid[:, 0], curve - std, curve + std, color="tab:blue", alpha=0.5 / len(curves), lw=0
                )
            panel.plot(query.inputs[:, 0], query.targets[:, 0], ".", color="0.6", markersize=3, label="query")
            panel.plot(support.inputs[:, 0], support.targets[:, 0], "k^", label="support")
            panel.set(title=f"{name}, {number} points", ylim=(-6, 6), xlabel="x")
        line[0].legend(fontsize=8)
        for name in names:
            curve = rows[name]["curve"]
            line[-1].plot(curve["levels"], curve["coverage"], marker=".", label=name)
        line[-1].plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=0)
        line[-1].set(title="calibration", xlabel="nominal coverage", ylabel="share of targets inside")
        line[-1].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


if __name__ == "__main__":
    main(tyro.cli(Config))
