"""The regressor of the MAML paper's sinusoids: a multilayer perceptron."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen

from jaxmaml import checks
from jaxmaml.nn.layers import identity_dense


class MLP(linen.Module):
    """The sinusoid regressor of the paper: 1-40-40-1 with ReLU.

    Weights start from a normal with standard deviation 0.01, truncated at two, and biases from zero, as in
    the original code; so it starts out predicting nearly zero.

    Attributes:
      features: Width of each layer, the output's last.
      num_context: Size of a vector `context`, zero at first, that is appended to every input (CAVIA).
      warp: Follow each hidden layer by a linear map `warp_0`, `warp_1` ..., the identity at first (T-nets, Warp-MAML).
      activation: Of hidden layers, elementwise; ReLU, the paper's, by default.

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
            x = self.activation(identity_dense(x, index) if self.warp else x)
        return linen.Dense(self.features[-1], kernel_init=init)(x)
