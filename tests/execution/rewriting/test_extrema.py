"""Maxima and minima differentiate as JAX's do, operation by operation, ties and NaN included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmaml.execution.rewriting import extrema
from jaxmaml.execution.rewriting.exact_derivatives import with_exact_derivatives

TIES = np.array([[1.0, 3.0, 3.0, -2.0], [0.0, 0.0, 0.0, 0.0], [np.inf, 1.0, np.inf, 2.0], [-np.inf] * 4])
OTHER = np.array([[1.0, 2.0, 5.0, -2.0], [0.0, 1.0, -1.0, 0.0], [1.0, 1.0, np.inf, 3.0], [0.0, -np.inf, 1.0, 1.0]])
FUNCTIONS = {
    "max of two": lambda x: jnp.maximum(x, OTHER),
    "min of two": lambda x: jnp.minimum(OTHER, x),
    "max of itself": lambda x: jnp.maximum(x, x),
    "max with a number": lambda x: jnp.maximum(x, 0.0),
    "clip": lambda x: jnp.clip(x, 0.0, 3.0),
    "max of rows": lambda x: jnp.max(x, axis=1),
    "min of columns": lambda x: jnp.min(x, axis=0, keepdims=True),
    "max of all": jnp.max,
    "min of two axes of three": lambda x: jnp.min(x.reshape(2, 2, 4), axis=(0, 2)),
    "running max": lambda x: jax.lax.cummax(x, axis=1),
    "running min from the end": lambda x: jax.lax.cummin(x, axis=0, reverse=True),
}


def derivatives(function, x):
    """Value, first and second derivatives, the latter along another direction."""
    total = lambda x: jnp.sum(jnp.sin(jnp.nan_to_num(function(x), posinf=4.0, neginf=-4.0)))  # noqa: E731
    gradient = jax.grad(total)
    forward = jax.jvp(function, (x,), (jnp.cos(x.size + jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape),))
    return function(x), gradient(x), forward[1], jax.jvp(gradient, (x,), (jnp.ones_like(x),))[1]


@pytest.mark.slow
@pytest.mark.parametrize("values", ["ties", "random", "nan"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_are_those_of_jax(x64, name, values):
    x = {
        "ties": TIES,
        "random": np.random.default_rng(0).normal(size=(4, 4)),
        "nan": np.where(np.eye(4), np.nan, np.random.default_rng(1).normal(size=(4, 4))),
    }[values]
    x, function = jnp.asarray(x), FUNCTIONS[name]
    with jax.disable_jit():
        expected = derivatives(function, x)
    exact = with_exact_derivatives(function)
    assert "custom_jvp_call" in str(jax.make_jaxpr(exact)(x))
    for ours in (derivatives(exact, x), jax.jit(lambda x: derivatives(exact, x))(x)):
        for a, b in zip(ours, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-15)
    batched = jax.vmap(lambda x: derivatives(exact, x))(jnp.stack([x, x]))
    for a, b in zip(batched, expected, strict=True):
        np.testing.assert_allclose(a[1], b, rtol=1e-15)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_dtypes_stay(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), dtype)
    for function in (lambda x: jnp.maximum(x, 0.0), lambda x: jnp.max(x, axis=0)):
        value, gradient = jax.value_and_grad(lambda x, f=function: jnp.sum(with_exact_derivatives(f)(x)))(x)
        assert value.dtype == gradient.dtype == dtype


def test_integers_are_left_alone():
    program = str(jax.make_jaxpr(with_exact_derivatives(lambda x: jnp.maximum(x, 2) + jnp.max(x)))(jnp.arange(4)))
    assert "custom_jvp_call" not in program


def looped(x):
    """In a scan, a branch, a jitted and a rematerialised function."""

    def step(carry, row):
        carry = jax.lax.cond(row[0] > 0, lambda c: jnp.maximum(c, row), lambda c: jnp.minimum(c, 2 * row), carry)
        return jax.jit(lambda c: jnp.clip(c, -1.0, 1.0))(carry), jax.checkpoint(jnp.max)(carry * row)

    carry, rows = jax.lax.scan(step, x[0], x)
    return carry + jnp.max(rows)


def test_extrema_in_loops_and_branches(x64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)))
    expected = derivatives(looped, x)
    for a, b in zip(derivatives(with_exact_derivatives(looped), x), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14)

    def remaining(jaxpr):
        """Maxima outside of a rule's own function."""
        names = {"max", "min", "reduce_max", "reduce_min"}
        found = [eqn for eqn in jaxpr.eqns if eqn.primitive.name in names]
        inner = [eqn for eqn in jaxpr.eqns if eqn.primitive.name != "custom_jvp_call"]
        return found + [
            f for eqn in inner for sub in jax.extend.core.jaxprs_in_params(eqn.params) for f in remaining(sub)
        ]

    assert len(remaining(jax.make_jaxpr(looped)(x).jaxpr)) == 6
    assert not remaining(jax.make_jaxpr(with_exact_derivatives(looped))(x).jaxpr)


def test_rules_are_trusted_by_mixed_mode():
    from jaxmaml.jax_internals import untrusted_rules

    x = jnp.ones((3, 4))
    for name in ("maximum", "minimum"):
        jaxpr = jax.make_jaxpr(getattr(extrema, name))(x, x).jaxpr
        assert not list(untrusted_rules(jaxpr))
    for name in ("reduce_max", "reduce_min"):
        jaxpr = jax.make_jaxpr(lambda x, name=name: getattr(extrema, name)(x, (0,)))(x).jaxpr
        assert not list(untrusted_rules(jaxpr))
