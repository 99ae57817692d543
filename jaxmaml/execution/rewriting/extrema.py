"""Maxima and minima with derivatives that compilation cannot break.

JAX's derivative of a maximum asks which operand *equals* the result. XLA's CPU backend may compute an operand that it
fuses into that comparison once more, with another rounding than the one in the result: then nothing is equal, and the
gradient is silently lost. The derivatives here compare operands with each other, or choose by index. Ties are shared as
JAX shares them, and a maximum that is NaN has the gradient that JAX gives it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxmaml.jax_internals import CUMMAX, CUMMIN, MAX, MIN, REDUCE_MAX, REDUCE_MIN, is_symbolic_zero


def _extremum_of_two(name: str, operation: Callable[..., Any], is_chosen: Callable[..., Any]) -> Callable[..., Any]:
    """`operation(x, y)` of which `x` is the result where `is_chosen(x, y)`."""

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
        # One for the operand that is chosen, and a half where both are equal.
        return jnp.where(is_chosen(x, other), 1.0, jnp.where(x == other, 0.5, 0.0))

    return extremum


maximum = _extremum_of_two("maximum", lax.max, lax.gt)
minimum = _extremum_of_two("minimum", lax.min, lax.lt)


def _extremum_over_axes(name: str, operation: Callable[..., Any], index_of: Callable[..., Any]) -> Callable[..., Any]:
    """`operation(x, axes)`, whose first place along flattened `axes` is `index_of(x, axis)`."""

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
        # Without the index, a row would be without a gradient where XLA rounds `rows` and `value` differently.
        chosen = (is_first | (rows == value)).astype(tangent.dtype)
        shares = jnp.where(jnp.isnan(value), jnp.nan, chosen / jnp.sum(chosen, -1, keepdims=True))
        return extremum(x, axes), jnp.sum(_flattened(tangent, axes) * shares, -1)

    return extremum


def _flattened(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """`x` with `axes` joined as the last one."""
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    return jnp.transpose(x, (*kept, *axes)).reshape(*(x.shape[axis] for axis in kept), -1)


reduce_max = _extremum_over_axes("reduce_max", lax.reduce_max, jnp.argmax)
reduce_min = _extremum_over_axes("reduce_min", lax.reduce_min, jnp.argmin)


def _cumulative(extremum: Callable[..., Any]) -> Callable[..., Any]:
    """JAX differentiates its cumulative extrema as such a scan, too."""
    return lambda params, x: lax.associative_scan(extremum, x, reverse=params["reverse"], axis=params["axis"])


#: What computes an equation, by its primitive: `(params, *operands) -> result`.
REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    MAX: lambda params, x, y: maximum(x, y),
    MIN: lambda params, x, y: minimum(x, y),
    REDUCE_MAX: lambda params, x: reduce_max(x, params["axes"]),
    REDUCE_MIN: lambda params, x: reduce_min(x, params["axes"]),
    CUMMAX: _cumulative(maximum),
    CUMMIN: _cumulative(minimum),
}
