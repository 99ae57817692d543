"""Tasks from NumPy arrays: a finite set of tasks of different sizes."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxmaml import checks
from jaxmaml.types import Batch, Task, WeightedBatch


class TaskSplits(NamedTuple):
    """Samplers of disjoint sets of tasks for meta-training, meta-validation and meta-testing."""

    train: jax.tree_util.Partial
    valid: jax.tree_util.Partial
    test: jax.tree_util.Partial


def from_arrays(
    tasks: Sequence[Any],
    *,
    num_shots: int | None = None,
    num_queries: int | None = None,
    fractions: tuple[float, float, float] | None = None,
    seed: int = 0,
) -> Any:
    """Build a sampler of a finite set of tasks, given as NumPy arrays of different sizes.

    Either every task is a `Task` whose support and query stay as they are, or every task is one table `(inputs,
    targets)`, of which support and query are drawn anew each time. Each draw is of a task chosen uniformly. Smaller
    tasks are padded to the size of the largest, as `WeightedBatch` with weights of zero; where nothing has to be padded
    the batches are a `Batch`.

    Args:
      tasks: `Task`s of `Batch`es or pairs; or tables `(inputs, targets)`, inputs an array or a pytree of arrays, with
        one row for each example and the same shapes and dtypes but for the number of rows.
      num_shots: For tables, the number of support rows to draw, without replacement.
      num_queries: For tables, the number of query rows to draw from the others; `None` for all the others, of which
        smaller tables have fewer.
      fractions: The shares of the tasks in training, validation and test, which add up to 1, for three samplers of
        disjoint sets; `None` for one sampler of all. All three have the same shapes.
      seed: The seed by which the tasks are split.

    Returns:
      `sample(key) -> Task`, pure, and a pytree whose leaves are the arrays, for use inside `jit` and `vmap`; with
      `fractions`, `TaskSplits(train, valid, test)` of such samplers.

    Raises:
      TypeError: If a task is neither a `Task` nor a pair, or the tasks are of both kinds.
      ValueError: If there is no task, a task is empty, shapes do not fit, a table has too few rows, `num_shots` is
        given for tasks with a support of their own, or a split would have no task.

    Example:
      Thirty patients with different numbers of measurements:

      >>> import jax, numpy as np, jaxmaml
      >>> rng = np.random.default_rng(0)
      >>> tables = [(rng.normal(size=(n, 2)), rng.normal(size=(n, 1))) for n in range(10, 40)]
      >>> splits = jaxmaml.tasks.from_arrays(tables, num_shots=5, fractions=(0.8, 0.1, 0.1))
      >>> task = splits.train(jax.random.key(0))
      >>> task.support.inputs.shape, task.query.inputs.shape, task.query.weights.shape
      ((5, 2), (34, 2), (34,))
    """
    tasks = list(tasks)
    if not tasks:
        raise ValueError("`tasks` has no task.")
    if num_shots is None and num_queries is None and isinstance(tasks[0], Task):
        support = _stacked(
            [_pair(f"tasks[{i}]", task, "support") for i, task in enumerate(tasks)], "support of `tasks`"
        )
        query = _stacked([_pair(f"tasks[{i}]", task, "query") for i, task in enumerate(tasks)], "query of `tasks`")
        draw, data = _draw_fixed, Task(support, query)
    elif any(isinstance(task, Task) for task in tasks):
        raise ValueError(
            "`num_shots` and `num_queries` are for tables (inputs, targets); `tasks` has a jaxmaml.Task, whose support "
            "and query are given."
        )
    else:
        shots = checks.positive_int("num_shots", num_shots)
        least = 1 if num_queries is None else checks.positive_int("num_queries", num_queries)
        data, counts = _padded([_pair(f"tasks[{i}]", task) for i, task in enumerate(tasks)], "tables of `tasks`")
        if shots + least > counts.min():
            raise ValueError(
                f"`num_shots` + `num_queries` must be at most the rows of a table: tasks[{int(counts.argmin())}] has "
                f"{counts.min()}, got {shots} + {least}."
            )
        most = int(counts.max()) - shots if num_queries is None else num_queries
        is_padded = num_queries is None and counts.min() < counts.max()
        draw = functools.partial(_draw_rows, num_shots=shots, num_queries=most, is_padded=is_padded)
        data = (data, counts)

    def sampler(chosen):
        return jax.tree_util.Partial(draw, jax.tree.map(lambda leaf: jnp.asarray(leaf[chosen]), data))

    if fractions is None:
        return sampler(np.arange(len(tasks)))
    return TaskSplits(*map(sampler, _split(len(tasks), fractions, seed)))


def _split(number: int, fractions: Any, seed: int) -> list[np.ndarray]:
    if len(fractions) != 3 or not all(0 < share < 1 for share in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"`fractions` must be three numbers > 0 that add up to 1, got {fractions}.")
    ends = np.rint(np.cumsum(fractions) * number).astype(int)
    parts = np.split(np.random.default_rng(seed).permutation(number), ends[:-1])
    if not all(part.size for part in parts):
        raise ValueError(f"`fractions` of {number} tasks must leave one in each split, got {fractions}.")
    return parts


def _draw_fixed(data: Task, key: chex.PRNGKey) -> Task:
    index = jax.random.randint(key, (), 0, jax.tree.leaves(data)[0].shape[0])
    return jax.tree.map(lambda leaf: leaf[index], data)


def _draw_rows(data, key: chex.PRNGKey, *, num_shots: int, num_queries: int, is_padded: bool) -> Task:
    (inputs, targets), counts = data
    task_key, row_key = jax.random.split(key)
    index = jax.random.randint(task_key, (), 0, counts.shape[0])
    count, capacity = counts[index], targets.shape[1]
    # A permutation of the real rows, and the padding behind it.
    rank = jnp.where(jnp.arange(capacity) < count, jax.random.uniform(row_key, (capacity,)), 2.0)
    rows = jnp.argsort(rank)[: num_shots + num_queries]

    def batch(rows):
        return Batch(*jax.tree.map(lambda leaf: leaf[index, rows], (inputs, targets)))

    support, query = batch(rows[:num_shots]), batch(rows[num_shots:])
    if is_padded:
        is_real = num_shots + jnp.arange(num_queries) < count
        query = WeightedBatch(*query, weights=is_real.astype(jnp.result_type(float)))
    return Task(support, query)


def _pair(name: str, value: Any, part: str | None = None) -> tuple[Any, np.ndarray]:
    """The arrays of a batch, or of a part of a task."""
    if part is not None:
        if not isinstance(value, Task):
            raise TypeError(f"`{name}` must be a jaxmaml.Task as the first one is, got {type(value).__name__}.")
        name, value = f"{name}.{part}", getattr(value, part)
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"`{name}` must be (inputs, targets), got {type(value).__name__}.")
    arrays = jax.tree.map(np.asarray, (value[0], value[1]))
    checks.batch(name, arrays)
    checks.num_examples(f"`{name}`", arrays)
    return arrays


def _padded(pairs: list[Any], what: str) -> tuple[Any, np.ndarray]:
    """The pairs, stacked and padded by copies of their first row, and their numbers of rows."""
    kinds = [
        (jax.tree.structure(pair), [(leaf.shape[1:], str(leaf.dtype)) for leaf in jax.tree.leaves(pair)])
        for pair in pairs
    ]
    for index, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise ValueError(
                f"The {what} must differ in the number of rows alone: number {index} has {kind[1]}, and the first one "
                f"{kinds[0][1]}."
            )
    counts = np.array([pair[1].shape[0] for pair in pairs])

    def pad(leaf):
        return np.concatenate([leaf, np.repeat(leaf[:1], counts.max() - leaf.shape[0], axis=0)])

    return jax.tree.map(lambda *leaves: np.stack([pad(leaf) for leaf in leaves]), *pairs), counts


def _stacked(pairs: list[Any], what: str) -> Batch | WeightedBatch:
    """The pairs as one batch with a leading task axis, weighted where one of them has to be padded."""
    data, counts = _padded(pairs, what)
    if counts.min() == counts.max():
        return Batch(*data)
    weights = np.arange(counts.max()) < counts[:, None]
    return WeightedBatch(*data, weights=weights.astype(np.float32))
