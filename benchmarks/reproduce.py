"""A row of a paper's table, from data to number.

    python -m benchmarks.reproduce --list
    python -m benchmarks.reproduce --recipe maml-omniglot-5w1s --data-dir DATA_DIR

Trains as the recipe says (some start from a classifier of the training classes), keeps the state with the best
validation score, and evaluates it on meta-test tasks. Every field of the recipe is an argument (`--outer-steps
5000`), and the resolved recipe is part of the result. `--resume` continues a run that was stopped.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time
from typing import Annotated, Any

import jax
import rich.console
import rich.table
import tyro

import jaxmaml
from benchmarks.common import pretraining, reporting
from benchmarks.papers import data
from benchmarks.papers.recipes import PROTOCOL, RECIPES, Recipe
from benchmarks.papers.scores import Scorer


@dataclasses.dataclass(frozen=True)
class Config:
    """How to run a recipe."""

    fields: Annotated[Recipe, tyro.conf.arg(name="")]
    """The recipe's own; each can be overridden."""
    data_dir: pathlib.Path | None = None
    """Folder of Omniglot's zips, or of mini-ImageNet's; procedural characters without."""
    output_dir: pathlib.Path = pathlib.Path("results")
    """Where the result goes, and a folder with checkpoints and metrics."""
    budget: float | None = None
    """Minutes of training, after which it is evaluated as far as it got."""
    resume: bool = False
    """Go on from the last checkpoint."""
    dry_run: bool = False
    """Show the resolved recipe and the shapes of an outer step, and train nothing."""
    mesh: bool = True
    """Split the tasks of an outer step over all devices, or over all cores of a CPU."""
    watch_test: bool = True
    """Evaluate on the meta-test tasks at every validation too: for the curve alone, never to choose."""


def main(arguments: list[str]) -> None:
    console = rich.console.Console()
    if not console.is_terminal:
        console.width = 150
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--recipe", default="maml-omniglot-5w1s")
    parser.add_argument("--list", action="store_true")
    chosen, rest = parser.parse_known_args(arguments)
    if chosen.list:
        console.print(table())
        return
    if chosen.recipe not in RECIPES:
        raise SystemExit(f"No recipe {chosen.recipe!r}; --list shows them.")
    config = tyro.cli(Config, args=rest, default=Config(RECIPES[chosen.recipe]), description=__doc__)
    run(chosen.recipe, config, console)


def table() -> rich.table.Table:
    view = rich.table.Table("recipe", "paper (%)", "inner steps", "test steps", "tasks", "test queries a class")
    for name, recipe in RECIPES.items():
        view.add_row(
            name,
            reporting.percent(recipe.paper_accuracy, recipe.paper_ci95),
            *map(str, (recipe.num_inner_steps, recipe.num_test_inner_steps, recipe.num_tasks, recipe.num_test_queries)),
        )
    return view


def run(name: str, config: Config, console: rich.console.Console) -> dict[str, Any] | None:
    recipe, mesh = config.fields, jaxmaml.task_mesh() if config.mesh else None
    learner = recipe.learner(mesh)
    splits = data.load(recipe, config.data_dir)
    sample = recipe.sampler(splits.train, recipe.num_queries)
    start = recipe.init()
    if config.dry_run:
        tasks = jax.eval_shape(jax.vmap(sample), jax.random.split(jax.random.key(0), recipe.num_tasks))
        console.print(dataclasses.asdict(recipe))
        console.print({"tasks": tasks, "info": jax.eval_shape(learner.update, start, tasks)[1]})
        return None
    folder = config.output_dir / name
    saved = folder / "checkpoints"
    checkpoints = jaxmaml.Checkpoints(saved, every=recipe.valid_every)
    if saved.exists() and not config.resume:
        raise SystemExit(f"{saved} exists: go on with --resume, or choose another --output-dir.")
    folder.mkdir(parents=True, exist_ok=True)
    reporting.write_json(folder / "recipe.json", dataclasses.asdict(recipe))
    keys = dict(zip(("train", "valid", "test"), jax.random.split(jax.random.key(recipe.seed), 3), strict=True))
    test = recipe.sampler(splits.test, recipe.num_test_queries)
    scorer = Scorer(recipe, learner, test, keys["test"])
    validation = jaxmaml.Validation(
        recipe.loss_fn(),
        recipe.sampler(splits.valid, recipe.num_test_queries),
        keys["valid"],
        num_inner_steps=recipe.num_test_inner_steps,
        num_tasks=recipe.valid_tasks,
        every=recipe.valid_every,
    )
    clock = Clock(folder / "clock.json")
    if recipe.pretrain_steps:
        params, seconds = pretrained(recipe, splits, folder)
        start = recipe.init(params)
        if not clock.records:
            clock.add(seconds, {"step": 0, "pretrain_steps": recipe.pretrain_steps})
    step = clock.records[-1]["step"] if clock.records else 0

    def train(until: int) -> jaxmaml.MetaState:
        """The best state up to outer step `until`, resuming from the last checkpoint."""
        best, _ = jaxmaml.fit(
            learner,
            start,
            sample,
            keys["train"],
            num_steps=until,
            num_tasks=recipe.num_tasks,
            checkpoints=checkpoints,
            validation=validation,
            metrics=jaxmaml.metrics.jsonl(folder / "metrics.jsonl"),
        )
        return best

    best = None
    while step < recipe.outer_steps:
        step = min(step + recipe.valid_every, recipe.outer_steps)
        began = time.perf_counter()
        best = train(step)
        seconds = time.perf_counter() - began
        record = {"step": step, "best_step": int(best.step)}
        if config.watch_test:
            record |= scorer.accuracy(best)
        clock.add(seconds, record)
        console.print(record)
        if config.budget is not None and clock.seconds > 60 * config.budget:
            break
    if best is None:  # Everything was done before.
        best = train(step)
    result = {
        "benchmark": "reproduce",
        "protocol": PROTOCOL,
        "version": jaxmaml.__version__,
        "name": name,
        "command": reporting.command_line("benchmarks.reproduce"),
        "recipe": dataclasses.asdict(recipe),
        "data": "real" if config.data_dir else "procedural stand-in",
        "environment": reporting.environment(),
        "normalisation": recipe.normalisation,
        "outer_steps": step,
        "best_step": int(best.step),
        "train_seconds": clock.seconds,
        "history": clock.records,
        "seconds_to_paper": clock.seconds_to(recipe.paper_accuracy),
        **scorer.result(best),
    }
    reporting.write_json(config.output_dir / f"reproduce_{name}.json", result)
    paper = reporting.percent(recipe.paper_accuracy, recipe.paper_ci95)
    console.print(f"{name}: {result['accuracy']:.2f} ± {result['ci95']:.2f} %; in the paper: {paper}")
    return result


class Clock:
    """The training time over all parts of a run, and the results at each validation."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.records: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []

    @property
    def seconds(self) -> float:
        return self.records[-1]["seconds"] if self.records else 0.0

    def add(self, seconds: float, record: dict[str, Any]) -> None:
        self.records.append({"seconds": self.seconds + seconds, **record})
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.records))
        partial.replace(self.path)

    def seconds_to(self, accuracy: float | None) -> float | None:
        """The time when the meta-test accuracy first reached `accuracy`; `None` if it did not, or was not evaluated."""
        reached = (r["seconds"] for r in self.records if accuracy and r.get("test_accuracy", 0.0) >= accuracy)
        return next(reached, None)


def pretrained(recipe: Recipe, splits: jaxmaml.tasks.Splits, folder: pathlib.Path) -> tuple[Any, float]:
    """The body of a classifier of the training classes as initial parameters, and the seconds taken."""
    params, seconds = pretraining.pretrain(
        recipe.model,
        splits.train.images,
        jax.random.fold_in(jax.random.key(recipe.seed), 3),
        rotate=recipe.rotate,
        steps=recipe.pretrain_steps,
        checkpoints=jaxmaml.Checkpoints(folder / "pretraining", every=1000),
    )
    return pretraining.with_new_head(params, recipe.init().params), seconds


if __name__ == "__main__":
    main(sys.argv[1:])
