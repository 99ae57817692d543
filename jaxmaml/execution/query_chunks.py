"""The query loss over more examples than fit in memory at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmaml import checks
from jaxmaml.losses import weighted_mean, without_padding
from jaxmaml.types import PyTree, WeightedBatch

_Loss = Callable[[PyTree, Any], tuple[jax.Array, Any]]


def mean_over_chunks(loss_fn: _Loss, chunk_size: int | None) -> _Loss:
    """`loss_fn` as the mean over chunks of its batch, one chunk at a time, also in the derivative.

    Equal to `loss_fn` if that is a mean over independent examples. Scalars in the auxiliary output are averaged, and
    arrays are concatenated along their first axis. Of a `WeightedBatch`, each chunk has the sum of its weights as its
    weight, and a chunk of padding alone has no effect.
    """
    if chunk_size is None:
        return loss_fn

    def chunked(params, batch):
        number = checks.num_examples("`query_chunk_size`", batch)
        if number % chunk_size:
            raise ValueError(f"`query_chunk_size` must divide the {number} query examples, got {chunk_size}.")
        totals = None
        if isinstance(batch, WeightedBatch):
            batch, totals = _with_totals(batch, chunk_size)
        chunks = jax.tree.map(lambda leaf: leaf.reshape(-1, chunk_size, *leaf.shape[1:]), batch)
        one = jax.checkpoint(lambda chunk: loss_fn(params, chunk), prevent_cse=False)
        losses, aux = jax.lax.map(one, chunks)
        joined = jax.tree.map(lambda a: weighted_mean(a, totals) if a.ndim == 1 else a.reshape(-1, *a.shape[2:]), aux)
        return weighted_mean(losses, totals), joined

    return chunked


def _with_totals(batch: WeightedBatch, chunk_size: int) -> tuple[WeightedBatch, jax.Array]:
    """`batch`, and the sum of weights of each chunk.

    A chunk of padding alone would have a loss of NaN, by which a total of zero cannot be multiplied. It becomes a chunk
    of copies of a real example, with weights of one.
    """
    totals = jnp.sum(batch.weights.reshape(-1, chunk_size), axis=1)
    is_padding = jnp.repeat(totals == 0, chunk_size)
    return without_padding(batch)._replace(weights=jnp.where(is_padding, 1.0, batch.weights)), totals
