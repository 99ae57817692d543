"""Functions of many examples, applied to groups that fit a CPU's cache."""

from collections.abc import Callable

import jax
from jax import lax

from jaxmaml.types import PyTree

# On two cores with 1 MiB of second-level cache each, groups of 2 to 8 MB are fastest; larger ones use main memory.
_GROUP_BYTES = 6_000_000


def group_size(num_examples: int, bytes_per_example: int) -> int:
    """The largest divisor of `num_examples` whose intermediates fit the cache; all examples on other devices."""
    if jax.default_backend() != "cpu":
        return num_examples
    fits = max(1, _GROUP_BYTES // max(1, bytes_per_example))
    return max(size for size in range(1, min(fits, num_examples) + 1) if num_examples % size == 0)


def map_groups(function: Callable[[jax.Array], PyTree], x: jax.Array, bytes_per_example: int) -> PyTree:
    """Apply `function` to groups of the examples `x`; its outputs get a leading axis of groups.

    Its intermediates are recomputed for the derivative, so that only one group's are in memory at any time.
    """
    size = group_size(x.shape[0], bytes_per_example)
    if size == x.shape[0]:
        return jax.tree.map(lambda y: y[None], function(x))
    groups = x.reshape(-1, size, *x.shape[1:])
    return lax.map(jax.checkpoint(function, prevent_cse=False), groups)
