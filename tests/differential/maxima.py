"""Terms that see the task's data, with maxima and minima."""

import jax
import jax.numpy as jnp

import jaxmaml
from tests.differential.nets import fit, hidden_of


def relu_by_maximum(params, batch):
    return fit(jnp.maximum(hidden_of(params, batch), 0.0) @ params["v"], batch)


def maximum_of_two(params, batch):
    hidden = jnp.maximum(hidden_of(params, batch), jnp.sin(batch["x"] @ params["w"]))
    return fit(jnp.minimum(hidden, 2.0 * hidden) @ params["v"], batch)


def clip(params, batch):
    return fit(jnp.clip(hidden_of(params, batch), -0.3, 0.8) @ params["v"], batch)


def largest_feature(params, batch):
    return fit(jnp.max(hidden_of(params, batch), axis=1) + jnp.min(hidden_of(params, batch) ** 2, axis=1), batch)


def largest_example(params, batch):
    hidden = jax.nn.softplus(hidden_of(params, batch))
    return fit((hidden / jnp.max(hidden, axis=(0, 1))) @ params["v"], batch)


def running_maximum(params, batch):
    return fit(jax.lax.cummax(jnp.sin(hidden_of(params, batch)), axis=1) @ params["v"], batch)


def _images(batch, side):
    grid = jnp.arange(side * side, dtype=batch["x"].dtype).reshape(side, side)
    angles = batch["x"][:, 0, None, None] * grid[None] + batch["x"][:, 1, None, None]
    return jnp.sin(angles + batch["x"][:, 2, None, None] * grid.T[None])[..., None]


def _convolved(params, batch, side, convolve, pool):
    """Two blocks of convolution, statistics of the batch, pooling."""
    x = _images(batch, side)
    for name in ("kernel1", "kernel2"):
        x = convolve(
            x.astype(params[name].dtype), params[name], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        mean, variance = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
        x = pool((x - mean) / jnp.sqrt(variance + 1e-3))
    return fit(x.mean((1, 2, 3)), batch)


def _pool_by_max(x):
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))


def pooled_convolution(params, batch, side=8):
    return _convolved(params, batch, side, jax.lax.conv_general_dilated, _pool_by_max)


def pooled_convolution_of_the_library(params, batch, side=8):
    return _convolved(params, batch, side, jaxmaml.nn.conv_general_dilated, _pool_by_max)


def layers_of_the_library(params, batch):
    return _convolved(params, batch, 6, jaxmaml.nn.conv_general_dilated, jaxmaml.nn.max_pool)


def clipped_convolution(params, batch):
    return _convolved(params, batch, 8, jaxmaml.nn.conv_general_dilated, lambda x: jnp.clip(x, -0.5, 0.7)[:, ::2, ::2])


def largest_in_group(params, batch):
    """As graph nets pool their neighbours."""
    groups = jnp.arange(len(batch["y"])) // 2
    pooled = jax.ops.segment_max(jnp.sin(hidden_of(params, batch)), groups, num_segments=(len(batch["y"]) + 1) // 2)
    return jnp.mean((pooled @ params["v"]) ** 2)


def one_by_one(params, batch):
    each = jax.jit(lambda x: jnp.maximum(jnp.max(x @ params["w"] + params["b"]), jnp.sin(x[0])))
    return fit(jax.lax.map(each, batch["x"]), batch)
