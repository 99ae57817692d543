"""Task samplers as arguments of compiled functions."""

import warnings
from collections.abc import Callable
from typing import Any

import chex
import jax

from jaxmaml import checks, keys
from jaxmaml.types import Task

#: `key -> Task`, for one task.
Sampler = Callable[[chex.PRNGKey], Task]


def as_pytree(sample_task: Sampler) -> Sampler:
    """Convert a sampler to a pytree, which `jit` accepts as an argument.

    A plain function becomes a `Partial` without leaves, which is static by its identity: later changes to objects that
    it closes over have no effect. A sampler that is a pytree already, such as `image_episodes` returns, keeps its
    arrays as leaves, so that they are arguments of the compiled call and not constants in it.
    """
    if jax.tree_util.all_leaves([sample_task]):
        return jax.tree_util.Partial(sample_task)
    return sample_task


def check_sampler(name: str, sample_task: Any, key: Any) -> None:
    """`sample_task` must be a sampler of tasks and `key` a single key. Warns if all tasks would be equal.

    Raises:
      TypeError: If it cannot be called or returns no `Task`, or `key` is no key.
      ValueError: If a task is empty.
    """
    checks.function(name, sample_task)
    checks.prng_key(key)
    used, task = keys.uses_key(sample_task, keys.threefry(key))
    checks.task(f"{name}(key)", task)
    if not used:
        warnings.warn(
            f"`{name}` does not use its key, so that every task is the same one: draw by jax.random, not by NumPy.",
            stacklevel=4,
        )
