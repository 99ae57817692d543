"""Tasks whose query inputs include the support inputs, for normalisation by the support's statistics alone."""

from collections.abc import Callable

import chex
import jax

from jaxmaml import checks
from jaxmaml.training.samplers import Sampler, as_pytree
from jaxmaml.types import Batch, Task, WeightedBatch


def with_support(sample: Sampler) -> Callable[[chex.PRNGKey], Task]:
    """Build a sampler of the same tasks with `query.inputs = (inputs, support inputs)`.

    For `jaxmaml.nn.inductive`, with which predictions on the query do not depend on each other.

    Args:
      sample: `key -> Task` of `Batch`es.
    Returns:
      `key -> Task`, pure, and a pytree if `sample` is one.
    Raises:
      TypeError: In use, if a batch of the task is not a pair of inputs and targets, or is a `WeightedBatch`.
    Example:
      >>> import jax, jaxmaml
      >>> task = jaxmaml.tasks.with_support(jaxmaml.tasks.sinusoid(5, 10))(jax.random.key(0))
      >>> [inputs.shape for inputs in task.query.inputs]
      [(10, 1), (5, 1)]
    """
    checks.function("sample", sample)
    return jax.tree_util.Partial(_with_support, as_pytree(sample))


def _with_support(sample: Sampler, key: chex.PRNGKey) -> Task:
    task = sample(key)
    for name, batch in zip(task._fields, task, strict=True):
        if isinstance(batch, WeightedBatch):
            raise TypeError(
                f"`sample(key).{name}` is a jaxmaml.WeightedBatch: the statistics of a padded batch would be those of "
                "its padding as well. Draw the same number of examples in every task."
            )
        if not isinstance(batch, tuple) or len(batch) != 2:
            raise TypeError(f"`sample(key).{name}` must be (inputs, targets), got {type(batch).__name__}.")
    inputs, targets = task.query
    return Task(task.support, Batch((inputs, task.support[0]), targets))
