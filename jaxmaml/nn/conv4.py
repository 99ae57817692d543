"""The image classifier of the MAML paper: four convolutions and a linear head."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from jaxmaml import checks
from jaxmaml.nn.conv.convolution import conv_general_dilated
from jaxmaml.nn.conv_block import Unfinished, conv_block, finished
from jaxmaml.nn.layers import identity_dense


class Conv4(linen.Module):
    """The paper's convolutional classifier: four 3x3 convolutions and a linear head.

    Each block is convolution, batch normalisation (batch statistics, shift only), ReLU. The two forms:

    * `Conv4.omniglot(num_ways)`: 64 filters, stride 2, spatial mean, head from N(0, 1), for 28 x 28 x 1;
    * `Conv4.mini_imagenet(num_ways)`: 32 filters, 2x2 max-pooling, flattened, Xavier head, for 84 x 84 x 3.

    Convolutions are initialised from Xavier (Glorot) uniform and biases to zero. Every parameter is adapted, including
    the shifts of the normalisation, which the original code keeps fixed in the inner loop.

    Attributes:
      num_ways: Number of classes.
      features: Number of filters of each convolution.
      pool: Whether to max-pool after each block; otherwise convolutions have stride 2.
      spatial_mean: Whether to average over space before the head; otherwise features are flattened.
      head_init: Initialiser of the head's kernel.
      conv_general_dilated: The convolution, with the arguments of `jax.lax.conv_general_dilated`.
      normalisation: `"batch"` uses the statistics of the batch, or of `support` if that is given; `"layer"` and
        `"group"` use those of each example, over all channels or over 8 groups of channels.
      use_scale: Whether the normalisation learns a scale as well as a shift.
      num_context: The size of a vector `context`, initialised to zero, that scales and shifts the filters of the third
        block (FiLM; CAVIA).
      warp: Whether each block is followed by a 1 x 1 convolution `warp_0` ..., initialised to the identity (Warp-MAML).

    `model.apply(params, x, head=False)` returns the inputs of the head, and `model.apply(params, x, support=images)`
    normalises by the statistics of `support` alone.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmaml
      >>> model = jaxmaml.nn.Conv4.omniglot(num_ways=5)
      >>> images = jnp.ones((5, 28, 28, 1))
      >>> params = model.init(jax.random.key(0), images)
      >>> model.apply(params, images).shape
      (5, 5)

    References:
      Vinyals et al., 2016, https://arxiv.org/abs/1606.04080
      Finn et al., 2017, section 5.2 and appendix A.1, https://arxiv.org/abs/1703.03400
    """

    num_ways: int
    features: int
    pool: bool
    spatial_mean: bool
    head_init: Callable[..., Any]
    conv_general_dilated: Callable[..., jax.Array] = conv_general_dilated
    normalisation: str = "batch"
    use_scale: bool = False
    num_context: int = 0
    warp: bool = False

    @classmethod
    def omniglot(cls, num_ways: int, features: int = 64, **options: Any) -> "Conv4":
        checks.positive_int("num_ways", num_ways)
        checks.positive_int("features", features)
        head_init = linen.initializers.normal(1.0)
        return cls(num_ways, features, pool=False, spatial_mean=True, head_init=head_init, **options)

    @classmethod
    def mini_imagenet(cls, num_ways: int, features: int = 32, **options: Any) -> "Conv4":
        checks.positive_int("num_ways", num_ways)
        checks.positive_int("features", features)
        head_init = linen.initializers.xavier_uniform()
        return cls(num_ways, features, pool=True, spatial_mean=False, head_init=head_init, **options)

    @linen.compact
    def __call__(self, x: jax.Array, *, head: bool = True, support: jax.Array | None = None) -> jax.Array:
        checks.one_of("normalisation", self.normalisation, ("batch", "layer", "group"))
        if x.ndim != 4:
            raise ValueError(f"`x` must be images [num_examples, height, width, channels], got shape {x.shape}.")
        num_support = None if support is None else support.shape[0]
        y: jax.Array | Unfinished = x if support is None else jnp.concatenate([support, x])
        for index in range(4):
            # Convolution, normalisation, ReLU, max-pooling.
            y = conv_block(
                y,
                self.features,
                strides=1 if self.pool else 2,
                pool=self.pool,
                normalisation=self.normalisation,
                use_scale=self.use_scale,
                num_support=num_support or None,
                conv_general_dilated=self.conv_general_dilated,
            )
            if self.num_context and index == 2:
                y = self._modulated(finished(y))
            if self.warp:
                y = identity_dense(finished(y), f"warp_{index}")
        y = finished(y)[num_support:]
        y = jnp.mean(y, axis=(1, 2)) if self.spatial_mean else y.reshape(y.shape[0], -1)
        dense = linen.Dense(self.num_ways, kernel_init=self.head_init)
        return dense(y) if head else y

    def _modulated(self, x: jax.Array) -> jax.Array:
        """Scale and shift every filter by a linear map of the context vector (FiLM)."""
        context = self.param("context", linen.initializers.zeros, (self.num_context,), x.dtype)
        scale, shift = jnp.split(linen.Dense(2 * self.features, name="film")(context), 2)
        return x * (1.0 + scale)[None, None, None] + shift[None, None, None]
