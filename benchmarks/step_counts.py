"""How many gradient steps does a new task need, from MAML's initialisation and from others?

    python -m benchmarks.step_counts                                        # sinusoids, no data needed
    python -m benchmarks.step_counts --task omniglot --data-dir DATA_DIR    # the real characters
    python -m benchmarks.step_counts --task fields                          # neural fields of random phantoms
    python -m benchmarks.step_counts --task navigation                      # a policy that learns new goals
    python -m benchmarks.step_counts --task streams                         # learning drifting signals online
    python -m benchmarks.step_counts --run RUN --data-dir DATA_DIR          # from a reproduced paper's row
    python -m benchmarks.step_counts --algorithms all                       # every algorithm, each by its own rule

Trains each start, adapts each to the same new tasks by gradient descent, and reports the mean over tasks
after every step with its 95% confidence interval, the steps needed to reach given targets, a figure and a
JSON file.
"""

import dataclasses
import json
import pathlib
from typing import Any, Literal

import jax
import numpy as np
import rich.console
import rich.table
import tyro

import jaxmaml
from benchmarks.adaptation import algorithms, navigation, omniglot, sinusoid, trained_run
from benchmarks.adaptation.curves import draw
from benchmarks.adaptation.problem import FineTuning, Problem, Setting, Start
from benchmarks.common import reporting
from benchmarks.fields import comparison
from benchmarks.streams import comparison as streams
from jaxmaml import checks


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare initial parameters by the gradient steps that a new task needs."""

    task: Literal["sinusoid", "omniglot", "fields", "navigation", "streams"] = "sinusoid"
    """Family of tasks. Without a data directory, Omniglot means procedural characters, and fields random phantoms."""
    data_dir: pathlib.Path | None = None
    """Folder with Omniglot's images_background.zip and images_evaluation.zip, or for fields with mini-ImageNet's zips;
    with `run`, of that run's data."""
    run: pathlib.Path | None = None
    """Folder of a run of `benchmarks.reproduce` with MAML: compare its best state with joint training and a random
    start on its tasks, instead of `task`."""
    output_dir: pathlib.Path = pathlib.Path("results")
    """Where the JSON file and the figure go."""
    seed: int = 0
    """Of everything that is drawn."""
    num_tasks: int = 0
    """New tasks to adapt to; 0 means the task's own number: 600, 20 fields, 40 goals of navigation or 200 streams."""
    num_steps: int = 0
    """Gradient steps on each; 0 means the task's own number: 10, 1000 for fields, 3 for navigation, 16 for streams."""
    outer_steps: int | None = None
    """Training steps of each start; the recipe's own by default."""
    algorithms: tuple[str, ...] = ()
    """Compare these algorithms instead ("all" for every one), each adapting by its own rule."""


def main(config: Config) -> dict[str, Any]:
    console = rich.console.Console()
    if not console.is_terminal:
        console.width = 150  # A log file's 80 columns would cut the tables to shreds.
    train_key, valid_key, test_key = jax.random.split(jax.random.key(config.seed), 3)
    if config.task == "fields":
        return comparison.compare(dataclasses.asdict(config), plain(config), console)
    if config.task == "navigation":
        return navigation.compare(dataclasses.asdict(config), console)
    if config.task == "streams":
        return streams.compare(dataclasses.asdict(config), plain(config), console)
    config = dataclasses.replace(config, num_tasks=config.num_tasks or 600, num_steps=config.num_steps or 10)
    problem = make_problem(config, train_key)
    if config.algorithms:
        return compare_algorithms(config, problem, train_key, test_key, console)
    starts = [make() for make in problem.starts]
    result = {
        "benchmark": "step_counts",
        "command": reporting.command_line("benchmarks.step_counts"),
        "config": plain(config),
        "environment": reporting.environment(),
        "metric": problem.metric_name,
        "protocol": problem.protocol,
        "training": {
            start.name: {"outer_steps": start.outer_steps, "seconds": round(start.seconds, 1), "note": start.note}
            for start in starts
        },
        "settings": {},
    }
    fine_tuning = {
        start.loss_fn: FineTuning(
            start.loss_fn,
            num_inner_steps=config.num_steps,
            chunk_size=problem.chunk_size,
        )
        for start in starts
    }
    for setting in problem.settings:
        rows = {}
        for start in starts:
            with console.status(f"{setting.name}: fine-tuning from {start.name}"):
                descend = fine_tuning[start.loss_fn]
                rows[start.name] = measure(problem, setting, start, descend, valid_key, test_key, config.num_tasks)
        result["settings"][setting.name] = rows
        console.print(make_table(problem, setting.name, rows, config))
    path = config.output_dir / f"step_counts_{config.run.name if config.run else config.task}.json"
    reporting.write_json(path, result)
    draw(problem, result["settings"], path.with_suffix(".png"))
    return result


def plain(config: Config) -> dict[str, Any]:
    """The configuration for a result file, without the reader's own paths."""
    fields = dataclasses.asdict(config) | {"run": config.run.name if config.run else None}
    return {name: value for name, value in fields.items() if not name.endswith("_dir")}


def compare_algorithms(config: Config, problem: Problem, train_key, test_key, console) -> dict[str, Any]:
    """Train each algorithm, and adapt by its own rule to the new tasks of the problem's main setting."""
    if problem.family is None:
        raise SystemExit("--algorithms is for a --task; a run has the one that it was of.")
    family = problem.family(train_key)
    names = tuple(family.algorithms) if "all" in config.algorithms else config.algorithms
    unknown = set(names) - set(family.algorithms)
    if unknown:
        raise SystemExit(f"No algorithm {min(unknown)!r} for this task; there are {', '.join(family.algorithms)}.")
    rows: dict[str, Any] = {}
    command = reporting.command_line("benchmarks.step_counts")  # A row's own: others may be of an earlier run.
    result = {
        "benchmark": "step_counts of algorithms",
        "config": {name: value for name, value in plain(config).items() if name != "algorithms"},
        "environment": reporting.environment(),
        "metric": problem.metric_name,
        "protocol": {name: text for name, text in problem.protocol.items() if name in ("family", "data", "queries")}
        | {"training": f"{family.num_tasks} tasks an outer step", "setting": problem.settings[0].name},
        "settings": {problem.settings[0].name: rows},
    }
    path = config.output_dir / f"step_counts_{config.task}_algorithms.json"
    rows |= kept_rows(path, result)
    for name in names:
        console.print(f"training: {name}")
        algorithm = family.algorithms[name]
        learner, state, row = algorithms.train(algorithm, family, config.outer_steps, train_key)
        evaluation = jaxmaml.evaluate(
            learner,
            algorithm.evaluation_loss,
            state,
            problem.settings[0].test,
            test_key,
            num_inner_steps=config.num_steps,
            num_tasks=config.num_tasks,
            chunk_size=problem.chunk_size,
        )
        rows[name] = row | {"command": command} | scored(problem, jax.device_get(evaluation))
        rows |= {name: rows.pop(name) for name in family.algorithms if name in rows}  # In the family's order.
        reporting.write_json(path, result)
    console.print(make_table(problem, problem.settings[0].name, rows, config))
    draw(problem, result["settings"], path.with_suffix(".png"))
    return result


def kept_rows(path: pathlib.Path, result: dict[str, Any]) -> dict[str, Any]:
    """The rows of an earlier run with the same set-up and other algorithms, so that one can be measured alone."""
    if not path.exists():
        return {}
    earlier = json.loads(path.read_text())

    now = json.loads(json.dumps(result))
    if any(earlier[part] != now[part] for part in ("config", "protocol", "environment")):
        return {}
    (rows,) = earlier["settings"].values()
    return rows


def make_problem(config: Config, key) -> Problem:
    checks.positive_int("num_tasks", config.num_tasks)
    checks.positive_int("num_steps", config.num_steps)
    if config.outer_steps is not None:
        checks.positive_int("outer_steps", config.outer_steps)
    if config.run is not None:
        return trained_run.make(key, config.run, config.outer_steps, config.data_dir)
    if config.task == "sinusoid":
        return sinusoid.make(key, config.outer_steps)
    return omniglot.make(key, config.outer_steps, config.data_dir)


def measure(
    problem: Problem, setting: Setting, start: Start, fine_tuning: FineTuning, valid_key, test_key, num_tasks: int
) -> dict[str, Any]:
    """Adapt to the test tasks, with those of the start's candidate step sizes that are best on validation tasks."""
    if start.step_size is None:
        candidates, found = [(size, 1.0) for size in problem.step_sizes], "validation tasks"
    else:
        candidates, found = [(start.step_size, later) for later in problem.later], "training"

    def validation_score(candidate: tuple[float, float]) -> float:
        size, later = candidate
        number = min(num_tasks, problem.valid_tasks or num_tasks)
        validated = fine_tuning(start.params, size, setting.valid, valid_key, number, later)
        return _score(problem, curve(problem, validated).mean)

    size, later = min(candidates, key=validation_score) if len(candidates) > 1 else candidates[0]
    row: dict[str, Any] = {
        "step_size": size,
        "step_size_from": found,
    }
    if later != 1.0:  # From validation tasks in any case.
        row["later_step_size"] = later * size
    evaluation = fine_tuning(start.params, size, setting.test, test_key, num_tasks, later)
    return row | scored(problem, evaluation)


def scored(problem: Problem, evaluation: jaxmaml.Evaluation) -> dict[str, Any]:
    """The curves of an evaluation, and its step counts."""
    values = curve(problem, evaluation)
    return {
        "mean": reporting.numbers(values.mean),
        "ci95": reporting.numbers(values.ci95),
        "query_loss": reporting.numbers(evaluation.query_loss.mean),
        "median_query_loss": reporting.numbers(np.median(evaluation.query_loss.per_task, axis=0)),
        "steps_to": {str(target): steps_to(problem, values.mean, target) for target in problem.targets},
    }


def curve(problem: Problem, evaluation: jaxmaml.Evaluation) -> jaxmaml.Curve:
    return evaluation.accuracy if problem.metric == "accuracy" and evaluation.accuracy else evaluation.query_loss


def _score(problem: Problem, mean: jax.Array) -> float:
    """The value to minimise; infinite for a start that diverges."""
    value = float(np.mean(mean[1:]))
    if not np.isfinite(value):
        return float("inf")
    return value if problem.metric == "loss" else -value


def steps_to(problem: Problem, mean: jax.Array, target: float) -> int | None:
    """The first step at which the mean reaches the target; `None` if it never does."""
    reached = mean <= target if problem.metric == "loss" else mean >= target
    return int(np.argmax(reached)) if reached.any() else None


def make_table(problem: Problem, setting: str, rows: dict[str, Any], config: Config) -> rich.table.Table:
    shown = tuple(step for step in (0, 1, 2, 5, 10, 20, 50, 100) if step <= config.num_steps)
    percent = problem.metric == "accuracy"
    unit = " (%)" if percent else ""
    table = rich.table.Table(
        title=f"{problem.title}, {setting}: {problem.metric_name}{unit} after k steps, {config.num_tasks} tasks, 95% CI"
    )
    table.add_column("start", no_wrap=True)
    first = reporting.first_columns(rows)
    for head in [*first, *reporting.heads(list(problem.targets), shown, percent)]:
        table.add_column(head, justify="right")
    for name, row in rows.items():
        table.add_row(name, *(cell(row) for cell in first.values()), *reporting.cells(row, shown, percent))
    return table


if __name__ == "__main__":
    main(tyro.cli(Config))
