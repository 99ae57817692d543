"""Normalisation by the statistics of a batch: of arrays, and of what layers make without ever holding all of it."""

import functools
import math

import jax
import jax.numpy as jnp

from jaxmaml.nn.streaming import group_size, map_groups
from jaxmaml.working_set import peak_bytes

# Folding a layer gathers its inputs once more and spares passes over its outputs: with windows of 9 and 64 filters
# (Omniglot) an outer step takes 0.9 of the time, with windows of 27 and 32 filters (84 x 84 RGB) 1.08.
_OUTPUTS_PER_INPUT = 2


def moments(x: jax.Array, num_support: int | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean and variance `[C]` over all axes but the last, of the first `num_support` examples; and `x - mean`."""
    axes = tuple(range(x.ndim - 1))
    counted = slice(num_support) if num_support else ...
    mean = jnp.mean(x[counted], axes)
    centred = x - jnp.expand_dims(mean, axes)
    return mean, jnp.mean(jnp.square(centred[counted]), axes), centred


def scaled(centred, variance, scale, bias, epsilon) -> jax.Array:
    """`centred / sqrt(variance + epsilon) * scale + bias`; `None` for a scale of 1 or a bias of 0."""
    for name, value in (("scale", scale), ("bias", bias)):
        if value is not None and value.shape != centred.shape[-1:]:
            raise ValueError(f"`{name}` must have the shape of the channels {centred.shape[-1:]}, got {value.shape}.")
    axes = tuple(range(centred.ndim - 1))
    gain = jax.lax.rsqrt(variance + epsilon)
    if scale is not None:
        gain = gain * scale
    normalised = centred * jnp.expand_dims(gain, axes)
    return normalised if bias is None else normalised + jnp.expand_dims(bias, axes)


def normalised_layer(layer, x, bias, pool, epsilon):
    r"""`(y, normalise)` with `normalise(y)` equal to `pool(batch_norm(layer(x), bias=bias))`.

    For a `layer` of single examples and a monotone `pool`; `normalise` takes any of the examples, by the statistics of
    all.

    Examples are taken in groups: each gives its pooled outputs, the mean of `layer(x)` and the variance
    around it, `var = mean_g var_g + var_g mean_g`. Pooling comes first, since a maximum commutes with the
    increasing function that normalisation is, and so has less to normalise.
    """

    def group(x):
        y = layer(x)
        mean, variance, _ = moments(y, None)
        return pool(y), mean, variance

    bytes_per_example = peak_bytes(jax.make_jaxpr(group)(x[:1]).jaxpr)
    if group_size(x.shape[0], bytes_per_example) == x.shape[0]:
        pooled, mean, variance = group(x)
    else:
        pooled, means, variances = map_groups(group, x, bytes_per_example)
        pooled = pooled.reshape(x.shape[0], *pooled.shape[2:])
        mean = jnp.mean(means, 0)
        variance = jnp.mean(variances, 0) + jnp.mean(jnp.square(means - mean[None]), 0)

    def normalise(pooled):
        centred = pooled - jnp.expand_dims(mean, tuple(range(pooled.ndim - 1)))
        return scaled(centred, variance, None, bias, epsilon)

    return pooled, normalise


def normalised_linear(layer, kernel, x, bias, pool, epsilon):
    r"""`normalised_layer` of `layer(kernel, x)`, linear in `kernel` `[..., C]`, folded into it where that is less work.

    Each output is `y = p . kernel` of a window `p` of `x`, so that `mean(y) = mean(p) . kernel`,
    `var(y) = kernel^T cov(p) kernel` and

        (y - mean(y)) / sqrt(var(y) + epsilon) + bias = p . folded + (bias - mean(p) . folded)
        where folded = kernel / sqrt(var(y) + epsilon).

    Where windows hold few numbers, such as 9 of one channel, their statistics are sooner had than those of the outputs,
    and no derivative passes over these for the mean's and the variance's sake.
    """
    num_inputs, channels = math.prod(kernel.shape[:-1]), kernel.shape[-1]
    # With operands rounded to fewer bits, as on other devices, the means of `p` and `y` would not cancel.
    exact = jax.default_backend() == "cpu" and jnp.result_type(x, kernel) in (jnp.float32, jnp.float64)
    if not exact or num_inputs * _OUTPUTS_PER_INPUT > channels:
        return normalised_layer(functools.partial(layer, kernel), x, bias, pool, epsilon)
    # What the layer makes with an identity for a kernel.
    identity = jnp.eye(num_inputs, dtype=kernel.dtype).reshape(*kernel.shape[:-1], num_inputs)

    def statistics(x):
        windows = layer(identity, x).reshape(-1, num_inputs)
        mean, _, centred = moments(windows, None)
        return mean, centred.T @ centred / windows.shape[0]

    def output(kernel, x):
        return pool(layer(kernel, x))

    bytes_per_example = peak_bytes(jax.make_jaxpr(output)(kernel, x[:1]).jaxpr)
    means, covariances = map_groups(statistics, x, bytes_per_example)
    mean = jnp.mean(means, 0)
    apart = means - mean[None]
    covariance = jnp.mean(covariances, 0) + apart.T @ apart / means.shape[0]
    rows = kernel.reshape(num_inputs, channels)
    gain = jax.lax.rsqrt(jnp.sum(rows * (covariance @ rows), 0) + epsilon)
    folded = kernel * jnp.expand_dims(gain, range(kernel.ndim - 1))
    pooled = map_groups(functools.partial(output, folded), x, bytes_per_example)
    shift = bias - mean @ folded.reshape(num_inputs, channels)
    return pooled.reshape(x.shape[0], *pooled.shape[2:]), lambda y: y + jnp.expand_dims(shift, range(y.ndim - 1))
