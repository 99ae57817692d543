"""Task samplers as arguments of compiled functions."""

import warnings
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxmaml import checks
from jaxmaml.types import Task

_THREEFRY = "threefry2x32"

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


def threefry(key: chex.PRNGKey) -> chex.PRNGKey:
    """The key from which tasks are drawn: `key` itself if it is a threefry key, or a threefry key derived from it.

    Only with threefry does a batch of draws equal the same draws one by one. With other implementations, such as `rbg`,
    the tasks would depend on the size of a chunk.
    """
    typed = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
    if str(jax.random.key_impl(typed)) == _THREEFRY:
        return key
    data = jax.random.key_data(typed)
    made = jax.random.wrap_key_data(data[:2], impl=_THREEFRY)
    for number in data[2:]:
        made = jax.random.fold_in(made, number)
    return made


def check_sampler(name: str, sample_task: Any, key: Any) -> None:
    """`sample_task` must be a sampler of tasks and `key` a single key. Warns if all tasks would be equal.

    Raises:
      TypeError: If it cannot be called or returns no `Task`, or `key` is no key.
      ValueError: If a task is empty.
    """
    checks.function(name, sample_task)
    checks.prng_key(key)
    drawn, task = jax.make_jaxpr(sample_task, return_shape=True)(threefry(key))
    checks.task(f"{name}(key)", task)
    (key_used,) = drawn.jaxpr.invars
    operands = [operand for eqn in drawn.jaxpr.eqns for operand in eqn.invars]
    if not any(key_used is operand for operand in [*operands, *drawn.jaxpr.outvars]):
        warnings.warn(
            f"`{name}` does not use its key, so that every task is the same one: draw by jax.random, not by NumPy.",
            stacklevel=4,
        )
