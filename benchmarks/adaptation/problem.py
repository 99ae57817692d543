"""What the step-count benchmark compares: initial parameters (starts) for new tasks of a family."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmaml
from benchmarks.adaptation.algorithms import Family
from benchmarks.common import pretraining
from jaxmaml.training.samplers import Sampler


@dataclasses.dataclass(frozen=True)
class Start:
    """Parameters from which a new task is learned by gradient descent.

    Attributes:
      name: The name in tables.
      params: The parameters.
      loss_fn: The loss that is minimised and evaluated.
      step_size: The step size of gradient descent; `None` to search for the best on validation tasks.
      outer_steps: The number of training steps of `params`.
      seconds: The training time, including compilation.
      note: How the start was made.
    """

    name: str
    params: Any
    loss_fn: jaxmaml.LossFn
    step_size: float | None
    outer_steps: int = 0
    seconds: float = 0.0
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way of posing new tasks: how many examples, how many queries."""

    name: str
    valid: Sampler
    test: Sampler


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task family, its starts and how they are evaluated.

    Attributes:
      title: The title of figures.
      metric: `"loss"` or `"accuracy"`.
      metric_name: The name of the metric, with its unit.
      targets: Values of the metric whose step counts are reported.
      step_sizes: Candidates for starts without a step size.
      later: Candidates for the length of later steps, relative to the first, for starts with a step size, which were
        trained for the first step alone.
      settings: Ways of posing new tasks, the main one first.
      starts: Yields the starts.
      chunk_size: The number of tasks evaluated at once.
      protocol: Everything that a reader needs to know to interpret the numbers.
      family: `key -> Family`, the algorithms on this problem, for `--algorithms`.
      valid_tasks: The largest number of validation tasks for each candidate step size; by default that of new tasks.
    """

    title: str
    metric: str
    metric_name: str
    targets: tuple[float, ...]
    step_sizes: tuple[float, ...]
    later: tuple[float, ...]
    settings: tuple[Setting, ...]
    starts: tuple[Callable[[], Start], ...]
    chunk_size: int
    protocol: dict[str, Any]
    family: Callable[[chex.PRNGKey], Family] | None = None
    valid_tasks: int | None = None


def train(
    name: str,
    learner: jaxmaml.MetaLearner,
    params: Any,
    sample: Sampler,
    key: chex.PRNGKey,
    *,
    outer_steps: int,
    num_tasks: int,
    steps_per_dispatch: int,
) -> tuple[Any, float]:
    """Meta-train; return the initial parameters and the seconds taken."""
    print(f"training: {name}", flush=True)
    began = time.perf_counter()
    state, _ = jaxmaml.fit(
        learner,
        learner.init(params),
        sample,
        key,
        num_steps=outer_steps,
        num_tasks=num_tasks,
        steps_per_dispatch=steps_per_dispatch,
    )
    return jax.block_until_ready(state.params), time.perf_counter() - began


def joint_start(
    make_classifier: Callable[[int], jaxmaml.nn.Conv4],
    images: np.ndarray,
    few_shot_params: Any,
    loss_fn: jaxmaml.LossFn,
    key: chex.PRNGKey,
    *,
    rotate: bool,
    outer_steps: int,
) -> Start:
    """The body of a classifier of all image classes, with a new head of zeros for the new task."""
    print("training: joint training", flush=True)
    params, seconds = pretraining.pretrain(make_classifier, images, key, rotate=rotate, steps=outer_steps)
    number = params["params"]["Dense_0"]["bias"].size
    note = f"classifier of all {number} training classes, batches of {pretraining.BATCH}, its head replaced by zeros"
    start = pretraining.with_new_head(params, few_shot_params)
    return Start("joint training", start, loss_fn, None, outer_steps, seconds, note)


class FineTuning:
    """Gradient descent from any parameters at any step size, compiled once for all of them.

    The first step has length `step_size`, those after it `later` times that.
    """

    def __init__(self, loss_fn: jaxmaml.LossFn, *, num_inner_steps: int, chunk_size: int):
        rule = jaxmaml.InnerRule(
            init_params=lambda params: jnp.zeros(2),
            init=lambda step_sizes, params: (),
            update=lambda grads, state, params, step_sizes, step, **extra: (
                jax.tree.map(lambda g: -step_sizes[jnp.minimum(step, 1)] * g, grads),
                state,
            ),
        )
        self._learner = jaxmaml.maml(loss_fn, rule, optax.identity(), num_inner_steps=1)
        self._evaluate = functools.partial(
            jaxmaml.evaluate,
            self._learner,
            loss_fn,
            num_inner_steps=num_inner_steps,
            chunk_size=chunk_size,
        )

    def __call__(
        self, params: Any, step_size: float, sample: Sampler, key: chex.PRNGKey, num_tasks: int, later: float = 1.0
    ) -> jaxmaml.Evaluation:
        step_sizes = jnp.array([step_size, later * step_size], jnp.float32)
        state = self._learner.init(params)._replace(rule_params=step_sizes)
        return jax.device_get(self._evaluate(state, sample, key, num_tasks=num_tasks))
