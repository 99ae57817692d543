"""Normalisation by batch statistics: of arrays, and of layers whose output is never in memory as a whole."""

import jax
import jax.numpy as jnp

from jaxmaml.execution.memory_estimate import peak_bytes
from jaxmaml.nn.example_groups import group_size, map_groups


def moments(x: jax.Array, num_support: int | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean and variance `[C]` over all axes but the last, of the first `num_support` examples; and `x - mean`."""
    axes = tuple(range(x.ndim - 1))
    counted = slice(num_support) if num_support else ...
    mean = jnp.mean(x[counted], axes)
    centred = x - jnp.expand_dims(mean, axes)
    return mean, jnp.mean(jnp.square(centred[counted]), axes), centred


def scaled(centred, variance, scale, bias, epsilon) -> jax.Array:
    """`centred / sqrt(variance + epsilon) * scale + bias`; `None` is a scale of 1 or a bias of 0."""
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

    `layer` must treat examples independently, and `pool` must be monotone. `normalise` can be applied to any of the
    examples, with the statistics of all.

    Each group of examples gives its pooled outputs and the mean and variance of `layer(x)`, and the variance of all is
    `Var = E_g[var_g] + Var_g[mean_g]`. Pooling comes before normalisation, with which it commutes because
    normalisation is increasing, so that fewer values are normalised.
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
