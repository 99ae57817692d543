"""Evaluation of a learner on held-out tasks, after every inner step."""

import functools
from collections.abc import Hashable, Mapping
from typing import NamedTuple, cast

import chex
import jax
import jax.numpy as jnp

from jaxmaml import checks
from jaxmaml.training import padding
from jaxmaml.training.samplers import Sampler, as_pytree, check_sampler, threefry
from jaxmaml.types import LossFn, MetaLearner, MetaState, Task


class Curve(NamedTuple):
    """A quantity after 0, 1, ... inner steps, over tasks.

    Attributes:
      per_task: `[num_tasks, num_inner_steps + 1]`.
      mean: Mean over tasks, `[num_inner_steps + 1]`.
      ci95: Half-width of the 95% confidence interval of the mean, `1.96 std / sqrt(num_tasks)`; NaN for a single task.
    """

    per_task: jax.Array
    mean: jax.Array
    ci95: jax.Array


class Evaluation(NamedTuple):
    """The result of `evaluate`.

    Attributes:
      query_loss: In the units of the loss (nats for cross-entropy).
      accuracy: Fraction of 1; `None` where the loss function does not return `{"accuracy": ...}`.
      support_loss: On the support set, after 0 to `num_inner_steps - 1` steps.
    """

    query_loss: Curve
    accuracy: Curve | None
    support_loss: Curve


def evaluate(
    learner: MetaLearner,
    loss_fn: LossFn,
    state: MetaState,
    tasks: Task | Sampler,
    key: chex.PRNGKey | None = None,
    *,
    num_inner_steps: int,
    num_tasks: int | None = None,
    chunk_size: int | None = 20,
) -> Evaluation:
    r"""Adapt to held-out tasks, and evaluate each on its query set after 0, 1, ... inner steps.

    For each step the mean over tasks comes with its 95% confidence interval, `1.96 std / sqrt(num_tasks)`, where std is
    the standard deviation of the sample (divided by N, as in the original code).

    It is compiled once for a learner, a loss function and the counts; other states, keys and tasks of the same shapes
    do not recompile it. It also works under `jit` and `vmap`.

    Args:
      learner: A learner from `jaxmaml.maml` or another factory.
      loss_fn: The loss that is evaluated on the query set, usually the training loss; `jaxmaml.ensemble` of it where
        the parameters are particles. `(params, batch) -> loss` or `(loss, {"accuracy": ...})`.
      state: The state to evaluate.
      tasks: A sampler, `key -> Task`, or a batch of tasks with a leading axis on every leaf.
      key: The PRNG key from which the tasks are drawn; not for a batch of tasks.
      num_inner_steps: The number of inner steps, which may differ from that of training.
      num_tasks: The number of tasks to draw, 600 by default, as in the papers; not for a batch of tasks.
      chunk_size: The number of tasks that are in memory at once, `None` for all; it does not change the result. The
        losses and accuracies of all tasks are kept in any case.

    Returns:
      An `Evaluation`.

    Raises:
      TypeError: If `tasks` is neither a `Task` nor a sampler, or `key` is missing for a sampler.
      ValueError: If a count is < 1, if a batch is empty, has leaves of different lengths or comes with `key` or
        `num_tasks`, or if the accuracy is not a scalar.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxmaml
      >>> loss_fn = lambda centre, points: jnp.mean((points - centre) ** 2)
      >>> sample = lambda key: jaxmaml.Task(*jax.random.normal(key, (2, 5)))  # 5 points each
      >>> learner = jaxmaml.maml(loss_fn, optax.sgd(0.1), optax.sgd(0.1), num_inner_steps=1)
      >>> result = jaxmaml.evaluate(
      ...     learner, loss_fn, learner.init(jnp.zeros(())), sample, jax.random.key(0),
      ...     num_inner_steps=10, num_tasks=100)
      >>> result.query_loss.mean.shape, result.query_loss.per_task.shape
      ((11,), (100, 11))

    References:
      Finn et al., 2017, https://arxiv.org/abs/1703.03400 (600 tasks, 10 steps)
    """
    checks.learner(learner)
    checks.function("loss_fn", loss_fn)
    checks.state(state)
    checks.positive_int("num_inner_steps", num_inner_steps)
    if chunk_size is not None:
        checks.positive_int("chunk_size", chunk_size)
    if isinstance(tasks, Task):
        checks.tasks(tasks)
        checks.placement(tasks, None)
        if key is not None or num_tasks is not None:
            raise ValueError("`key` and `num_tasks` are for a sampler; `tasks` is a batch of tasks already.")
        sources, sample = tasks, jax.tree_util.Partial(_itself)
    elif callable(tasks):
        checks.prng_key(key)
        count = checks.positive_int("num_tasks", 600 if num_tasks is None else num_tasks)
        sources, sample = jax.random.split(threefry(cast(jax.Array, key)), count), as_pytree(tasks)
    else:
        raise TypeError(f"`tasks` must be a jaxmaml.Task or a sampler `key -> Task`, got {type(tasks).__name__}.")
    if not isinstance(loss_fn, Hashable):
        loss_fn = functools.partial(loss_fn)  # Hashable by identity: it works, and is compiled at every call.
    padding.check_drawn(learner, state, sample, jax.tree.map(lambda leaf: leaf[0], sources), loss_fn)
    return _evaluate(learner, loss_fn, num_inner_steps, chunk_size, state, sources, sample)


def _itself(task: Task) -> Task:
    return task


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _evaluate(learner, loss_fn, num_inner_steps, chunk_size, state, sources, sample) -> Evaluation:
    loss_fn = checks.with_checked_output(loss_fn)
    if not isinstance(sources, Task):
        check_sampler("tasks", sample, sources[0])

    def evaluated(source):
        task = sample(source)
        _, trace = learner.adapt(
            state, task.support, num_inner_steps=num_inner_steps, observe=lambda fast: loss_fn(fast, task.query)
        )
        loss, aux = trace.observed
        accuracy = aux["accuracy"] if isinstance(aux, Mapping) and "accuracy" in aux else None
        if accuracy is not None and getattr(accuracy, "shape", None) != loss.shape:
            found = f"shape {accuracy.shape[1:]}" if hasattr(accuracy, "shape") else type(accuracy).__name__
            raise ValueError(f"`loss_fn` must return a scalar accuracy, got {found}.")
        return loss, accuracy, trace.support_loss

    num_tasks = jax.tree.leaves(sources)[0].shape[0]
    query_loss, accuracy, support_loss = jax.lax.map(evaluated, sources, batch_size=chunk_size or num_tasks)
    return Evaluation(
        query_loss=_curve(query_loss),
        accuracy=None if accuracy is None else _curve(accuracy),
        support_loss=_curve(support_loss),
    )


def _curve(per_task: jax.Array) -> Curve:
    mean, std = jnp.mean(per_task, 0), jnp.std(per_task, 0)
    num_tasks = per_task.shape[0]
    return Curve(per_task, mean, 1.96 * std / jnp.sqrt(num_tasks) if num_tasks > 1 else jnp.full_like(mean, jnp.nan))
