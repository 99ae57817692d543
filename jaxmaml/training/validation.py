"""Validation during training: the choice of the best state, and early stopping."""

import math
import warnings
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxmaml import checks
from jaxmaml.training.evaluation import Curve, Evaluation, evaluate
from jaxmaml.training.run_state import Run
from jaxmaml.types import LossFn, MetaLearner, MetaState


class Validation(NamedTuple):
    """Held-out tasks that `fit` evaluates on at intervals: `fit(..., validation=...)`.

    `fit` returns the state with the best score. If no score is finite, it returns the last state and warns.

    Attributes:
      loss_fn: The loss that is evaluated on the query set, as in `jaxmaml.evaluate`.
      tasks: A sampler of validation tasks, or a batch of them.
      key: The PRNG key from which the tasks are drawn; they are the same at every validation.
      num_inner_steps: The number of inner steps.
      num_tasks: The number of tasks to draw.
      every: The number of outer steps between validations, which take place at the end of a dispatch.
      patience: Stop after this number of validations without a better score; `None`, the default, never stops.
      chunk_size: The number of tasks that are in memory at once.
      score: The name of the scalar in `loss_fn`'s auxiliary output that is the score, after the last inner step, such
        as `"psnr"`: larger is better. `"query_loss"` is minus the query loss. By default it is the accuracy, or
        minus the query loss if there is no accuracy.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmaml
      >>> model = jaxmaml.nn.MLP()
      >>> loss_fn = jaxmaml.mean_squared_error(model.apply)
      >>> learner = jaxmaml.maml(loss_fn, optax.sgd(0.01), optax.adam(1e-3), num_inner_steps=1)
      >>> sample = jaxmaml.tasks.sinusoid()
      >>> validation = jaxmaml.Validation(
      ...     loss_fn, sample, jax.random.key(9), num_inner_steps=1, num_tasks=50, every=20)
      >>> state, _ = jaxmaml.fit(
      ...     learner, learner.init(model.init(jax.random.key(0), jnp.ones((1, 1)))), sample, jax.random.key(1),
      ...     num_steps=60, num_tasks=4, steps_per_dispatch=20, progress=False, validation=validation)
      >>> int(state.step) in (20, 40, 60)
      True
    """

    loss_fn: LossFn
    tasks: Any
    key: chex.PRNGKey | None
    num_inner_steps: int
    num_tasks: int | None = None
    every: int = 1000
    patience: int | None = None
    chunk_size: int | None = 20
    score: str | None = None


def check(settings: Any, learner: MetaLearner, state: MetaState) -> None:
    """`settings` must be a well-formed `Validation` of such states; checked before training begins."""
    if not isinstance(settings, Validation):
        raise TypeError(f"`validation` must be a jaxmaml.Validation, got {type(settings).__name__}.")
    checks.positive_int("every", settings.every)
    if settings.patience is not None:
        checks.positive_int("patience", settings.patience)
    try:
        result = jax.eval_shape(lambda state: evaluated(learner, settings, state), state)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"`validation` cannot be evaluated: {error}") from error
    choices = ("query_loss", *result.aux)
    if settings.score is not None and settings.score not in choices:
        raise ValueError(
            f"`score` of `validation` must be one of {', '.join(map(repr, choices))}, the scalars that `loss_fn` "
            f"returns; got {settings.score!r}."
        )


def evaluated(learner: MetaLearner, settings: Validation, state: MetaState) -> Evaluation:
    """The evaluation of `state` on the validation tasks."""
    return evaluate(
        learner,
        settings.loss_fn,
        state,
        settings.tasks,
        settings.key,
        num_inner_steps=settings.num_inner_steps,
        num_tasks=settings.num_tasks,
        chunk_size=settings.chunk_size,
    )


def validated(learner: MetaLearner, settings: Validation, run: Run) -> tuple[Run, dict[str, float]]:
    """`run` after a validation of its state, and the metrics to report."""
    result = evaluated(learner, settings, run.state)
    metrics = _last("valid_loss", result.query_loss)
    for name, curve in result.aux.items():
        metrics |= _last(f"valid_{name}", curve)
    chosen = settings.score or ("accuracy" if "accuracy" in result.aux else "query_loss")
    score = -metrics["valid_loss"] if chosen == "query_loss" else metrics[f"valid_{chosen}"]
    if score > float(run.score):
        best = jax.tree.map(jnp.copy, run.state)
        return run._replace(best=best, score=jnp.float32(score), since_best=jnp.int32(0)), metrics
    if not math.isfinite(score):
        warnings.warn(
            f"The validation at outer step {int(run.state.step)} has a score of {score}, which no state can be chosen "
            "by: a task on which adaptation diverges is enough.",
            stacklevel=3,
        )
    return run._replace(since_best=run.since_best + 1), metrics


def is_over(settings: Validation | None, run: Run) -> bool:
    """Whether to stop early: `patience` validations, or more, have passed since the best one.

    Never without `settings` or without patience.
    """
    return settings is not None and settings.patience is not None and int(run.since_best) >= settings.patience


def _last(name: str, curve: Curve) -> dict[str, float]:
    return {name: float(curve.mean[-1]), f"{name}_ci95": float(curve.ci95[-1])}
