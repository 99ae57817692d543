"""A function of a user's, with derivatives that neither `vmap` nor compilation changes."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxmaml.execution.rewriting.extrema import REPLACEMENTS
from jaxmaml.execution.rewriting.programs import is_enabled, rewritten
from jaxmaml.jax_internals import CUSTOM_JVP, CUSTOM_VJP, evaluated, package_of, tie


def with_exact_derivatives(function: Callable[..., Any], rewrite: bool = True) -> Callable[..., Any]:
    """`function` with the same values, and derivatives that are right under `vmap` over tasks and `jit`.

    Its maxima and minima are differentiated as `jaxmaml.extrema` does. What a function with a `custom_vjp` is given is
    batched as a whole: see `jax_internals.tie`. Else functions with custom derivative rules are left as they are.

    Args:
      function: Of pytrees of arrays.
      rewrite: `False` to leave `function` as it is.
    """
    exact = rewritten(function, _replacement, skip=(CUSTOM_JVP, CUSTOM_VJP))
    return lambda *args: (exact if is_enabled(rewrite) else function)(*args)


def _replacement(eqn: Any) -> Callable[..., Any] | None:
    if eqn.primitive in REPLACEMENTS and jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
        return functools.partial(REPLACEMENTS[eqn.primitive], eqn.params)
    # The library's own tie their results, and leave parameters that all tasks share as one copy.
    if eqn.primitive is CUSTOM_VJP and package_of(eqn) != "jaxmaml":
        return lambda *operands: evaluated(eqn, tie(operands, to=operands))
    return None
