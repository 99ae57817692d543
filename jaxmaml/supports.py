"""The batch of support examples that each inner step uses."""

import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxmaml import checks


def minibatches(support: Any, batch_size: int | None, num_steps: int, key: chex.PRNGKey | None) -> Callable[[Any], Any]:
    """Build `step -> batch`: all of `support`, or consecutive batches of random permutations of it.

    Every example is seen once before any is seen again (Nichol et al., 2018, https://arxiv.org/abs/1803.02999).

    Raises:
      ValueError: If `batch_size` is larger than the support, or its leaves have different lengths.
    """
    if batch_size is None:
        return lambda step: support
    num_examples = checks.num_examples("`inner_batch_size`", support)
    if batch_size > num_examples:
        raise ValueError(f"`inner_batch_size` is {batch_size}, but the support has {num_examples} examples.")
    assert key is not None
    rounds = jax.random.split(key, max(1, math.ceil(num_steps * batch_size / num_examples)))
    order = jax.vmap(lambda key: jax.random.permutation(key, num_examples))(rounds).reshape(-1)
    order = order[: num_steps * batch_size].reshape(num_steps, batch_size)
    return lambda step: jax.tree.map(lambda leaf: jnp.take(leaf, order[step], axis=0), support)
