"""Models that are timed beside those of `jaxmaml.nn`: a residual network and a transformer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen
from jax import lax

from jaxmaml.nn import BatchNorm, max_pool


class ResidualBlock(linen.Module):
    """Three 3x3 convolutions beside a 1x1 one, then 2x2 max-pooling; batch statistics throughout."""

    width: int
    conv_general_dilated: Callable[..., Any]

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def normalised_conv(x, size):
            conv = linen.Conv(
                self.width,
                kernel_size=(size, size),
                use_bias=False,
                kernel_init=linen.initializers.he_normal(),
                conv_general_dilated=self.conv_general_dilated,
            )
            return BatchNorm(use_scale=True)(conv(x))

        y = leaky_relu(normalised_conv(x, 3))
        y = leaky_relu(normalised_conv(y, 3))
        y = normalised_conv(y, 3)
        return max_pool(leaky_relu(y + normalised_conv(x, 1)))


class ResNet12(linen.Module):
    """The residual network of few-shot classification: four blocks, global mean, linear head.

    Attributes:
      num_ways: Number of classes.
      widths: Filters in each block.
      conv_general_dilated: The convolution, as in `linen.Conv`.

    References:
      Lee et al., 2019, https://arxiv.org/abs/1904.03758
    """

    num_ways: int
    widths: tuple[int, ...] = (64, 128, 256, 512)
    conv_general_dilated: Callable[..., Any] = lax.conv_general_dilated

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in self.widths:
            x = ResidualBlock(width, self.conv_general_dilated)(x)
        return linen.Dense(self.num_ways)(jnp.mean(x, axis=(1, 2)))


class EncoderBlock(linen.Module):
    """Self-attention and a two-layer perceptron, each on the layer-normalised input and added to it."""

    heads: int
    mlp: int

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        projected = linen.Dense(3 * width)(layer_norm()(x))
        query, key, value = jnp.moveaxis(projected.reshape(*x.shape[:-1], 3, self.heads, -1), -3, 0)
        scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) / jnp.sqrt(query.shape[-1]).astype(x.dtype)
        attended = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), value)
        x = x + linen.Dense(width)(attended.reshape(x.shape))
        hidden = jax.nn.gelu(linen.Dense(self.mlp)(layer_norm()(x)), approximate=True)
        return x + linen.Dense(width)(hidden)


class Transformer(linen.Module):
    """A small pre-norm encoder of integer tokens `[N, length]`, averaged over positions, with a linear head.

    Attributes:
      num_ways: Number of classes.
      width: The width of the residual stream.
      depth: Number of blocks.
      heads: Attention heads in each block.
      mlp: Hidden width of each block's perceptron.
      vocabulary: Number of different tokens.

    References:
      Vaswani et al., 2017, https://arxiv.org/abs/1706.03762
    """

    num_ways: int
    width: int = 64
    depth: int = 2
    heads: int = 4
    mlp: int = 256
    vocabulary: int = 64

    @linen.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = linen.Embed(self.vocabulary, self.width)(tokens)
        positions = self.param("positions", linen.initializers.normal(0.02), (tokens.shape[-1], self.width))
        x = x + positions[None]
        for _ in range(self.depth):
            x = EncoderBlock(self.heads, self.mlp)(x)
        return linen.Dense(self.num_ways)(jnp.mean(layer_norm()(x), axis=1))


def leaky_relu(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x, 0.1 * x)


def layer_norm() -> linen.LayerNorm:
    # The fast variance, a difference of means, loses digits in float32 that other frameworks keep.
    return linen.LayerNorm(epsilon=1e-5, use_fast_variance=False)
