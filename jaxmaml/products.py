"""Matrix products in the form that a CPU is fast at."""

import math
from collections.abc import Callable, Iterator

import jax
import jax.core
from jax import lax
from jax.extend import core as jex_core

from jaxmaml.deferred import implemented
from jaxmaml.sums import inlined, merged

# The slope of a kernel, `X^T dY`, sums over the rows of both operands: a product that XLA's CPU backend does not give
# to its fast library. With one operand transposed first it does. Measured on one core, that takes 0.6 to 0.95 of the
# time where the result stays in the cache, and that operand too or it is a quarter of the other one or less, and 0.7
# to 1 with few rows; else up to 1.5. A thread for each core, as XLA has without a mesh, gains as much by itself.
_RATIO = 4
_CACHED_SIZE = 1 << 16
_RESULT_SIZE = 1 << 18
_FEW_ROWS = 32


def reordered(function: Callable, one_thread: bool) -> Callable:
    """`function` with such products, in whatever loops it has, transposed first where that is faster; CPU only.

    It works on what `function` becomes once it is traced, after all derivatives and batching of its own: no rule for
    either could tell the product of a forward from that of a backward pass.

    Args:
      function: Of pytrees of arrays.
      one_thread: Whether a device has one thread only, as those of a mesh have.
    """

    def wrapped(*args):
        if jax.default_backend() != "cpu":
            return function(*args)
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        jaxpr = _Reordering(one_thread).jaxpr(closed.jaxpr)
        return jax.tree.unflatten(
            jax.tree.structure(shapes), jax.core.eval_jaxpr(jaxpr, closed.consts, *jax.tree.leaves(args))
        )

    return wrapped


class _Reordering:
    """Remembers what it did before, so that what was shared (and compiled once) stays so."""

    def __init__(self, one_thread: bool):
        self.one_thread = one_thread
        self.done = {}

    def jaxpr(self, jaxpr):
        if id(jaxpr) not in self.done:
            whole = implemented(jaxpr, self.one_thread)
            eqns = [new for eqn in merged(whole) for new in self.equations(eqn)]
            # With the original, whose identity would else be free for another one.
            self.done[id(jaxpr)] = jaxpr, whole.replace(eqns=eqns)
        return self.done[id(jaxpr)][1]

    def equations(self, eqn) -> Iterator:
        if eqn.primitive is jex_core.primitives.dot_general_p and self.gains(eqn):
            yield from inlined(lambda x, y: _product(x, y, eqn.params), eqn.invars, eqn)
        elif next(jex_core.jaxprs_in_params(eqn.params), None) is None:
            yield eqn
        else:
            yield eqn.replace(params={name: self.inside(param) for name, param in eqn.params.items()})

    def inside(self, param):
        if isinstance(param, jex_core.Jaxpr):
            return self.jaxpr(param)
        if isinstance(param, jex_core.ClosedJaxpr):
            return jex_core.ClosedJaxpr(self.jaxpr(param.jaxpr), param.consts)
        return tuple(map(self.inside, param)) if type(param) is tuple else param

    def gains(self, eqn) -> bool:
        """Whether both operands are of batch dimensions, then rows to sum over, then columns; and of a fit shape."""
        x, y = (var.aval for var in eqn.invars)
        (x_rows, y_rows), (x_batch, y_batch) = eqn.params["dimension_numbers"]
        first = tuple(range(len(x_batch) + len(x_rows)))
        if (*x_batch, *x_rows) != first or (*y_batch, *y_rows) != first or x.dtype != "float32" or y.dtype != "float32":
            return False
        if min(x.ndim, y.ndim) == len(first) or eqn.outvars[0].aval.size > _RESULT_SIZE:
            return False
        wide, narrow = sorted((x.size, y.size), reverse=True)
        few_rows = math.prod(x.shape[axis] for axis in x_rows) <= _FEW_ROWS
        return few_rows or (self.one_thread and (narrow <= _CACHED_SIZE or wide >= _RATIO * narrow))


def _product(x, y, params):
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
        return lax.dot_general_p.bind(
            columns_first, rows_first, **{**params, "dimension_numbers": ((last, rows), (batch, batch))}
        )

    if x.size < y.size:
        return lax.optimization_barrier(dot(columns_first(x), y))
    product = lax.optimization_barrier(dot(columns_first(y), x))
    own = range(len(batch), len(batch) + y.ndim - first)
    others = range(len(batch) + y.ndim - first, product.ndim)
    return lax.transpose(product, (*batch, *others, *own))
