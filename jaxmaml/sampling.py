"""Task samplers as arguments of compiled functions."""

from collections.abc import Callable

import chex
import jax

from jaxmaml.types import Task

#: `key -> Task`, for one task.
Sampler = Callable[[chex.PRNGKey], Task]


def as_pytree(sample_task: Sampler) -> Sampler:
    """Make a sampler something that `jit` takes as an argument.

    A plain function becomes a `Partial` without leaves, static by its identity: changing what it refers to after the
    first call has no effect. One that is a pytree already, such as
    `image_episodes` returns, keeps its arrays as leaves: they are passed to the device and not compiled in.
    """
    if jax.tree_util.all_leaves([sample_task]):
        return jax.tree_util.Partial(sample_task)
    return sample_task
