"""Maxima and minima with derivatives that do not depend on how the compiler rounds.

JAX's derivative of a maximum tests which operand *equals* the result. XLA's CPU backend may recompute an operand when
it fuses it into that comparison, and round it differently from the operand in the result. Then no operand is equal,
and the gradient is silently zero. The derivatives here compare the operands with each other, or choose by index. Ties
share the gradient as in JAX, and a maximum that is NaN has the gradient that JAX gives it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxmaml.jax_internals import CUMMAX, CUMMIN, MAX, MIN, REDUCE_MAX, REDUCE_MIN, is_symbolic_zero


def _extremum_of_two(name: str, operation: Callable[..., Any], is_chosen: Callable[..., Any]) -> Callable[..., Any]:
    """`operation(x, y)`, whose result is `x` where `is_chosen(x, y)`."""

    def of_two(x, y):
        return operation(x, y)

    of_two.__name__ = name
    extremum = jax.custom_jvp(of_two)

    @functools.partial(extremum.defjvp, symbolic_zeros=True)
    def rule(primals, tangents):
        terms = [
            share(*pair).astype(tangent.dtype) * tangent
            for pair, tangent in zip((primals, primals[::-1]), tangents, strict=True)
            if not is_symbolic_zero(tangent)
        ]
        result = extremum(*primals)
        return result, functools.reduce(jnp.add, terms) if terms else jnp.zeros_like(result)

    def share(x, other):
        # 1 for the chosen operand, and 1/2 where both are equal.
        return jnp.where(is_chosen(x, other), 1.0, jnp.where(x == other, 0.5, 0.0))

    return extremum


maximum = _extremum_of_two("maximum", lax.max, lax.gt)
minimum = _extremum_of_two("minimum", lax.min, lax.lt)


def _extremum_over_axes(name: str, operation: Callable[..., Any], index_of: Callable[..., Any]) -> Callable[..., Any]:
    """`operation(x, axes)`; `index_of(x, axis)` gives the first position of the result along the flattened axes."""

    def over_axes(x, axes):
        return operation(x, axes)

    over_axes.__name__ = name
    extremum = jax.custom_jvp(over_axes, nondiff_argnums=(1,))

    @extremum.defjvp
    def rule(axes, primals, tangents):
        (x,), (tangent,) = primals, tangents
        rows = _flattened(x, axes)
        first = jnp.expand_dims(index_of(rows, -1), -1)
        value = jnp.take_along_axis(rows, first, -1)
        is_first = lax.broadcasted_iota(first.dtype, rows.shape, rows.ndim - 1) == first
        # Without the index, a row would have no gradient where XLA rounds `rows` and `value` differently.
        chosen = (is_first | (rows == value)).astype(tangent.dtype)
        shares = jnp.where(jnp.isnan(value), jnp.nan, chosen / jnp.sum(chosen, -1, keepdims=True))
        return extremum(x, axes), jnp.sum(_flattened(tangent, axes) * shares, -1)

    return extremum


def _flattened(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """`x` with `axes` flattened into the last axis."""
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    return jnp.transpose(x, (*kept, *axes)).reshape(*(x.shape[axis] for axis in kept), -1)


reduce_max = _extremum_over_axes("reduce_max", lax.reduce_max, jnp.argmax)
reduce_min = _extremum_over_axes("reduce_min", lax.reduce_min, jnp.argmin)


def _cumulative(extremum: Callable[..., Any]) -> Callable[..., Any]:
    """The cumulative extremum as an associative scan, which JAX differentiates in the same way."""
    return lambda params, x: lax.associative_scan(extremum, x, reverse=params["reverse"], axis=params["axis"])


#: The replacement of an equation, by its primitive: `(params, *operands) -> result`.
REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    MAX: lambda params, x, y: maximum(x, y),
    MIN: lambda params, x, y: minimum(x, y),
    REDUCE_MAX: lambda params, x: reduce_max(x, params["axes"]),
    REDUCE_MIN: lambda params, x: reduce_min(x, params["axes"]),
    CUMMAX: _cumulative(maximum),
    CUMMIN: _cumulative(minimum),
}
