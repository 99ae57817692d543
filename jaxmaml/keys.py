"""The PRNG keys of a task, and functions that may leave out their key."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxmaml import checks

_THREEFRY = "threefry2x32"


class TaskKeys(NamedTuple):
    """The keys of one task, `jax.random.split(task_key, 5)`; all `None` where nothing is drawn.

    Attributes:
      start: Of the start.
      support_plan: Of the plan of the supports.
      support: Of the batches of the inner steps, as `fold_in(support, step)`.
      query_plan: Of the plan of the queries.
      query: Of the query batches and of `observe`, as `fold_in(query, step)`.
    """

    start: Any = None
    support_plan: Any = None
    support: Any = None
    query_plan: Any = None
    query: Any = None


def of_task(key: chex.PRNGKey | None) -> TaskKeys:
    """Split the key of a task; without a key there are none."""
    return TaskKeys() if key is None else TaskKeys(*jax.random.split(key, len(TaskKeys._fields)))


def at_step(key: chex.PRNGKey | None, step: Any) -> chex.PRNGKey | None:
    """`fold_in(key, step)`; `None` without a key."""
    return None if key is None else jax.random.fold_in(key, step)


def threefry(key: chex.PRNGKey) -> chex.PRNGKey:
    """`key` itself if it is a threefry key, or a threefry key derived from it.

    Only with threefry does a batch of draws equal the same draws one by one. With other implementations, such as `rbg`,
    what is drawn would depend on the size of a chunk.
    """
    typed = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
    if str(jax.random.key_impl(typed)) == _THREEFRY:
        return key
    data = jax.random.key_data(typed)
    made = jax.random.wrap_key_data(data[:2], impl=_THREEFRY)
    for number in data[2:]:
        made = jax.random.fold_in(made, number)
    return made


def from_seed(seed: int, step: Any) -> chex.PRNGKey:
    """The key of outer step `step`, always a threefry key."""
    return jax.random.fold_in(jax.random.key(seed, impl=_THREEFRY), step)


def uses_key(function: Callable[[chex.PRNGKey], Any], key: chex.PRNGKey) -> tuple[bool, Any]:
    """Whether `function(key)` depends on its key, and the shapes of what it returns; it is traced and not run."""
    drawn, out = jax.make_jaxpr(function, return_shape=True)(key)
    (key_used,) = drawn.jaxpr.invars
    operands = [operand for eqn in drawn.jaxpr.eqns for operand in eqn.invars]
    return any(key_used is operand for operand in [*operands, *drawn.jaxpr.outvars]), out


def takes_all(name: str, function: Any, arguments: Sequence[str], optional: int = 1) -> tuple[Callable[..., Any], bool]:
    """Return `function` as one of all `arguments`, of which it may leave out the last ones, and whether it has all.

    Args:
      name: The name of the function, for the error.
      function: The user's function.
      arguments: The names of the arguments that it is called with, by position.
      optional: The number of the last arguments that it may leave out.
    Raises:
      TypeError: If it takes another number of arguments.
    """
    checks.function(name, function)
    try:
        signature = inspect.signature(function)
    except ValueError:  # Some functions written in C have none.
        return function, True
    for left_out in range(optional + 1):
        number = len(arguments) - left_out
        try:
            signature.bind(*[None] * number)
        except TypeError:
            continue
        if not left_out:
            return function, True
        return lambda *args, number=number: function(*args[:number]), False
    shortest = ", ".join(arguments[: len(arguments) - optional])
    raise TypeError(
        f"`{name}` must take ({', '.join(arguments)})"
        + (f", or leave out the last and take ({shortest})" if optional else "")
        + f"; got a function of {signature}."
    )
