"""The step-count benchmark from a run of `benchmarks.reproduce`: its best state, joint training, a random start."""

import json
import pathlib

import chex

import jaxmaml
from benchmarks.adaptation.problem import Problem, Setting, Start, joint_start
from benchmarks.papers.data import load
from benchmarks.papers.recipes import Recipe


def make(key: chex.PRNGKey, run: pathlib.Path, joint_steps: int | None, data_dir: pathlib.Path | None) -> Problem:
    """The problem of the run, with its queries for each class; by default joint training takes as many outer steps."""
    recipe = Recipe(**json.loads((run / "recipe.json").read_text()))
    if recipe.algorithm != "maml":
        raise SystemExit(f"{run} is a run of {recipe.algorithm}, and this compares starts for gradient descent: maml.")
    splits, loss_fn = load(recipe, data_dir), recipe.loss_fn()
    start = recipe.init()

    def maml() -> Start:
        best = jaxmaml.restore(run / "checkpoints", start)
        seconds = json.loads((run / "clock.json").read_text())[-1]["seconds"]
        note = f"the run's best state; trained with {recipe.num_inner_steps} inner steps"
        return Start("MAML", best.params, loss_fn, recipe.inner_step_size, int(best.step), seconds, note)

    def joint() -> Start:
        steps = joint_steps or recipe.outer_steps
        images = splits.train.images
        return joint_start(recipe.model, images, start.params, loss_fn, key, rotate=recipe.rotate, outer_steps=steps)

    queries = recipe.num_test_queries
    settings = (
        Setting(
            f"{queries} {'query' if queries == 1 else 'queries'} a class",
            *(recipe.sampler(part, queries) for part in (splits.valid, splits.test)),
        ),
    )
    name = {"omniglot": "Omniglot", "mini_imagenet": "mini-ImageNet"}[recipe.dataset]
    name = name if data_dir else "Procedural characters"
    return Problem(
        title=f"{name}, {recipe.num_ways}-way {recipe.num_shots}-shot",
        metric="accuracy",
        metric_name="query accuracy",
        targets=(0.9, 0.95, 0.975) if recipe.dataset == "omniglot" else (0.3, 0.4, 0.45),
        step_sizes=(0.01, 0.05, 0.2, 1.0),
        later=(1.0,),
        settings=settings,
        starts=(
            maml,
            joint,
            lambda: Start("random initialisation", start.params, loss_fn, None, note="never trained"),
        ),
        chunk_size=4,
        protocol={
            "run": run.name,
            "normalisation": f"batch statistics, {recipe.normalisation}",
            "data": name,
            "oracle": "none exists",
        },
        valid_tasks=100,
    )
