"""Derivatives of a user's function that `vmap` and compilation leave correct."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxmaml.execution.rewriting.extrema import REPLACEMENTS
from jaxmaml.execution.rewriting.replacement import rewritten
from jaxmaml.execution.rewriting.switch import is_enabled
from jaxmaml.jax_internals import CUSTOM_JVP, CUSTOM_VJP, evaluated, package_of, tie


def with_exact_derivatives(function: Callable[..., Any], rewrite: bool = True) -> Callable[..., Any]:
    """`function` with the same values, and derivatives that are right under `vmap` over tasks and `jit`.

    Maxima and minima get the derivatives of `extrema`. The arguments of a function with a `custom_vjp` are all batched
    if one of them is: see `jax_internals.tie`. Other functions with custom derivative rules are left unchanged.

    Args:
      function: A function of pytrees of arrays.
      rewrite: `False` to return `function` unchanged.
    """
    exact = rewritten(function, _replacement, skip=(CUSTOM_JVP, CUSTOM_VJP))
    return lambda *args: (exact if is_enabled(rewrite) else function)(*args)


def _replacement(eqn: Any) -> Callable[..., Any] | None:
    if eqn.primitive in REPLACEMENTS and jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
        return functools.partial(REPLACEMENTS[eqn.primitive], eqn.params)
    # The library's own rules tie their results, so that parameters which all tasks share stay a single copy.
    if eqn.primitive is CUSTOM_VJP and package_of(eqn) != "jaxmaml":
        return lambda *operands: evaluated(eqn, tie(operands, to=operands))
    return None
