"""Batch statistics averaged over tasks, with which predictions do not depend on each other."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxmaml import checks
from jaxmaml.keys import threefry
from jaxmaml.training.samplers import Sampler, as_pytree, check_sampler
from jaxmaml.types import MetaLearner, MetaState, PyTree


def average_statistics(
    apply: Callable[..., Any],
    learner: MetaLearner,
    state: MetaState,
    sample_task: Sampler,
    key: chex.PRNGKey,
    *,
    num_tasks: int = 100,
    num_inner_steps: int | None = None,
) -> dict[str, PyTree]:
    r"""Average the batch statistics of adapted models over the queries of many tasks.

    The equivalent of a classifier's running averages for a learner whose parameters differ from task to task. The model
    is adapted to each of `num_tasks` tasks, its query is normalised by its own statistics, and the averages are
    `mean = E[mean_t]` and `var = E[var_t] + Var[mean_t]`. Use training tasks. All are computed at the given state,
    unlike a decaying average over earlier states, for which see `jaxmaml.nn.BatchNorm`.

    Args:
      apply: `(params, inputs, mutable=["batch_stats"]) -> (predictions, {"batch_stats": ...})`, such as
        `jaxmaml.nn.Conv4(...).apply` or that of a flax model with `jaxmaml.nn.BatchNorm`.
      learner: A learner from `jaxmaml.maml` or another factory.
      state: The state that adaptation starts from.
      sample_task: `key -> Task`.
      key: The PRNG key from which the tasks are drawn.
      num_tasks: The number of tasks.
      num_inner_steps: The number of inner steps on each; that of training by default.

    Returns:
      `{"batch_stats": ...}`, to be merged into the parameters: `apply({**params, **statistics}, inputs)`.

    Raises:
      TypeError: If an argument is of the wrong kind.
      ValueError: If a count is < 1, or the model writes no `"batch_stats"`.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmaml
      >>> model = jaxmaml.nn.Conv4.omniglot(num_ways=5, features=4)
      >>> loss_fn = jaxmaml.cross_entropy(model.apply)
      >>> learner = jaxmaml.maml(loss_fn, optax.sgd(0.1), optax.adam(1e-3), num_inner_steps=1)
      >>> state = learner.init(model.init(jax.random.key(0), jnp.ones((5, 28, 28, 1))))
      >>> classes = jaxmaml.tasks.strokes.load(num_classes=(10, 5, 5), images_per_class=4).train
      >>> sample = jaxmaml.tasks.image_episodes(classes.images, num_ways=5, num_shots=1, num_queries=3)
      >>> statistics = jaxmaml.nn.average_statistics(
      ...     model.apply, learner, state, sample, jax.random.key(1), num_tasks=10)
      >>> loss_fn = jaxmaml.cross_entropy(lambda params, x: model.apply({**params, **statistics}, x))
      >>> result = jaxmaml.evaluate(
      ...     learner, loss_fn, state, sample, jax.random.key(2), num_inner_steps=1, num_tasks=10)

    References:
      Ioffe and Szegedy, 2015, algorithm 2, https://arxiv.org/abs/1502.03167
    """
    checks.function("apply", apply)
    checks.learner(learner)
    checks.state(state)
    check_sampler("sample_task", sample_task, key)
    checks.positive_int("num_tasks", num_tasks)
    if num_inner_steps is not None:
        checks.positive_int("num_inner_steps", num_inner_steps)
    keys = jax.random.split(threefry(key), num_tasks)
    return {"batch_stats": _average(apply, learner, num_inner_steps, state, as_pytree(sample_task), keys)}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _average(apply, learner, num_inner_steps, state, sample_task, keys):
    def of_task(key):
        task = sample_task(key)
        fast_params, _ = learner.adapt(state, task.support, num_inner_steps=num_inner_steps)
        _, written = apply(fast_params, task.query[0], mutable=["batch_stats"])
        if not written.get("batch_stats"):
            raise ValueError('`apply` must write to "batch_stats", as a model with jaxmaml.nn.BatchNorm does.')
        return written["batch_stats"]

    return _over_tasks(jax.lax.map(of_task, keys))


def _over_tasks(statistics: PyTree) -> PyTree:
    """`mean` and `var` of an equal mixture of tasks, from those with a leading task axis, at any depth of a tree."""
    if not {"mean", "var"} <= set(statistics):
        return {name: _over_tasks(part) for name, part in statistics.items()}
    mean, var = statistics["mean"], statistics["var"]
    return {"mean": jnp.mean(mean, 0), "var": jnp.mean(var, 0) + jnp.var(mean, 0)}
