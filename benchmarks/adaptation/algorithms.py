"""Training an algorithm of the family on one problem, for `step_counts --algorithms`; `families` has the recipes."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import chex
import jax
import numpy as np

import jaxmaml
from benchmarks.common import reporting
from jaxmaml.training.samplers import Sampler


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """A recipe.

    Attributes:
      learner: Makes the learner for a number of outer steps, on which schedules depend.
      params: The initial parameters.
      evaluation_loss: `(fast_params, batch) -> loss` or `(loss, {"accuracy": ...})`, for evaluation.
      recipe: The recipe in words, for the result file.
      normalisation: The statistics that the model normalises by.
      untrained: Whether the initial parameters are evaluated without training.
      outer_steps: The number of outer steps, if fewer than the family's.
    """

    learner: Callable[[int], jaxmaml.MetaLearner]
    params: Any
    evaluation_loss: jaxmaml.LossFn
    recipe: str
    normalisation: str = "none"
    untrained: bool = False
    outer_steps: int | None = None


@dataclasses.dataclass(frozen=True)
class Family:
    """The algorithms on one problem, and how they are trained."""

    algorithms: dict[str, Algorithm]
    sample: Sampler
    num_tasks: int
    outer_steps: int
    steps_per_dispatch: int


def train(algorithm: Algorithm, family: Family, outer_steps: int | None, key: chex.PRNGKey) -> tuple[Any, Any, dict]:
    """Returns `(learner, state, row)`: the row has the cost of an outer step, once compiled."""
    num_steps = outer_steps or algorithm.outer_steps or family.outer_steps
    learner = algorithm.learner(num_steps)
    state = learner.init(algorithm.params)
    row = {"recipe": algorithm.recipe, "normalisation": algorithm.normalisation, "outer_steps": 0}
    if algorithm.untrained:
        return learner, state, row
    options: dict[str, Any] = {"num_tasks": family.num_tasks, "steps_per_dispatch": family.steps_per_dispatch}
    began = time.perf_counter()
    try:
        trained, _ = jaxmaml.fit(learner, state, family.sample, key, num_steps=num_steps, **options)
    except jaxmaml.NonFiniteError as error:  # Then the last finite state is evaluated, and the result says so.
        trained = error.state
        row["diverged_at"] = int(trained.step)
    row |= {"outer_steps": num_steps, "seconds": round(time.perf_counter() - began, 1)}
    seconds = []
    for _ in range(3):  # From the start, which is finite whatever training did.
        began = time.perf_counter()
        again, _ = jaxmaml.fit(
            learner, state, family.sample, key, num_steps=family.steps_per_dispatch // 10, progress=False, **options
        )
        jax.block_until_ready(again)
        seconds.append(time.perf_counter() - began)
    tasks = jax.eval_shape(jax.vmap(family.sample), jax.random.split(key, family.num_tasks))
    compiled = jax.jit(learner.update).lower(jax.eval_shape(lambda s: s, trained), tasks).compile()
    row["ms_per_outer_step"] = 1e3 * float(np.median(seconds)) / (family.steps_per_dispatch // 10)
    row["megabytes"] = reporting.temporaries(compiled) / 1e6
    return learner, trained, row
