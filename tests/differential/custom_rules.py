"""Terms that see the task's data, with derivative rules of the user's own."""

import jax
import jax.numpy as jnp

from tests.differential.nets import fit, hidden_of


@jax.custom_jvp
def _logistic(x):
    return 1 / (1 + jnp.exp(-x))


@_logistic.defjvp
def _logistic_rule(primals, tangents):
    y = _logistic(*primals)
    return y, y * (1 - y) * tangents[0]


def custom_jvp(params, batch):
    return fit(_logistic(hidden_of(params, batch)) @ params["v"], batch)


@jax.custom_vjp
def _hinge(x):
    return jnp.maximum(x, 0.0) ** 3


_hinge.defvjp(lambda x: (_hinge(x), x), lambda x, g: (3 * jnp.maximum(x, 0.0) ** 2 * g,))


def custom_vjp(params, batch):
    return fit(_hinge(hidden_of(params, batch)) @ params["v"], batch)


@jax.custom_vjp
def _scaled_and_squared(x, scale):
    return x * scale, scale**2


def _scaled_and_squared_backward(kept, cotangents):
    x, scale = kept
    along_scale = jnp.sum(x * cotangents[0]) + 2 * scale * cotangents[1]
    return (scale * cotangents[0]).astype(x.dtype), along_scale.astype(scale.dtype)


_scaled_and_squared.defvjp(lambda x, scale: (_scaled_and_squared(x, scale), (x, scale)), _scaled_and_squared_backward)


def custom_vjp_of_two(params, batch):
    """A custom rule of which one result sees no task data."""
    hidden, square = _scaled_and_squared(hidden_of(params, batch), params["penalty"])
    return fit(jnp.tanh(hidden) @ params["v"], batch) + 0.1 * square
