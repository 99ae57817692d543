"""SIREN, a neural field with sines as its activation, with modulations for CAVIA."""

import math

import jax
from flax import linen

from jaxmaml import checks
from jaxmaml.nn.sine import sine


class Siren(linen.Module):
    r"""A multilayer perceptron with sine activations, from coordinates to values (SIREN).

    A hidden layer is `sin(w0 (x W + b))`, the last one `x W + b + shift`. With `n` inputs of a layer, weights are
    drawn from U(-1/n, 1/n) in the first and from U(-sqrt(6/n)/w0, sqrt(6/n)/w0) in all others, and biases are zero.
    For coordinates in [-1, 1] the first sines have the arcsine distribution, and the arguments of all others a normal
    one, of variance 1 in the second layer and near 0.8 at any depth after it.

    With `num_context`, every hidden layer is `sin(w0 (x W + b + context M))`: a vector `context`, initialised to zero,
    shifts the layers by a linear map each. CAVIA adapts it and shares all else, which is what functa does.

    Attributes:
      features: The width of each layer; the last is the number of values at a point, such as 3 colours.
      w0: The frequency of the sines, > 0. It bounds what detail the field fits in few steps: 30 suits coordinates in
        [-1, 1] and images of a few tens of pixels a side; Tancik et al. use 200 for faces of 178 x 178, with
        coordinates in [0, 1].
      num_context: The size of `context`; 0, the default, for a field without modulations.
      shift: What is added to the output: 0.5, the default, because colours are in [0, 1].

    Example:
      >>> import jax, jax.numpy as jnp, jaxmaml
      >>> model = jaxmaml.nn.Siren((64, 64, 3), num_context=16)
      >>> params = model.init(jax.random.key(0), jnp.zeros((1, 2)))
      >>> model.apply(params, jnp.zeros((100, 2))).shape, params["params"]["context"].shape
      ((100, 3), (16,))

    References:
      Sitzmann et al., 2020, https://arxiv.org/abs/2006.09661 (the layers, and the initialisation of the weights)
      Tancik et al., 2021, https://arxiv.org/abs/2012.02189 (the shift, and MAML's start)
      Dupont et al., 2022, https://arxiv.org/abs/2201.12204 (functa: shift modulations)
    """

    features: tuple[int, ...] = (256, 256, 256, 256, 3)
    w0: float = 30.0
    num_context: int = 0
    shift: float = 0.5

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        checks.positive("w0", self.w0)
        context = None
        if self.num_context:
            context = self.param("context", linen.initializers.zeros, (self.num_context,), x.dtype)
        for index, width in enumerate(self.features):
            bound = math.sqrt(6.0 / x.shape[-1]) / self.w0 if index else 1.0 / x.shape[-1]
            x = linen.Dense(width, kernel_init=_uniform(bound))(x)
            if index == len(self.features) - 1:
                return x + self.shift
            if context is not None:
                # Without a bias: the layer has one.
                moved = linen.Dense(width, use_bias=False, name=f"modulation_{index}")(context)
                x = x + moved.reshape(*(1,) * (x.ndim - 1), width)
            x = sine(self.w0 * x)
        raise ValueError(f"`features` must have at least one layer, got {self.features!r}.")


def _uniform(bound: float):
    """Draws from U(-bound, bound); linen's `uniform` starts at 0."""

    def init(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
