"""A ReLU network on random Fourier features of coordinates."""

import jax
import jax.numpy as jnp
from flax import linen

from jaxmaml import checks


class FourierFeatureMLP(linen.Module):
    r"""A multilayer perceptron on Fourier features of coordinates, with ReLU.

    The features of a point `v` are `[cos(2 pi B v), sin(2 pi B v)]`, where `B` has `num_frequencies` rows drawn from
    N(0, scale^2). Their inner product, divided by `num_frequencies`, is near `exp(-2 pi^2 scale^2 |v - v'|^2)`, so that
    `scale` decides how fine a detail is learned first. `B` is drawn from `seed` when the model is applied. It is no
    parameter: it is neither learned nor adapted, and two models of one seed share it.

    Attributes:
      features: The width of each layer; the last is the number of values at a point. Weights are initialised by
        flax's default, a normal distribution of variance 1/n for `n` inputs, truncated, and biases to zero.
      num_frequencies: The number of rows of `B`; there are twice as many features.
      scale: The standard deviation of `B` in periods per unit of length. The paper's best for photographs, 10, is for
        coordinates in [0, 1]; for the same image in [-1, 1] it is 5.
      seed: The seed of `B`.
      sigmoid: Whether the output is passed through a sigmoid, which keeps it in (0, 1), as the papers do for images and
        tomography.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmaml
      >>> model = jaxmaml.nn.FourierFeatureMLP((64, 64, 1), num_frequencies=32)
      >>> params = model.init(jax.random.key(0), jnp.zeros((1, 2)))
      >>> model.apply(params, jnp.zeros((100, 2))).shape, params["params"]["Dense_0"]["kernel"].shape
      ((100, 1), (64, 64))

    References:
      Tancik et al., 2020, https://arxiv.org/abs/2006.10739
      Tancik et al., 2021, https://arxiv.org/abs/2012.02189 (CT: 256 frequencies, four hidden layers of 256; its code
      has a standard deviation of 30 without the factor of 2 pi, and coordinates in [0, 1], which is a scale of 2.4 in
      [-1, 1])
    """

    features: tuple[int, ...] = (256, 256, 256, 3)
    num_frequencies: int = 256
    scale: float = 5.0
    seed: int = 0
    sigmoid: bool = True

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        checks.positive("scale", self.scale)
        checks.positive_int("num_frequencies", self.num_frequencies)
        # Always from threefry: with another default generator the same checkpoint would be another field.
        key = jax.random.key(self.seed, impl="threefry2x32")
        frequencies = self.scale * jax.random.normal(key, (x.shape[-1], self.num_frequencies), x.dtype)
        # TensorFloat-32 would leave phases of many periods with too few digits.
        phases = 2.0 * jnp.pi * jnp.dot(x, frequencies, precision="highest")
        x = jnp.concatenate([jnp.cos(phases), jnp.sin(phases)], axis=-1)
        for width in self.features[:-1]:
            x = linen.relu(linen.Dense(width)(x))
        x = linen.Dense(self.features[-1])(x)
        return linen.sigmoid(x) if self.sigmoid else x
