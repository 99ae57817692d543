"""Matrix products in the form that a CPU is fast at."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from jaxmaml.execution.rewriting.deferred import implementation
from jaxmaml.execution.rewriting.programs import is_enabled, rewritten
from jaxmaml.jax_internals import DOT_GENERAL

# The slope of a kernel, `X^T dY`, sums over the rows of both operands: a product that XLA's CPU backend does not give
# to its fast library. With one operand transposed first it does. Measured on one core, that takes 0.6 to 0.95 of the
# time where the result stays in the cache, and that operand too or it is a quarter of the other one or less, and 0.7
# to 1 with few rows; else up to 1.5. A thread for each core, as XLA has without a mesh, gains as much by itself.
_RATIO = 4
_CACHED_SIZE = 1 << 16
_RESULT_SIZE = 1 << 18
_FEW_ROWS = 32


def reordered(function: Callable, one_thread: bool, rewrite: bool = True) -> Callable:
    """`function` with such products, in whatever loops it has, transposed first where that is faster; CPU only.

    It works on what `function` becomes once it is traced, after all derivatives and batching of its own: no rule for
    either could tell the product of a forward from that of a backward pass.

    Args:
      function: Of pytrees of arrays.
      one_thread: Whether a device has one thread only, as those of a mesh have.
      rewrite: `False` to leave `function` as it is.
    """

    def replacement(eqn: Any) -> Callable | None:
        if eqn.primitive is DOT_GENERAL and _gains(eqn, one_thread):
            return functools.partial(_product, params=eqn.params)
        return implementation(eqn, one_thread)

    fast = rewritten(function, replacement)
    return lambda *args: (fast if jax.default_backend() == "cpu" and is_enabled(rewrite) else function)(*args)


def _gains(eqn, one_thread: bool) -> bool:
    """Whether both operands are of batch dimensions, then rows to sum over, then columns; and of a fit shape."""
    x, y = (var.aval for var in eqn.invars)
    (x_rows, y_rows), (x_batch, y_batch) = eqn.params["dimension_numbers"]
    first = tuple(range(len(x_batch) + len(x_rows)))
    if (*x_batch, *x_rows) != first or (*y_batch, *y_rows) != first or x.dtype != "float32" or y.dtype != "float32":
        return False
    if not x_rows or min(x.ndim, y.ndim) == len(first) or eqn.outvars[0].aval.size > _RESULT_SIZE:
        return False
    wide, narrow = sorted((x.size, y.size), reverse=True)
    few_rows = math.prod(x.shape[axis] for axis in x_rows) <= _FEW_ROWS
    return few_rows or (one_thread and (narrow <= _CACHED_SIZE or wide >= _RATIO * narrow))


def _product(x, y, *, params):
    """The smaller operand's columns before its rows; behind a barrier, or XLA would undo it.

    The second's where both are as large: JAX transposes a dense kernel's slope after, and so once more is not at all.
    """
    (rows, _), (batch, _) = params["dimension_numbers"]
    params = {**params, "dimension_numbers": None}
    first = len(batch) + len(rows)

    def columns_first(operand):
        permutation = (*batch, *range(first, operand.ndim), *rows)
        return lax.optimization_barrier(lax.transpose(operand, permutation))

    def dot(columns_first, rows_first):
        last = tuple(range(columns_first.ndim - len(rows), columns_first.ndim))
        return DOT_GENERAL.bind(
            columns_first, rows_first, **{**params, "dimension_numbers": ((last, rows), (batch, batch))}
        )

    if x.size < y.size:
        return lax.optimization_barrier(dot(columns_first(x), y))
    product = lax.optimization_barrier(dot(columns_first(y), x))
    own = range(len(batch), len(batch) + y.ndim - first)
    others = range(len(batch) + y.ndim - first, product.ndim)
    return lax.transpose(product, (*batch, *others, *own))
