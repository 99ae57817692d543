"""The implementations that are fastest on a CPU: the operand order of matmuls, and those of deferred primitives."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from jaxmaml.execution.rewriting.deferred import implementation
from jaxmaml.execution.rewriting.replacement import rewritten
from jaxmaml.execution.rewriting.switch import is_enabled
from jaxmaml.jax_internals import DOT_GENERAL

# The gradient of a kernel, `X^T dY`, contracts the rows of both operands. XLA's CPU backend passes such a matmul to its
# fast library only if one operand is transposed first. On one core, relative to the time without transposing, it takes
# - 0.6 to 0.95 if the result stays in the cache, and the transposed operand does too or is at most a quarter of the
#   other one;
# - 0.7 to 1 with few rows;
# - otherwise up to 1.5.
# Where XLA has a thread for each core, as without a mesh, transposing gains nothing.
_RATIO = 4
_CACHED_SIZE = 1 << 16
_RESULT_SIZE = 1 << 18
_FEW_ROWS = 32
# XLA generates code of its own for very small matmuls, and jaxlib 0.10.2 aborts there if an operand is transposed in a
# branch of a `cond`: with 16, 36 and 45 multiplications it did, with 64 and more it did not.
_FEW_MULTIPLICATIONS = 512


def with_cpu_implementations(function: Callable, one_thread: bool, rewrite: bool = True) -> Callable:
    """`function` with the implementations that are fastest on a CPU, also inside loops; unchanged on other devices.

    Matmuls that contract the leading axes of both operands get one operand transposed first where that is faster, and
    deferred primitives, such as the convolution of `jaxmaml.nn`, the implementation for this number of threads. The
    traced program is rewritten, in which `grad` and `vmap` inside `function` are already applied: no rule for either
    could distinguish the matmuls of a forward pass from those of a backward pass.

    Args:
      function: A function of pytrees of arrays.
      one_thread: Whether a device has a single thread, as the devices of a mesh have.
      rewrite: `False` to return `function` unchanged.
    """

    def replacement(eqn: Any) -> Callable | None:
        if eqn.primitive is DOT_GENERAL and _gains(eqn, one_thread):
            return functools.partial(_matmul, params=eqn.params)
        return implementation(eqn, one_thread)

    fast = rewritten(function, replacement)
    return lambda *args: (fast if jax.default_backend() == "cpu" and is_enabled(rewrite) else function)(*args)


def _gains(eqn, one_thread: bool) -> bool:
    """Whether both operands are `[*batch, *contracted rows, *columns]`, and of shapes for which transposing pays."""
    x, y = (var.aval for var in eqn.invars)
    (x_rows, y_rows), (x_batch, y_batch) = eqn.params["dimension_numbers"]
    first = tuple(range(len(x_batch) + len(x_rows)))
    if (*x_batch, *x_rows) != first or (*y_batch, *y_rows) != first or x.dtype != "float32" or y.dtype != "float32":
        return False
    if not x_rows or min(x.ndim, y.ndim) == len(first) or eqn.outvars[0].aval.size > _RESULT_SIZE:
        return False
    num_rows = math.prod(x.shape[axis] for axis in x_rows)
    if num_rows * math.prod(x.shape[len(first) :]) * math.prod(y.shape[len(first) :]) < _FEW_MULTIPLICATIONS:
        return False
    wide, narrow = sorted((x.size, y.size), reverse=True)
    return num_rows <= _FEW_ROWS or (one_thread and (narrow <= _CACHED_SIZE or wide >= _RATIO * narrow))


def _matmul(x, y, *, params):
    """The matmul with the smaller operand transposed; a barrier keeps XLA from undoing it.

    If both are equally large, the second is transposed: JAX transposes the gradient of a dense kernel afterwards, and
    the two transpositions cancel.
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
