"""The regressor of the MAML paper's sinusoids: a multilayer perceptron."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen

from jaxmaml import checks
from jaxmaml.nn.layers import identity_dense


class MLP(linen.Module):
    """The sinusoid regressor of the paper: 1-40-40-1 with ReLU.

    Weights are initialised from a normal distribution with standard deviation 0.01, truncated at two standard
    deviations, and biases to zero, as in the original code, so that the first predictions are nearly zero.

    Attributes:
      features: The width of each layer; the last is the output's.
      num_context: The size of a vector `context`, initialised to zero, that is appended to every input (CAVIA).
      warp: Whether each hidden layer is followed by a linear map `warp_0`, `warp_1` ..., initialised to the identity
        (T-nets, Warp-MAML).
      activation: The elementwise activation of hidden layers; ReLU, as in the paper, by default.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmaml
      >>> model = jaxmaml.nn.MLP()
      >>> params = model.init(jax.random.key(0), jnp.ones((1, 1)))
      >>> model.apply(params, jnp.ones((10, 1))).shape
      (10, 1)

    References:
      Finn et al., 2017, section 5.1, https://arxiv.org/abs/1703.03400
    """

    features: tuple[int, ...] = (40, 40, 1)
    num_context: int = 0
    warp: bool = False
    activation: Callable[[jax.Array], jax.Array] = linen.relu

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        checks.function("activation", self.activation)
        init = linen.initializers.truncated_normal(0.01)
        if self.num_context:
            context = self.param("context", linen.initializers.zeros, (self.num_context,), x.dtype)
            x = jnp.concatenate([x, jnp.broadcast_to(context, (*x.shape[:-1], self.num_context))], axis=-1)
        for index, width in enumerate(self.features[:-1]):
            x = linen.Dense(width, kernel_init=init)(x)
            x = self.activation(identity_dense(x, f"warp_{index}") if self.warp else x)
        return linen.Dense(self.features[-1], kernel_init=init)(x)
