"""The query loss over more examples than fit in memory at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmaml import checks
from jaxmaml.types import PyTree

_Loss = Callable[[PyTree, Any], tuple[jax.Array, Any]]


def mean_over_chunks(loss_fn: _Loss, chunk_size: int | None) -> _Loss:
    """`loss_fn` as the mean over chunks of its batch, one chunk at a time, also in the derivative.

    Equal to `loss_fn` if that is a mean over independent examples. Scalars in the auxiliary output are averaged, and
    arrays are concatenated along their first axis.
    """
    if chunk_size is None:
        return loss_fn

    def chunked(params, batch):
        number = checks.num_examples("`query_chunk_size`", batch)
        if number % chunk_size:
            raise ValueError(f"`query_chunk_size` must divide the {number} query examples, got {chunk_size}.")
        chunks = jax.tree.map(lambda leaf: leaf.reshape(-1, chunk_size, *leaf.shape[1:]), batch)
        one = jax.checkpoint(lambda chunk: loss_fn(params, chunk), prevent_cse=False)
        losses, aux = jax.lax.map(one, chunks)
        joined = jax.tree.map(lambda a: jnp.mean(a, 0) if a.ndim == 1 else a.reshape(-1, *a.shape[2:]), aux)
        return jnp.mean(losses), joined

    return chunked
