"""Evaluation of a learner on held-out tasks, after every inner step."""

import functools
from collections.abc import Hashable
from typing import Any, NamedTuple, cast

import chex
import jax
import jax.numpy as jnp

from jaxmaml import checks, keys, supports
from jaxmaml.execution.task_axis import map_tasks
from jaxmaml.training import padding
from jaxmaml.training.samplers import Sampler, as_pytree, check_sampler
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
      support_loss: On the support, after 0 to `num_inner_steps - 1` steps.
      aux: A curve of every scalar in the auxiliary output of the loss on the query, by name: `"accuracy"` (a fraction
        of 1), `"psnr"` (dB), `"return"`. Names of nested outputs are joined by `/`.
    """

    query_loss: Curve
    support_loss: Curve
    aux: dict[str, Curve]

    @property
    def accuracy(self) -> Curve | None:
        """`aux["accuracy"]`; `None` where the loss function does not return it."""
        return self.aux.get("accuracy")


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
    do not recompile it. It also works under `jit` and `vmap`. The devices of the learner's mesh share the tasks. Where
    the learner draws random numbers (`learner.spec.needs_key`), each task has a key of its own; where it chooses its
    queries (`queries=`), so does the evaluation: after k steps the loss is that of `queries.at` at step k.

    Args:
      learner: A learner from `jaxmaml.maml` or another factory.
      loss_fn: The loss that is evaluated on the query set, usually the training loss; `jaxmaml.ensemble` of it where
        the parameters are particles. `(params, batch) -> loss` or `(loss, aux)`.
      state: The state to evaluate.
      tasks: A sampler, `key -> Task`, or a batch of tasks with a leading axis on every leaf.
      key: The PRNG key from which the tasks are drawn, and what adaptation to them draws. With a batch of tasks it is
        needed only for a learner that draws.
      num_inner_steps: The number of inner steps, which may differ from that of training.
      num_tasks: The number of tasks to draw, 600 by default, as in the papers; not for a batch of tasks.
      chunk_size: The number of tasks that are in memory at once, `None` for all; it does not change the result. The
        losses and scalars of all tasks are kept in any case.

    Returns:
      An `Evaluation`.

    Raises:
      TypeError: If `tasks` is neither a `Task` nor a sampler, or `key` is missing.
      ValueError: If a count is < 1, if a batch is empty, has leaves of different lengths or comes with `num_tasks`, or
        if the accuracy is not a scalar.

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
    spec = learner.spec
    if isinstance(tasks, Task):
        count = checks.tasks(tasks)
        checks.placement(tasks, None if spec is None else spec.mesh)
        if num_tasks is not None:
            raise ValueError("`num_tasks` is for a sampler; `tasks` is a batch of tasks already.")
        if spec is not None and spec.needs_key and key is None:
            raise TypeError("`key` is needed, because the learner draws random numbers in each task.")
        sources, sample = tasks, jax.tree_util.Partial(_itself)
    elif callable(tasks):
        checks.prng_key(key)
        count = checks.positive_int("num_tasks", 600 if num_tasks is None else num_tasks)
        sources, sample = jax.random.split(keys.threefry(cast(jax.Array, key)), count), as_pytree(tasks)
    else:
        raise TypeError(f"`tasks` must be a jaxmaml.Task or a sampler `key -> Task`, got {type(tasks).__name__}.")
    if key is not None:
        checks.prng_key(key)
        # Beside the tasks' own keys, which `split` makes by folding in 0, 1, ... count - 1.
        key = jax.random.split(jax.random.fold_in(keys.threefry(key), count), count)
    if not isinstance(loss_fn, Hashable):
        loss_fn = functools.partial(loss_fn)  # Hashable by identity: it works, and is compiled at every call.
    padding.check_drawn(learner, state, sample, jax.tree.map(lambda leaf: leaf[0], sources), loss_fn)
    return _evaluate(learner, loss_fn, num_inner_steps, chunk_size, state, sources, key, sample)


def _itself(task: Task) -> Task:
    return task


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _evaluate(learner, loss_fn, num_inner_steps, chunk_size, state, sources, task_keys, sample) -> Evaluation:
    loss_fn = checks.with_checked_output(loss_fn)
    if not isinstance(sources, Task):
        check_sampler("tasks", sample, sources[0])

    def evaluated(shared, each):
        (state, sample), (source, key) = shared, each
        task = sample(source)
        query_batch = _query_batches(learner, task.query, num_inner_steps, key)

        def observe(fast_params, step=None):
            return loss_fn(fast_params, query_batch(step, fast_params))

        keyed: dict[str, Any] = {} if key is None else {"key": key}  # A learner of the user's own may not take one.
        keyed |= {"num_inner_steps": num_inner_steps, "observe": observe}
        _, trace = learner.adapt(state, task.support, **keyed)
        loss, aux = trace.observed
        return loss, _scalars(aux, loss.shape), trace.support_loss

    mesh = None if learner.spec is None else learner.spec.mesh
    query_loss, aux, support_loss = map_tasks(
        evaluated, (state, sample), (sources, task_keys), chunk_size=chunk_size, mesh=mesh
    )
    return Evaluation(_curve(query_loss), _curve(support_loss), {name: _curve(value) for name, value in aux.items()})


def _query_batches(learner: MetaLearner, query: Any, num_inner_steps: int, key: chex.PRNGKey | None):
    """`(step, fast_params) -> batch`, as the axis `queries` chooses, with the keys that `adapt` derives from `key`."""
    chosen = None if learner.spec is None else learner.spec.axes.queries
    if chosen is None:
        return lambda step, fast_params: query
    queries, _ = supports.complete("queries", chosen)
    own = keys.of_task(key)
    planned = supports.planned(queries, query, num_inner_steps + 1, own.query_plan, own.query)
    return lambda step, fast_params: supports.batch_at(queries, planned, step, fast_params)


def _scalars(aux: Any, shape: tuple[int, ...]) -> dict[str, jax.Array]:
    """The entries of an auxiliary output that are one number for each step."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(aux):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "aux"
        if leaf.shape == shape and jnp.issubdtype(leaf.dtype, jnp.number):
            found[name] = leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.astype(jnp.float32)
        elif name == "accuracy":
            raise ValueError(f"`loss_fn` must return a scalar accuracy, got shape {leaf.shape[1:]}.")
    return found


def _curve(per_task: jax.Array) -> Curve:
    mean, std = jnp.mean(per_task, 0), jnp.std(per_task, 0)
    num_tasks = per_task.shape[0]
    return Curve(per_task, mean, 1.96 * std / jnp.sqrt(num_tasks) if num_tasks > 1 else jnp.full_like(mean, jnp.nan))
