"""A sine that a CPU computes for a whole vector at once."""

import math

import jax
import jax.numpy as jnp

from jaxmaml.execution.rewriting.switch import is_enabled

# 1/3!, 1/5!, ... with their signs: the next term is 6e-8 at pi / 2.
_TERMS = [(-1) ** n / math.factorial(2 * n + 1) for n in range(1, 6)]
# The digits of pi in three parts, of which whole multiples up to 1e4 / pi are exact in float32 (Cody and Waite, 1980).
_PI = (3.140625, 9.67502593994140625e-4, 1.509957990978376432e-7)


def sine(x: jax.Array) -> jax.Array:
    r"""The sine of `x`, and in derivatives the cosine, from a polynomial.

    On a CPU, XLA calls a scalar function for each sine, which takes longer than the matmuls of a SIREN; this is
    additions and products, which it computes for many entries at once. In float32 it differs from the sine by less than
    5e-7 where `|x| <= 10,000`. In other precisions, and where the environment has `JAXMAML_REWRITE=0`, it is `jnp.sin`.

    Args:
      x: An array in radians.
    Returns:
      An array of the same shape and dtype.
    Example:
      >>> import jax.numpy as jnp
      >>> from jaxmaml.nn.sine import sine
      >>> [round(float(value), 5) for value in sine(jnp.array([0.0, jnp.pi / 6, 100.0]))]
      [0.0, 0.5, -0.50637]
    """
    return _sine(x) if x.dtype == jnp.float32 and is_enabled() else jnp.sin(x)


@jax.custom_jvp
def _sine(x):
    halves = jnp.round(x * (1.0 / math.pi))
    return _sign(halves) * _polynomial(_remainder(x, halves))


@jax.custom_jvp
def _cosine(x):
    halves = jnp.floor(x * (1.0 / math.pi))
    return -_sign(halves) * _polynomial(_remainder(x, halves + 0.5))


# Rules, because the derivative of the polynomial would keep each of its terms.
@_sine.defjvp
def _sine_jvp(primals, tangents):
    return _sine(*primals), tangents[0] * _cosine(*primals)


@_cosine.defjvp
def _cosine_jvp(primals, tangents):
    return _cosine(*primals), -tangents[0] * _sine(*primals)


def _remainder(x, multiple):
    for part in _PI:
        x = x - multiple * part
    return x


def _sign(number):
    """-1 to the power of a whole number."""
    return 1.0 - 2.0 * (number - 2.0 * jnp.floor(0.5 * number))


def _polynomial(x):
    """The sine of `x` in [-pi/2, pi/2]."""
    square = jnp.square(x)
    total = _TERMS[-1]
    for term in reversed(_TERMS[:-1]):
        total = term + square * total
    return x + x * square * total
